"""One update as one jitted function: rewards, advantages, log-probs, loss, gradient, and new weights.

`update` is GRPO's; `imitate` is the supervised one, of a warm start, which the reference has no code for.

Ratings and mean opinion scores come in as numbers, so ranking, regression and temporal rewards are computed over the
global batch whatever the number of devices. A video is encoded once and its prompt computed once for its G completions;
log-probs are computed in chunks, so no [B, T, V] array exists.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vqathinker_jax.grpo import Experience, LossConfig, Mean, advantages, log_probs, policy_loss
from vqathinker_jax.model.vlm import UNSEEN, VLM, Sight
from vqathinker_jax.optim import memory_places
from vqathinker_jax.records import check_divides
from vqathinker_jax.rewards import Ratings, RewardConfig, rewards
from vqathinker_jax.sharding import Layout, shardings


@dataclass(frozen=True)
class StepConfig:
    """What one update does with a batch of rollouts.

    micro_batches: the batch goes through the model in so many parts; the result does not depend on it.
    temperature: the one that completions were drawn at. max_tokens: the longest a completion may be, whatever room the
    batch at hand has. chunk: completion positions whose logits exist at a time.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    micro_batches: int = 1
    temperature: float = 1.0
    max_tokens: int = 2048
    chunk: int = 128


class Rollout(NamedTuple):
    """P videos with G completions each, and what was read in those.

    frames_PFYXC: uint8, or floats already normalised. ids_PS, mask_PS: left-padded prompts. completions_PGC: int32,
    anything after lengths_PG tokens. stopped_PG: False where a completion was cut off. perturbed: ratings of as many
    completions about perturbed copies, or None. old_log_probs_PGC: of the policy that drew them, or None where that is
    the present one. sight: what is known of the videos, by weights that do not move.
    """

    frames_PFYXC: jax.Array
    ids_PS: jax.Array
    mask_PS: jax.Array
    completions_PGC: jax.Array
    lengths_PG: jax.Array
    stopped_PG: jax.Array
    ratings: Ratings
    mos_P: jax.Array
    perturbed: Ratings | None = None
    old_log_probs_PGC: jax.Array | None = None
    sight: Sight = UNSEEN


class Lessons(NamedTuple):
    """P videos with one text each, which the policy is to learn to say.

    Fields are those of `Rollout`, with G = 1; lengths_PG counts the stop token.
    """

    frames_PFYXC: jax.Array
    ids_PS: jax.Array
    mask_PS: jax.Array
    completions_PGC: jax.Array
    lengths_PG: jax.Array


class TrainState(NamedTuple):
    """What an update changes: the weights that move, and the optimizer's memory of them."""

    moving: nnx.State
    memory: optax.OptState


class Fixed(NamedTuple):
    """What an update only reads: the weights that do not move, and the reference policy's of both kinds (None where
    beta is 0), of which the second are the policy's own where they are None."""

    still: nnx.State
    reference: tuple[nnx.State, nnx.State | None] | None


class Report(NamedTuple):
    """Scalars by name, the rewards [P, G], and the policy's log-probs [P, G, C], which later iterations over the same
    rollout need."""

    metrics: dict[str, jax.Array]
    rewards_PG: jax.Array
    log_probs_PGC: jax.Array


@partial(jax.jit, static_argnames=("graph", "optimizer", "config", "context_id"), donate_argnames=("state",))
def update(
    graph: nnx.GraphDef[VLM],
    state: TrainState,
    fixed: Fixed,
    rollout: Rollout,
    *,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    context_id: int,
) -> tuple[TrainState, Report]:
    """Rewards the rollout and moves the weights by one step of the optimizer.

    Where the loss or the gradient is not finite, nothing moves: the state that comes back is the last good one, and the
    metric `finite` is 0.

    Raises: InputError where the videos do not divide into the micro-batches or groups of the config.
    """
    earned = rewards(rollout.ratings, rollout.mos_P, config.rewards, rollout.perturbed)
    advantages_PG, flat_P = advantages(earned.total_PG, config.loss.scale_advantages)
    parts = gradients(graph, state.moving, fixed, rollout, advantages_PG, config, context_id)
    gradient, loss, metrics, log_probs_PGC = parts
    layout = nnx.merge(graph, state.moving, fixed.still).layout
    state, report = _moved(state, gradient, loss, metrics, optimizer, layout)
    report |= {
        "reward": earned.total_PG.mean(),
        "reward_regression": earned.regression_PG.mean(),
        "reward_ranking": earned.ranking_PG.mean(),
        "reward_format": earned.format_PG.mean(),
        "flat_groups": flat_P.mean(),
        "valid": rollout.ratings.valid_PG.mean(),
        "length": rollout.lengths_PG.mean(),
        "tokens": rollout.lengths_PG.sum(),
        "truncated": 1 - rollout.stopped_PG.mean(),
    }
    if rollout.perturbed is not None:
        report["reward_temporal"] = earned.temporal_PG.mean()
    return state, Report(report, layout.rows(earned.total_PG), log_probs_PGC)


