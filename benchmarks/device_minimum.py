"""The least that each phase has to do, counted by hand: multiplications and additions, and bytes of memory traffic.

Nothing is padded, nothing is computed twice, no product of an attention that nobody sees is made; weights are read once
a pass, and of activations only what a phase is given and what it leaves behind is moved; in two bytes each, or in one
what is kept so.
"""

from dataclasses import dataclass, replace

from benchmarks.device_sizes import Prompt, Sizes
from vqathinker_jax.model.config import LanguageConfig, ModelConfig, MotionConfig

_SIZE = 2


@dataclass(frozen=True)
class Work:
    """flops: operations, an addition and a multiplication being two. bytes: read and written."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def seconds(self, flops: float, bandwidth: float) -> float:
        """The least time on a machine of so many operations and bytes a second."""
        return max(self.flops / flops, self.bytes / bandwidth)


@dataclass(frozen=True)
class Held:
    """Bytes of a weight of a decoder layer, and of a number in a prompt's cache."""

    weight: int = _SIZE
    cached: int = _SIZE


FULL = Held()


def least(sizes: Sizes, cell: str) -> Work:
    """What a cell, as `decode@16`, has to do: one token of decoding, all of any other phase."""
    phase, _, batch = cell.partition("@")
    model, videos = sizes.model, int(batch)
    asked, trained = (model, sizes.scoring, videos), (model, sizes.training, videos)
    learned = (*trained, sizes.learned, sizes.completion)
    held = Held(*(1 if kept == "int8" else _SIZE for kept in (sizes.weights, sizes.cache)))
    return {
        "vision": lambda: vision(*asked),
        "motion": lambda: motion(*asked),
        "prefill": lambda: prefill(*asked, held),
        "decode": lambda: decode(*asked, 1, sizes.slice / 2, held),
        "score": lambda: answered(*asked, 1, sizes.answer, held),
        "rollout": lambda: answered(*trained, sizes.drawn, sizes.completion, held),
        "log-probs": lambda: log_probs(*learned),
        "lora": lambda: update(*learned, adapters=True),
        "update": lambda: update(*learned, adapters=False),
    }[phase]()


