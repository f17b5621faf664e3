"""The phases of `device.py` as PyTorch runs them today: Transformers' InternVL, fused attention, the same shapes.

    python -m benchmarks.device_torch --model 8B

Random bfloat16 weights are made on the device. `score` and `rollout` are `generate` with its own defaults; `log-probs`
and `update` are the reference trainer's: a prompt and its video repeated for each completion, logits of the whole row,
a video at a time with gradients adding up, activations checkpointed, AdamW. There is no motion branch, so what ours
spends on it is not in these times. Prompts have one length and need no padding.
"""

import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from benchmarks.device_sizes import Prompt, Sizes
from benchmarks.device_timing import Machine, run, side_arguments
from convert.theirs import name_of_cache


class Theirs:
    """Transformers on the GPU, or on the CPU where there is none."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def machine(self) -> Machine:
        """Measures the device."""
        cuda = self.device.type == "cuda"
        side, count = (8192, 2**30) if cuda else (512, 2**24)
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        x = torch.ones(count, device=self.device, dtype=torch.bfloat16)
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        return Machine(
            flops=2 * side**3 / self._least_seconds(lambda: a @ b),
            bandwidth=4 * count / self._least_seconds(lambda: x + 1),
            name=f"{torch.cuda.get_device_name() if cuda else 'cpu'} · {versions}",
        )

    def open(self, cell: str) -> Callable[[], object]:
        """Makes what a cell needs; the function runs it once and returns when the device is done."""
        phase, _, batch = cell.partition("@")
        torch.manual_seed(0)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = _PHASES[phase](self.sizes, int(batch), self.device)

        def finished() -> None:
            run()
            self._wait()

        return finished

    def peak(self) -> int:
        """Bytes that were in use at most, so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _least_seconds(self, run: Callable[[], Any]) -> float:
        """The mean of ten calls one after the other, in the best of three rounds."""

        def mean() -> float:
            start = time.perf_counter()
            for _ in range(10):
                run()
            self._wait()
            return (time.perf_counter() - start) / 10

        mean()
        return min(mean() for _ in range(3))


def build(sizes: Sizes, device: torch.device) -> InternVLForConditionalGeneration:
    """The model with random weights."""
    vision, language = sizes.model.vision, sizes.model.language
    side = vision.grid * vision.patch
    config = InternVLConfig(
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "attention_bias": True,
            "image_size": [side, side],
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": language.width,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "intermediate_size": language.mlp,
            "vocab_size": language.vocabulary,
            "tie_word_embeddings": False,
        },
        image_token_id=sizes.context_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = InternVLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    # Nothing ends an answer before it has its length.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(torch.bfloat16).eval()


def pixels(prompt: Prompt, videos: int, device: torch.device) -> torch.Tensor:
    """Normalised frames [P * F, C, Y, X]."""
    return torch.randn(videos * prompt.frames, 3, prompt.size, prompt.size, device=device, dtype=torch.bfloat16)


def asked(sizes: Sizes, prompt: Prompt, videos: int, device: torch.device) -> torch.Tensor:
    """ids [P, S] with a slot for every visual token; where ours has that of motion there is text."""
    visual = prompt.frames * sizes.model.tokens_per_frame(prompt.size)
    ids = torch.ones(prompt.tokens(sizes.model), dtype=torch.long, device=device)
    ids[-visual - 5 : -5] = sizes.context_id
    return ids.repeat(videos, 1)


def _vision(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    model, frames = build(sizes, device), pixels(sizes.scoring, videos, device)
    return torch.no_grad()(lambda: model.get_image_features(pixel_values=frames).pooler_output)


def _embedded(sizes: Sizes, videos: int, device: torch.device) -> torch.Tensor:
    shape = (videos, sizes.scoring.tokens(sizes.model), sizes.model.language.width)
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _prefill(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    model, hidden = build(sizes, device), _embedded(sizes, videos, device)
    return torch.no_grad()(lambda: model(inputs_embeds=hidden, use_cache=True, logits_to_keep=1))


def _decode(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    model = build(sizes, device)
    with torch.no_grad():
        # One prompt's cache for all, so that making it takes no more memory than one.
        out = model(inputs_embeds=_embedded(sizes, 1, device), use_cache=True, logits_to_keep=1)
    name = name_of_cache(model)
    cache, first = getattr(out, name), out.logits[:, -1:].argmax(-1).repeat(videos, 1)
    cache.batch_repeat_interleave(videos)

    @torch.no_grad()
    def run() -> None:
        ids = first
        for _ in range(sizes.slice):
            ids = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache}).logits.argmax(-1)
        cache.crop(-sizes.slice)

    return run


def _score(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    return _answers(sizes, sizes.scoring, videos, device, sizes.answer, {"do_sample": False})


def _rollout(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 50, "num_return_sequences": sizes.drawn}
    return _answers(sizes, sizes.training, videos, device, sizes.completion, drawing)


def _answers(
    sizes: Sizes, prompt: Prompt, videos: int, device: torch.device, tokens: int, drawing: dict[str, Any]
) -> Callable[[], Any]:
    model, frames, ids = build(sizes, device), pixels(prompt, videos, device), asked(sizes, prompt, videos, device)
    given = {"input_ids": ids, "pixel_values": frames, "attention_mask": torch.ones_like(ids)}
    return torch.no_grad()(lambda: model.generate(**given, max_new_tokens=tokens, **drawing))


def _rows(sizes: Sizes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [G, S + C] and pixels of one video and its completions, the prompt and the frames repeated for each."""
    G, C = sizes.learned, sizes.completion
    said = torch.randint(2, sizes.context_id, (G, C), device=device)
    ids = torch.cat([asked(sizes, sizes.training, G, device), said], dim=1)
    return ids, pixels(sizes.training, 1, device).repeat(G, 1, 1, 1)


def token_log_probs(model: Any, ids: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Log-probs [G, T - 1] of all tokens but the first, row by row as the reference gathers them."""
    logits = model(input_ids=ids, pixel_values=frames, use_cache=False).logits[:, :-1]
    rows = [torch.gather(row.log_softmax(-1), 1, of[:, None])[:, 0] for row, of in zip(logits, ids[:, 1:], strict=True)]
    return torch.stack(rows)


def _log_probs(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    model, (ids, frames) = build(sizes, device), _rows(sizes, device)

    @torch.no_grad()
    def run() -> None:
        for _ in range(videos):
            token_log_probs(model, ids, frames)

    return run


def _update(sizes: Sizes, videos: int, device: torch.device) -> Callable[[], Any]:
    model, reference, (ids, frames) = build(sizes, device), build(sizes, device), _rows(sizes, device)
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=device.type == "cuda")
    advantages = torch.linspace(-1, 1, sizes.learned, device=device)[:, None]
    C = sizes.completion

    def run() -> None:
        for _ in range(videos):
            with torch.no_grad():
                anchor = token_log_probs(reference, ids, frames)[:, -C:].float()
            spoken = token_log_probs(model, ids, frames)[:, -C:].float()
            gap = anchor - spoken
            ratio = (spoken - spoken.detach()).exp()
            loss = -(ratio * advantages - 0.04 * (gap.exp() - gap - 1)).mean() / videos
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


_PHASES: dict[str, Callable[[Sizes, int, torch.device], Callable[[], Any]]] = {
    "vision": _vision,
    "prefill": _prefill,
    "decode": _decode,
    "score": _score,
    "rollout": _rollout,
    "log-probs": _log_probs,
    "update": _update,
}


if __name__ == "__main__":
    run(side_arguments(__doc__, tuple(_PHASES)).parse_args(), "benchmarks.device_torch", Theirs)
