"""Supervised training of the demonstration model on a CPU: clips with known damage in, trained weights out.

First the vision tower and the motion projector learn to measure damage, through a linear read-out that is thrown away
afterwards; then the whole model learns to say it, by next-token loss on the answers. Both look at small windows of the
scoring view, in which damage shows as well as in the whole, at a fraction of the cost. SlowFast stays as it was drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import trange

from tools.demo_answers import lessons
from tools.demo_clips import LOOKS, Damage
from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.judge import View
from vqathinker_jax.model.vlm import VLM, normalise

VIEW = View()
ANSWER = 32
"""Room for an answer, in tokens."""
RATING_SHARE = 0.75
"""How often the question is the one for the rating, not a free one."""


class Collection(NamedTuple):
    """N clips: the frames that the scoring view samples at their own size, SlowFast's features, and the damages."""

    frames_NFYXC: np.ndarray
    motion_NZ: np.ndarray
    damages: list[tuple[Damage, ...]]


def window(frames_FYXC: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the frames, as large as it stands in the scoring view: [F, side, side, C]."""
    Y, X = frames_FYXC.shape[1:3]
    height, width = Y * side // VIEW.image_size, X * side // VIEW.image_size
    top, left = rng.integers(Y - height + 1), rng.integers(X - width + 1)
    return resize(frames_FYXC[:, top : top + height, left : left + width], side)


def motion_features(model: VLM, clips: list[np.ndarray]) -> np.ndarray:
    """SlowFast's features [N, Z] of whole clips."""
    assert model.motion is not None
    graph, state = nnx.split(model.motion)

    @jax.jit
    def features(frames_FYXC: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(normalise(frames_FYXC)[None])[0]

    with trange(len(clips), desc="motion features", unit=" clips") as numbers:
        return np.stack([features(resize(clips[number], VIEW.image_size)) for number in numbers])


def learn_to_see(model: VLM, collection: Collection, *, side: int, steps: int, batch: int, seed: int) -> None:
    """Teach the projected tokens of single frames, and of the motion, to tell each damage's amount linearly."""
    rng = np.random.default_rng(seed)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    D = model.config.language.width
    amounts_NK = np.array([[_visible(damages, kind) for kind in LOOKS] for damages in collection.damages], np.float32)

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(len(amounts_NK), size=batch)
        frames = [collection.frames_NFYXC[n, rng.integers(VIEW.frames)][None] for n in chosen]
        pictures_BYXC = np.concatenate([window(frame_1YXC, side, rng) for frame_1YXC in frames])
        return pictures_BYXC, collection.motion_NZ[chosen], amounts_NK[chosen]

    def loss(learned: Any, pictures_BYXC: jax.Array, motion_BZ: jax.Array, amounts_BK: jax.Array) -> jax.Array:
        params, readout_ZK = learned
        seen_B2D = _look(nnx.merge(graph, params, rest), pictures_BYXC[:, None], motion_BZ)
        mean_BZ = jnp.concatenate([seen_B2D[:, :-1].mean(1), seen_B2D[:, -1]], axis=-1)
        return jnp.square(mean_BZ @ readout_ZK - amounts_BK).sum(-1).mean()

    params, _ = _descend("learning to see", loss, (params, jnp.zeros((2 * D, len(LOOKS)))), draw, steps)
    nnx.update(model, params)


def learn_to_speak(
    model: VLM, collection: Collection, tokenizer: Any, *, side: int, steps: int, batch: int, seed: int
) -> None:
    """Teach the answers of `lessons`, token by token."""
    rng = np.random.default_rng(seed)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tokens = prompt.special_tokens(tokenizer)
    slots = model.config.tokens_per_frame(side)

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(len(collection.damages), size=batch)
        rows = [_lesson(collection.damages[n], rng) for n in chosen]
        ids = [prompt.encode(tokenizer, question, slots, VIEW.frames, motion=True) for question, _ in rows]
        ids_BS, mask_BS = prompt.pad_left(ids, tokens.pad, bucket=32)
        answers_BT = np.full((batch, ANSWER), tokens.pad, np.int32)
        for row, (_, answer) in zip(answers_BT, rows, strict=True):
            answer_ids = [*tokenizer(answer)["input_ids"], tokens.stop]
            row[: len(answer_ids)] = answer_ids
        frames_BFYXC = np.stack([window(collection.frames_NFYXC[n], side, rng) for n in chosen])
        return frames_BFYXC, collection.motion_NZ[chosen], ids_BS, mask_BS, answers_BT

    def loss(
        params: Any,
        frames: jax.Array,
        motion_BZ: jax.Array,
        ids_BS: jax.Array,
        mask_BS: jax.Array,
        answers_BT: jax.Array,
    ) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        said_BT = answers_BT != tokens.pad
        ids = jnp.concatenate([ids_BS, answers_BT], axis=1)
        embedded = model.embed(ids, _look(model, frames, motion_BZ), tokens.context)
        hidden, _ = model.language.prefill(embedded, jnp.concatenate([mask_BS, said_BT], axis=1))
        logits_BTV = model.language.logits(hidden[:, ids_BS.shape[1] - 1 : -1])
        surprise_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, answers_BT)
        return surprise_BT.mean(where=said_BT)

    nnx.update(model, _descend(f"learning to speak ({side} px)", loss, params, draw, steps))


def _visible(damages: tuple[Damage, ...], kind: str) -> float:
    """How much of a kind of damage there is: 0 without it, and well above 0 where it is just visible."""
    return next((0.3 + 0.7 * damage.amount for damage in damages if damage.kind == kind), 0.0)


def _lesson(damages: tuple[Damage, ...], rng: np.random.Generator) -> tuple[str, str]:
    rated, *free = lessons(damages, VIEW.frames)
    return rated if rng.random() < RATING_SHARE else free[rng.integers(len(free))]


def _look(model: VLM, frames_BFYXC: jax.Array, motion_BZ: jax.Array) -> jax.Array:
    """`VLM.encode` with SlowFast's features given: visual tokens [B, F * L + 1, D]."""
    assert model.motion_projector is not None
    B, _, Y, X, C = frames_BFYXC.shape
    features = model.vision(normalise(frames_BFYXC).reshape(-1, Y, X, C))
    tokens = model.projector(features, Y // model.vision.patch, X // model.vision.patch)
    return jnp.concatenate(
        [tokens.reshape(B, -1, tokens.shape[-1]), model.motion_projector(motion_BZ)[:, None]], axis=1
    )


def _descend(
    title: str, loss: Callable[..., jax.Array], learned: Any, draw: Callable[[], tuple[np.ndarray, ...]], steps: int
) -> Any:
    """Minimise `loss(learned, *draw())` by AdamW with warm-up and cosine decay, under a bar that shows the loss."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps, 2e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))
    state = optimizer.init(learned)

    @jax.jit
    def step(learned: Any, state: Any, batch: tuple[np.ndarray, ...]) -> tuple[Any, Any, jax.Array]:
        value, slope = jax.value_and_grad(loss)(learned, *batch)
        change, state = optimizer.update(slope, state, learned)
        return optax.apply_updates(learned, change), state, value

    smooth = None
    with trange(steps, desc=title, unit=" steps") as numbers:
        for _ in numbers:
            learned, state, value = step(learned, state, draw())
            smooth = float(value) if smooth is None else 0.95 * smooth + 0.05 * float(value)
            numbers.set_postfix(loss=f"{smooth:.4f}")
    return learned
