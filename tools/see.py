"""A fresh tiny model learns to see: synthetic clips with their known damages in, a vision tower that tells them out.

It stands for the pre-training that a large model's tower comes with. The first places of the projected tokens, over a
frame and together with those of the motion token, learn to hold how much there is of each damage. No rating is used,
and SlowFast stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vqathinker_jax.data.distortions import KINDS
from vqathinker_jax.data.synthetic import Truth
from vqathinker_jax.model.vlm import VLM, normalise

SEEN = tuple(name for name, kind in KINDS.items() if kind.trained)
JUST_VISIBLE = 0.3
"""What a damage of strength 0 counts as, where none counts 0."""
LOUDNESS = 5.0
"""How large a full amount stands in a token: about as large as embeddings are."""


class Clips(NamedTuple):
    """N clips: uint8 RGB frames, SlowFast's features, and how much there is of each kind of `SEEN`."""

    frames_NFYXC: np.ndarray
    motion_NZ: np.ndarray
    amounts_NK: np.ndarray


def look_at(model: VLM, frames_NFYXC: np.ndarray, truths: Sequence[Truth], batch: int = 20) -> Clips:
    """The clips as `learn_to_see` takes them."""
    assert model.motion is not None
    graph, state = nnx.split(model.motion)

    @jax.jit
    def features(frames_PFYXC: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(normalise(frames_PFYXC))

    parts = [features(frames_NFYXC[start : start + batch]) for start in range(0, len(frames_NFYXC), batch)]
    amounts = [[_amount(truth, kind) for kind in SEEN] for truth in truths]
    return Clips(frames_NFYXC, np.concatenate(parts), np.array(amounts, np.float32))


def learn_to_see(model: VLM, clips: Clips, *, steps: int, batch: int, rate: float, seed: int) -> list[float]:
    """Teach the model's tower and projectors, in place; returns the loss of every step."""
    rng = np.random.default_rng(seed)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    N, F = clips.frames_NFYXC.shape[:2]

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(N, size=batch)
        return (
            clips.frames_NFYXC[chosen, rng.integers(F, size=batch)],
            clips.motion_NZ[chosen],
            clips.amounts_NK[chosen],
        )

    def loss(params: nnx.State, pictures_BYXC: jax.Array, motion_BZ: jax.Array, amounts_BK: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        assert model.motion_projector is not None
        tokens_BLD = model.projector(model.vision(normalise(pictures_BYXC)), *_grid(model, pictures_BYXC))
        seen_BD = (tokens_BLD.mean(1) + model.motion_projector(motion_BZ)) / LOUDNESS
        return jnp.square(seen_BD[:, : len(SEEN)] - amounts_BK).sum(-1).mean()

    params, losses = _descend(loss, params, draw, steps, rate)
    nnx.update(model, params)
    return losses


def _grid(model: VLM, pictures_BYXC: jax.Array) -> tuple[int, int]:
    return pictures_BYXC.shape[1] // model.vision.patch, pictures_BYXC.shape[2] // model.vision.patch


def _amount(truth: Truth, kind: str) -> float:
    """How much of a kind of damage there is: 0 without it, and well above 0 where it is just visible."""
    return max((JUST_VISIBLE + (1 - JUST_VISIBLE) * d.strength for d in truth.distortions if d.kind == kind), default=0)


def _descend(
    loss: Callable[..., jax.Array], learned: Any, draw: Callable[[], tuple[np.ndarray, ...]], steps: int, rate: float
) -> tuple[Any, list[float]]:
    """Minimise `loss(learned, *draw())` by AdamW with warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    state, losses = optimizer.init(learned), []

    @jax.jit
    def step(learned: Any, state: Any, batch: tuple[np.ndarray, ...]) -> tuple[Any, Any, jax.Array]:
        value, slope = jax.value_and_grad(loss)(learned, *batch)
        change, state = optimizer.update(slope, state, learned)
        return optax.apply_updates(learned, change), state, value

    for _ in range(steps):
        learned, state, value = step(learned, state, draw())
        losses.append(float(value))
    return learned, losses