@partial(jax.jit, static_argnames=("graph", "optimizer", "config", "context_id"), donate_argnames=("state",))
def imitate(
    graph: nnx.GraphDef[VLM],
    state: TrainState,
    still: nnx.State,
    lessons: Lessons,
    *,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    context_id: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Moves the weights by one step towards saying the lessons' texts; returns the metrics too.

    The loss is the mean negative log-prob over all their tokens; the prompt's are not in it. Where it is not finite,
    nothing moves, as in `update`.

    Raises: InputError where the videos do not divide into the micro-batches of the config.
    """
    C = lessons.completions_PGC.shape[-1]

    def total(moving: nnx.State, part: Lessons) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, moving, still)
        log_probs_BC = completion_log_probs(model, model.look(part.frames_PFYXC), part, config, context_id)
        said_BC = jnp.arange(C) < part.lengths_PG.reshape(-1, 1)
        loss = Mean(-jnp.where(said_BC, log_probs_BC, 0.0).sum(), said_BC.sum())
        return loss.total, (loss, {}, log_probs_BC.reshape(part.completions_PGC.shape))

    layout = nnx.merge(graph, state.moving, still).layout
    gradient, loss, metrics, _ = _gradient(total, state.moving, (lessons,), config.micro_batches, layout)
    state, report = _moved(state, gradient, loss, metrics, optimizer, layout)
    return state, report | {"length": lessons.lengths_PG.mean(), "tokens": lessons.lengths_PG.sum()}


def _moved(
    state: TrainState,
    gradient: nnx.State,
    loss: jax.Array,
    metrics: dict[str, Mean],
    optimizer: optax.GradientTransformation,
    layout: Layout,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step of the optimizer, or the same one where loss or gradient are not finite; and metrics.

    It lies where the one before did.
    """
    updates, memory = optimizer.update(gradient, state.memory, state.moving)
    moved = TrainState(cast(nnx.State, optax.apply_updates(state.moving, updates)), memory)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
    report = {"loss": loss, "grad_norm": norm, "finite": finite}
    report |= {name: mean.value for name, mean in metrics.items()}
    kept = jax.tree.map(partial(jnp.where, finite), moved, state)
    if layout.mesh is not None:
        places = TrainState(shardings(state.moving, layout.mesh), memory_places(optimizer, state.moving, layout.mesh))
        kept = jax.tree.map(jax.lax.with_sharding_constraint, kept, places)
    return kept, report


def gradients(
    graph: nnx.GraphDef[VLM],
    moving: nnx.State,
    fixed: Fixed,
    rollout: Rollout,
    advantages_PG: jax.Array,
    config: StepConfig,
    context_id: int,
) -> tuple[nnx.State, jax.Array, dict[str, Mean], jax.Array]:
    """The gradient of the loss by the moving weights, the loss, its metrics, and the policy's log-probs [P, G, C].

    Micro-batches add totals and weights, and one division at the end makes the mean of the whole batch. Policy and
    reference look at a video once for both with the towers that they share.
    """
    C = rollout.completions_PGC.shape[-1]

    def total(moving: nnx.State, part: Rollout, advantages_PG: jax.Array) -> tuple[jax.Array, Any]:
        ask = partial(completion_log_probs, rollout=part, config=config, context_id=context_id)
        policy = nnx.merge(graph, moving, fixed.still)
        sight = policy.look(part.frames_PFYXC, part.sight)
        log_probs_BC = ask(policy, sight)
        reference_BC = None
        if config.loss.beta and fixed.reference is not None:
            former, still = fixed.reference
            reference = nnx.merge(graph, former, fixed.still if still is None else still)
            known = seen_by_still(sight, moving) if still is None else UNSEEN
            reference_BC = jax.lax.stop_gradient(ask(reference, reference.look(part.frames_PFYXC, known)))
        experience = Experience(
            advantages_B=advantages_PG.reshape(-1),
            mask_BT=jnp.arange(C) < part.lengths_PG.reshape(-1, 1),
            stopped_B=part.stopped_PG.reshape(-1),
            old_log_probs_BT=None if part.old_log_probs_PGC is None else part.old_log_probs_PGC.reshape(-1, C),
            reference_log_probs_BT=reference_BC,
        )
        loss, metrics = policy_loss(log_probs_BC, experience, config.loss, max_tokens=config.max_tokens)
        return loss.total, (loss, metrics, log_probs_BC.reshape(part.completions_PGC.shape))

    layout = nnx.merge(graph, moving, fixed.still).layout
    return _gradient(total, moving, (rollout, advantages_PG), config.micro_batches, layout)


def seen_by_still(sight: Sight, moving: nnx.State) -> Sight:
    """The part of a sight that comes of weights which do not move."""
    parts = {path[0] for path, _ in nnx.to_flat_state(moving)}
    return Sight(
        tokens_PLD=None if parts & {"vision", "projector"} else sight.tokens_PLD,
        motion_PZ=None if "motion" in parts else sight.motion_PZ,
    )


def _gradient(
    total: Callable[..., tuple[jax.Array, Any]],
    moving: nnx.State,
    whole: tuple[Any, ...],
    micro_batches: int,
    layout: Layout,
) -> tuple[nnx.State, jax.Array, dict[str, Mean], jax.Array]:
    """The gradient of a mean by the moving weights, the mean, metrics, and log-probs [P, G, C].

    `total(moving, *part)` gives the mean's total, and as a second the mean itself, metrics, and log-probs.
    """
    P = jax.tree.leaves(whole)[0].shape[0]
    check_divides("micro_batches", micro_batches, P)

    def one_part(part: tuple[Any, ...]) -> tuple[nnx.State, Any]:
        (_, aux), gradient = jax.value_and_grad(total, has_aux=True)(moving, *jax.tree.map(layout.rows, part))
        # Here and not at the end, so that each device adds up its own part of the gradient.
        return layout.place_state(gradient), aux

    if micro_batches == 1:
        gradient, (loss, metrics, log_probs_PGC) = one_part(whole)
    else:
        gradient, (loss, metrics, log_probs_PGC) = _added(one_part, whole, micro_batches)
    weight = jnp.maximum(loss.weight, 1)
    gradient = jax.tree.map(lambda g, x: (g / weight).astype(x.dtype), gradient, moving)
    return gradient, loss.value, metrics, layout.rows(log_probs_PGC)


def _added(one_part: Any, whole: tuple[Any, ...], parts: int) -> tuple[nnx.State, Any]:
    """`one_part` over equal parts of the videos one after the other, sums added up and log-probs put together.

    A part takes every so-manieth video, so that it holds some of each device's.
    """
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), whole)
    shapes = jax.eval_shape(one_part, jax.tree.map(lambda x: x[0], split))
    # In float32 at least, so that bfloat16 does not make the result depend on the number of parts.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    gradient, (loss, metrics, _) = zeros

    def add(sums: Any, part: Any) -> tuple[Any, jax.Array]:
        gradient, (loss, metrics, log_probs_PGC) = one_part(part)
        return jax.tree.map(jnp.add, sums, (gradient, loss, metrics)), log_probs_PGC

    (gradient, loss, metrics), by_part = jax.lax.scan(add, (gradient, loss, metrics), split)
    return gradient, (loss, metrics, by_part.swapaxes(0, 1).reshape(-1, *by_part.shape[2:]))


def completion_log_probs(
    model: VLM, sight: Sight, rollout: Rollout | Lessons, config: StepConfig, context_id: int
) -> jax.Array:
    """Log-probs, float32 [P * G, C], of the completions' tokens, of videos of this sight; a prompt is computed once."""
    P, G, C = rollout.completions_PGC.shape
    visual_PLD = model.show(sight)
    prompt_PSD = model.embed(rollout.ids_PS, visual_PLD, context_id)
    completions_PGCD = model.language.embed(rollout.completions_PGC, visual_PLD.dtype)
    hidden_PGCD = model.language.fork(prompt_PSD, rollout.mask_PS, completions_PGCD)
    targets_BC = rollout.completions_PGC.reshape(P * G, C)
    hidden_BCD = hidden_PGCD.reshape(P * G, C, -1)
    return log_probs(hidden_BCD, targets_BC, model.language.logits, config.temperature, config.chunk)
