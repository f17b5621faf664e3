"""Group-relative policy optimisation on arrays: rewards to advantages, hidden states to log-probs, those to a loss.

Nothing here sees a model or text. Losses come as a sum and what it is to be divided by, so that micro-batches add up
to the very loss and gradient of the whole batch.

Deviations from the reference: the advantages of a group without spread are exactly 0, not a rounding over 1e-4; a
completion of which no token counts is absent from every mean, as if it had not been drawn. `dr_grpo` changes the
divisor of the loss alone: advantages stay scaled by their group's deviation unless `scale_advantages` is off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from vqathinker_jax.records import InputError

LossKind = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
Divergence = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class LossConfig:
    """Which loss, how far a step may go, and how near to the reference policy it stays."""

    kind: LossKind = "grpo"
    """grpo: the mean over a completion's tokens, then over completions (the reference). dr_grpo: the sum over tokens,
    divided by the longest a completion may be. dapo: the mean over all tokens of the batch. gspo: grpo with one ratio a
    completion, the geometric mean of its tokens' ratios. cispo: dapo with the clipped ratio as a constant weight on the
    log-prob, so that no token is cut."""
    clip_low: float = 0.2
    """Ratios below 1 - clip_low earn nothing more; cispo has no lower bound."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high earn nothing more."""
    beta: float = 0.04
    """Weight of the divergence from the reference policy; 0 needs no reference policy."""
    divergence: Divergence = "k3"
    """Estimator of it, per token."""
    drop_truncated: bool = False
    """Leave out completions cut off before their stop token."""
    scale_advantages: bool = True
    """Divide advantages by their group's deviation (the reference). Where a group agrees but for the last digit, that
    makes as much of the digit as of a wrong answer elsewhere; Dr. GRPO does without."""

    def __post_init__(self):
        for name, choices in (("kind", get_args(LossKind)), ("divergence", get_args(Divergence))):
            if getattr(self, name) not in choices:
                raise InputError(f"the loss's {name} is {getattr(self, name)!r}: use one of {', '.join(choices)}")
        if not (0 <= self.clip_low <= 1 and 0 <= self.clip_high < math.inf and 0 <= self.beta < math.inf):
            raise InputError(f"{self}: clip_low must be in 0..1, clip_high and beta not negative")


class Experience(NamedTuple):
    """What the loss of B completions needs besides the policy's log-probs.

    advantages_B: float32. mask_BT: bool, True up to and including the stop token. stopped_B: bool, False where a
    completion was cut off. old_log_probs_BT: float32, of the policy that drew them; None where that is the present one.
    reference_log_probs_BT: float32, of the reference policy; None where beta is 0.
    """

    advantages_B: jax.Array
    mask_BT: jax.Array
    stopped_B: jax.Array
    old_log_probs_BT: jax.Array | None = None
    reference_log_probs_BT: jax.Array | None = None


class Mean(NamedTuple):
    """A mean as its parts, which add up over micro-batches: `total` and the `weight` it is to be divided by."""

    total: jax.Array
    weight: jax.Array

    @property
    def value(self) -> jax.Array:
        """The mean itself; 0 of nothing."""
        return self.total / jnp.maximum(self.weight, 1)


def advantages(rewards_PG: jax.Array, scale: bool = True) -> tuple[jax.Array, jax.Array]:
    """Rewards less their group's mean, over its unbiased deviation where `scale` says so, float32 [P, G], and which
    groups [P] had no spread.

    Source: the reference's `grpo_trainer.py` (deviation + 1e-4).
    """
    flat_P = rewards_PG.max(-1) == rewards_PG.min(-1)
    centred_PG = rewards_PG - rewards_PG.mean(-1, keepdims=True)
    width_P1 = rewards_PG.std(-1, ddof=1, keepdims=True) + 1e-4 if scale else 1.0
    return jnp.where(flat_P[:, None], 0.0, centred_PG / width_P1), flat_P