def vision(model: ModelConfig, prompt: Prompt, videos: int) -> Work:
    """Pixels to projected tokens."""
    v, D, frames = model.vision, model.language.width, videos * prompt.frames
    E, patches = v.width, (prompt.size // v.patch) ** 2
    tokens, merged = patches + 1, model.shuffle**2
    layer = 4 * E * E + 2 * E * v.mlp
    first, last = 3 * v.patch**2 * E, merged * E * D + D * D
    attention = 4 * tokens * tokens * E * v.layers
    each = 2 * (tokens * layer * v.layers + patches * first + patches // merged * last) + attention
    shown = prompt.size**2 * 3 + patches // merged * D * _SIZE
    return Work(frames * each, (layer * v.layers + first + last) * _SIZE + frames * shown)


def motion(model: ModelConfig, prompt: Prompt, videos: int) -> Work:
    """Pixels to the token of motion."""
    if model.motion is None:
        return Work()
    D, Z = model.language.width, model.motion.features
    products = _slowfast(model.motion, prompt.frames, prompt.size)
    weights = sum(kernel for kernel, _ in products) + Z * D + D * D
    each = 2 * sum(kernel * places for kernel, places in products) + 2 * (Z * D + D * D)
    return Work(videos * each, weights * _SIZE + videos * prompt.frames * prompt.size**2 * 3)


def prefill(model: ModelConfig, prompt: Prompt, prompts: int, held: Held = FULL) -> Work:
    """Embedded prompts to the logits of each one's next token, and their cache.

    In the last layer, tokens before the last one are asked for their keys and values and nothing else.
    """
    language, tokens = model.language, prompt.tokens(model)
    head = language.width * language.vocabulary
    others, last = (replace(language, layers=layers) for layers in (language.layers - 1, 1))
    flops = _through(others, tokens) + _seen(others, _before(tokens))
    flops += _through(last, 1) + _seen(last, tokens) + 2 * (tokens - 1) * language.width * _cache(last)
    flops = prompts * (flops + 2 * head)
    moved = prompts * tokens * (language.width * _SIZE + _cache(language) * held.cached)
    return Work(flops, _layers(language) * held.weight + head * _SIZE + moved)


def decode(
    model: ModelConfig, prompt: Prompt, prompts: int, completions: int, written: float, held: Held = FULL
) -> Work:
    """One token of each completion, `written` tokens of each being there."""
    language, rows, tokens = model.language, prompts * completions, prompt.tokens(model)
    head = language.width * language.vocabulary
    flops = rows * (_through(language, 1) + _seen(language, tokens + written + 1) + 2 * head)
    cached = (prompts * tokens * held.cached + rows * (written + 1) * _SIZE) * _cache(language)
    return Work(flops, _layers(language) * held.weight + head * _SIZE + cached)


def answered(
    model: ModelConfig, prompt: Prompt, prompts: int, completions: int, tokens: int, held: Held = FULL
) -> Work:
    """Videos to completions: encoding, prefill, and every token after the first."""
    begun = vision(model, prompt, prompts) + motion(model, prompt, prompts) + prefill(model, prompt, prompts, held)
    return begun + decode(model, prompt, prompts, completions, (tokens - 1) / 2, held) * (tokens - 1)


def log_probs(model: ModelConfig, prompt: Prompt, prompts: int, completions: int, tokens: int) -> Work:
    """Videos, prompts and their completions to the log-prob of every token of a completion."""
    matrices, attention, head = _said(model, prompt, prompts, completions, tokens)
    language = model.language
    weights = (_layers(language) + language.width * language.vocabulary) * _SIZE
    encoded = vision(model, prompt, prompts) + motion(model, prompt, prompts)
    return encoded + Work(matrices + attention + head, weights)


def update(model: ModelConfig, prompt: Prompt, prompts: int, completions: int, tokens: int, *, adapters: bool) -> Work:
    """One step with a reference policy: log-probs under both, the gradient, and AdamW.

    A gradient takes two products for each of the forward pass: by what went in, and by the weight, where that moves.
    adapters: only these move, which themselves are not counted.
    """
    matrices, attention, head = _said(model, prompt, prompts, completions, tokens)
    seen, moved = vision(model, prompt, prompts), motion(model, prompt, prompts)
    language = model.language
    forward = log_probs(model, prompt, prompts, completions, tokens)
    if adapters:
        # The reference policy has the same encoder, which says the same of the same frames.
        spoken = Work(matrices + attention + head, forward.bytes - seen.bytes - moved.bytes)
        backward = Work(matrices + 2 * attention + head, spoken.bytes)
        return forward + spoken + backward
    weights = seen.bytes + language.width * language.vocabulary * 2 * _SIZE + _layers(language) * _SIZE
    backward = Work(2 * (seen.flops + matrices + attention + head), weights)
    # The gradient is written and read; weights and both moments are read and written.
    step = Work(0, 8 * weights)
    return forward * 2 + backward + step


def _said(
    model: ModelConfig, prompt: Prompt, prompts: int, completions: int, tokens: int
) -> tuple[float, float, float]:
    """Operations of the language model over prompts and completions: its matrices, its attention, its head."""
    language, asked = model.language, prompt.tokens(model)
    said = completions * tokens
    matrices = prompts * _through(language, asked + said)
    attention = prompts * _seen(language, _before(asked) + said * asked + completions * _before(tokens))
    return matrices, attention, prompts * said * 2 * language.width * language.vocabulary


def _layers(language: LanguageConfig) -> int:
    """Weights of the language model's layers."""
    D, N, K, H, M = language.width, language.heads, language.kv_heads, language.head, language.mlp
    return language.layers * (2 * D * N * H + 2 * D * K * H + 3 * D * M)


def _through(language: LanguageConfig, tokens: int) -> int:
    """Operations of the layers' matrices."""
    return 2 * tokens * _layers(language)


def _seen(language: LanguageConfig, pairs: float) -> float:
    """Operations of attention over so many pairs of a query and a key it sees."""
    return 4 * pairs * language.heads * language.head * language.layers


def _before(tokens: int) -> int:
    """Pairs of a token and one not after it."""
    return tokens * (tokens + 1) // 2


def _cache(language: LanguageConfig) -> int:
    """Numbers of one token's keys and values."""
    return 2 * language.kv_heads * language.head * language.layers


def _slowfast(config: MotionConfig, frames: int, size: int) -> list[tuple[int, int]]:
    """Each convolution's weights, and the places it is applied at."""
    slow_steps, fast_steps = -(-frames // 4), frames
    found: list[tuple[int, int]] = []

    def convolution(kernel: int, ins: int, outs: int, steps: int, side: int) -> None:
        found.append((kernel * ins * outs, steps * side * side))

    def bottleneck(kernel: int, ins: int, inner: int, outer: int, steps: int, side: int, stride: int) -> None:
        convolution(kernel, ins, inner, steps, side)
        convolution(9, inner, inner, steps, -(-side // stride))
        convolution(1, inner, outer, steps, -(-side // stride))
        if ins != outer or stride > 1:
            convolution(1, ins, outer, steps, -(-side // stride))

    side = -(-size // 2)
    slow, fast = config.stem, config.stem // config.beta
    convolution(49, 3, slow, slow_steps, side)
    convolution(5 * 49, 3, fast, fast_steps, side)
    side = -(-side // 2)
    for number, depth in enumerate(config.depths):
        # Each stage begins with the lateral connection that the one before it ends with.
        convolution(7, fast, config.fusion * fast, slow_steps, side)
        inner = config.stem * 2**number
        outer, stride = inner * config.expansion, 1 if number == 0 else 2
        slow_ins, fast_ins = slow + config.fusion * fast, fast
        for block in range(depth):
            first = stride if block == 0 else 1
            bottleneck(1 if number < 2 else 3, slow_ins, inner, outer, slow_steps, side, first)
            bottleneck(3, fast_ins, inner // config.beta, outer // config.beta, fast_steps, side, first)
            side, slow_ins, fast_ins = -(-side // first), outer, outer // config.beta
        slow, fast = outer, outer // config.beta
    return found
