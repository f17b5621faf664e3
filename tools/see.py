"""A fresh tiny model learns to see: synthetic clips with their known damages in, a vision tower that tells them out.

It stands for the pre-training that a large model's towers come with. The first places of the projected tokens learn to
hold how much there is of each damage: those of a frame, on average, of what spoils pictures, and the motion token of
what spoils time. Half the clips without damage to time are shown out of order too. No rating is used, and SlowFast
stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tools.disorder import disorder
from vqathinker_jax.data.distortions import KINDS
from vqathinker_jax.data.synthetic import Truth
from vqathinker_jax.model.vlm import VLM, normalise

SEEN = tuple(name for name, kind in KINDS.items() if kind.trained)
JUST_VISIBLE = 0.3
"""What a damage of strength 0 counts as, where none counts 0."""
LOUDNESS = 5.0
"""How large a full amount stands in a token: about as large as embeddings are."""
HEARING, MOTIONS, HEARING_RATE, HEARING_DECAY = 4000, 256, 2e-3, 0.1
"""Steps, motion features a step, learning rate and weight decay of learning to hear, which takes seconds."""
SEEING_DECAY = 0.01


class Clips(NamedTuple):
    """N clips, and M of which SlowFast's features are known: these N, then some of them out of order.

    frames_NFYXC: uint8 RGB. pictures_NK, times_MK: how much there is of each kind of `SEEN`, of those that spoil
    pictures and of those that spoil time; 0 for the others. motion_MZ: SlowFast's features.
    """

    frames_NFYXC: np.ndarray
    pictures_NK: np.ndarray
    motion_MZ: np.ndarray
    times_MK: np.ndarray


def look_at(model: VLM, frames_NFYXC: np.ndarray, truths: Sequence[Truth], seed: int, batch: int = 20) -> Clips:
    """The clips as `learn_to_see` takes them."""
    assert model.motion is not None
    graph, state = nnx.split(model.motion)

    @jax.jit
    def features(frames_PFYXC: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(normalise(frames_PFYXC))

    def all_features(chosen: np.ndarray, order: Callable[[], np.ndarray | slice]) -> list[np.ndarray]:
        parts = [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
        return [np.asarray(features(np.stack([frames_NFYXC[n][order()] for n in part]))) for part in parts]

    rng = np.random.default_rng(seed)
    amounts_NK = np.array([[_amount(truth, kind) for kind in SEEN] for truth in truths], np.float32)
    in_time_K = np.array(["time" in KINDS[kind].aspects for kind in SEEN])
    # Every other one, for each takes as long as a clip as it is.
    orderly = np.flatnonzero(~amounts_NK[:, in_time_K].any(1))[::2]
    motion = all_features(np.arange(len(truths)), lambda: slice(None))
    motion += all_features(orderly, lambda: disorder(frames_NFYXC.shape[1], rng))
    out_of_order_MK = np.zeros((len(orderly), len(SEEN)), np.float32)
    out_of_order_MK[:, SEEN.index("shuffle")] = 1
    times_MK = np.concatenate([amounts_NK * in_time_K, out_of_order_MK])
    return Clips(frames_NFYXC, amounts_NK * ~in_time_K, np.concatenate(motion), times_MK)


def learn_to_see(model: VLM, clips: Clips, *, steps: int, batch: int, rate: float, seed: int) -> list[float]:
    """Teach the model's vision tower and its projector, in place; returns the loss of every step."""
    rng = np.random.default_rng(seed)
    # SlowFast and language model among the rest, so that no gradient of theirs is ever made.
    graph, params, rest = nnx.split(model, _of("vision", "projector"), ...)
    N, F = clips.frames_NFYXC.shape[:2]

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(N, size=batch)
        return clips.frames_NFYXC[chosen, rng.integers(F, size=batch)], clips.pictures_NK[chosen]

    def loss(params: nnx.State, pictures_BYXC: jax.Array, seen_BK: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        tokens_BLD = model.projector(model.vision(normalise(pictures_BYXC)), *_grid(model, pictures_BYXC))
        return _error(tokens_BLD.mean(1), seen_BK)

    params, losses = _descend(loss, params, draw, steps, rate, SEEING_DECAY)
    nnx.update(model, params)
    return losses


def learn_to_hear(model: VLM, clips: Clips, *, seed: int) -> list[float]:
    """Teach the projector of motion features, in place; returns the loss of every step."""
    rng = np.random.default_rng(seed)
    graph, params, rest = nnx.split(model, _of("motion_projector"), ...)

    def draw() -> tuple[np.ndarray, ...]:
        heard = rng.integers(len(clips.motion_MZ), size=MOTIONS)
        return clips.motion_MZ[heard], clips.times_MK[heard]

    def loss(params: nnx.State, motion_BZ: jax.Array, heard_BK: jax.Array) -> jax.Array:
        projector = nnx.merge(graph, params, rest).motion_projector
        assert projector is not None
        return _error(projector(motion_BZ), heard_BK)

    params, losses = _descend(loss, params, draw, HEARING, HEARING_RATE, HEARING_DECAY)
    nnx.update(model, params)
    return losses


def _of(*parts: str) -> Any:
    """The filter that picks the weights of these parts of a model."""
    return nnx.All(nnx.Param, lambda path, _: path[0] in parts)


def _error(tokens_BD: jax.Array, amounts_BK: jax.Array) -> jax.Array:
    return jnp.square(tokens_BD[:, : len(SEEN)] / LOUDNESS - amounts_BK).sum(-1).mean()


def _grid(model: VLM, pictures_BYXC: jax.Array) -> tuple[int, int]:
    return pictures_BYXC.shape[1] // model.vision.patch, pictures_BYXC.shape[2] // model.vision.patch


def _amount(truth: Truth, kind: str) -> float:
    """How much of a kind of damage there is: 0 without it, and well above 0 where it is just visible."""
    return max((JUST_VISIBLE + (1 - JUST_VISIBLE) * d.strength for d in truth.distortions if d.kind == kind), default=0)


def _descend(
    loss: Callable[..., jax.Array],
    learned: Any,
    draw: Callable[[], tuple[np.ndarray, ...]],
    steps: int,
    rate: float,
    decay: float,
) -> tuple[Any, list[float]]:
    """Minimise `loss(learned, *draw())` by AdamW with warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=decay))
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