def log_probs(
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    temperature: float = 1.0,
    chunk: int = 128,
) -> jax.Array:
    """Log-probs, float32 [B, T], that `head`'s logits [..., V] at hidden states give to the targets (int ids).

    Give it completion positions only, each with the token that follows it. `chunk` positions of each row are in work
    at a time, forward and backward, so that no array is larger than [B, chunk, V]; their logits are computed again for
    the gradient. `temperature` is the one the tokens were drawn at.
    """
    B, T, D = hidden_BTD.shape
    chunk = min(chunk, T)
    padding = (0, 0), (0, -T % chunk)
    hidden_BTD = jnp.pad(hidden_BTD, (*padding, (0, 0)))
    targets_BT = jnp.pad(targets_BT, padding)

    @partial(jax.checkpoint, prevent_cse=False)
    def score(hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
        logits_BTV = head(hidden_BTD).astype(jnp.float32) / temperature
        # A masked sum rather than a gather, which would turn to a scatter backward: it fuses, gives the same bits every
        # time, and stays where a vocabulary split over devices has it.
        here_BTV = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
        picked_BT = jnp.where(here_BTV, logits_BTV, 0.0).sum(-1)
        return picked_BT - jax.nn.logsumexp(logits_BTV, -1)

    # Cut along T, not B·T, so that each device goes on holding its own rows.
    chunks = hidden_BTD.reshape(B, -1, chunk, D).swapaxes(0, 1), targets_BT.reshape(B, -1, chunk).swapaxes(0, 1)
    _, by_chunk = jax.lax.scan(lambda _, rows: (None, score(*rows)), None, chunks)
    return by_chunk.swapaxes(0, 1).reshape(B, -1)[:, :T]


def divergence(log_probs: jax.Array, reference: jax.Array, kind: Divergence) -> jax.Array:
    """Per-token estimate, of any shape, of the divergence KL(policy ‖ reference) at tokens the policy drew.

    Source: J. Schulman, "Approximating KL Divergence": k1 is unbiased, k2 and k3 never negative, k3 both.
    """
    gap = reference - log_probs
    if kind == "k1":
        return -gap
    return jnp.square(gap) / 2 if kind == "k2" else jnp.exp(gap) - gap - 1


def policy_loss(
    log_probs_BT: jax.Array, experience: Experience, config: LossConfig, *, max_tokens: int
) -> tuple[Mean, dict[str, Mean]]:
    """The loss of B completions whose tokens the policy gives `log_probs_BT`, and its metrics, as sums and weights.

    Differentiate the loss's `total`; over several micro-batches add totals, gradients and weights, then divide. Tokens
    outside the mask get no gradient, whatever their log-probs. `max_tokens`, the longest a completion may be, is
    dr_grpo's divisor.

    Raises: InputError where beta calls for a reference policy that is not there.

    Metrics: `kl`, mean over a completion's tokens, then over completions (with beta only); `clip_low` and `clip_high`,
    the shares of tokens that clipping held back on either side; `clip_ratio_reference`, what the reference logs as
    clip_ratio (quirk: the share of tokens beyond the range that clipping does *not* hold back).

    Source: DeepSeekMath (grpo), Dr. GRPO, DAPO, GSPO, and MiniMax-M1 (cispo), with the averages TRL takes.
    """
    mask_BT = experience.mask_BT & experience.stopped_B[:, None] if config.drop_truncated else experience.mask_BT
    tokens_B = mask_BT.sum(-1)
    completions = (tokens_B > 0).sum().astype(jnp.float32)
    tokens = tokens_B.sum().astype(jnp.float32)

    def counted(x_BT: jax.Array) -> jax.Array:
        return jnp.where(mask_BT, x_BT, 0.0)

    def mean_of_completion(x_BT: jax.Array) -> jax.Array:
        return counted(x_BT).sum(-1) / jnp.maximum(tokens_B, 1)

    def share(x_BT: jax.Array) -> Mean:
        return Mean(counted(jnp.broadcast_to(x_BT, mask_BT.shape)).sum(), tokens)

    # Masked before any arithmetic: an infinite log-prob outside the mask would come back as a NaN gradient.
    log_probs_BT = counted(log_probs_BT)
    old_BT = jax.lax.stop_gradient(log_probs_BT if experience.old_log_probs_BT is None else experience.old_log_probs_BT)
    log_ratio_BT = log_probs_BT - old_BT
    if config.kind == "gspo":
        log_ratio_BT = mean_of_completion(log_ratio_BT)[:, None]
    ratio_BT, advantages_B1 = jnp.exp(log_ratio_BT), experience.advantages_B[:, None]
    low, high = 1 - config.clip_low, 1 + config.clip_high

    if config.kind == "cispo":
        loss_BT = -jax.lax.stop_gradient(jnp.minimum(ratio_BT, high)) * advantages_B1 * log_probs_BT
    else:
        loss_BT = -jnp.minimum(ratio_BT * advantages_B1, jnp.clip(ratio_BT, low, high) * advantages_B1)
    over, under = ratio_BT > high, (ratio_BT < low) & (config.kind != "cispo")
    metrics = {
        "clip_low": share(under & (advantages_B1 < 0)),
        "clip_high": share(over & (advantages_B1 > 0)),
        "clip_ratio_reference": share((under & (advantages_B1 > 0)) | (over & (advantages_B1 < 0))),
    }
    if config.beta:
        if experience.reference_log_probs_BT is None:
            raise InputError(
                f"beta is {config.beta}, but there is no reference policy: give its log-probs, or set beta 0"
            )
        kl_BT = divergence(log_probs_BT, experience.reference_log_probs_BT, config.divergence)
        loss_BT += config.beta * kl_BT
        metrics["kl"] = Mean(mean_of_completion(kl_BT).sum(), completions)

    if config.kind in {"grpo", "gspo"}:
        return Mean(mean_of_completion(loss_BT).sum(), completions), metrics
    weight = completions * max_tokens if config.kind == "dr_grpo" else tokens
    return Mean(counted(loss_BT).sum(), weight), metrics
