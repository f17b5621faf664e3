"""From ratings read in completions to rewards: arrays [P, G] in, arrays [P, G] out, all inside a jitted step.

Everything depends on the global batch alone, never on how many devices share it.

Deviations from the reference:
- An answer without a rating earns 0 in regression and ranking, and takes no part in its group's mean and variance,
  where the reference puts a random number in its place. A group of one valid answer has variance 0; a group of none is
  compared with nobody. With every answer valid, the numbers are the reference's.
- A video with no other to be compared with earns a ranking reward of 0, where the reference divides by zero. That is
  the same for its whole group, so it does not move its advantages.
- Which videos are compared with each other is a choice, not what happened to share a GPU.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vqathinker_jax.records import InputError, check_divides

RANKING_GOOD, REGRESSION_GOOD = 0.5, 0.9
"""Rewards above these gain the temporal bonus."""

_EPSILON = 1e-6


@dataclass(frozen=True)
class RewardConfig:
    """The weight of each reward, and the reference's choices within them.

    The temporal reward needs perturbed copies, which `data.perturb` asks for.
    """

    regression: float = 1.0
    """Weight of the reward for a rating near the label."""
    ranking: float = 1.0
    """Weight of the reward for standing on the right side of other videos' ratings."""
    format: float = 1.0
    """Weight of the reward for the form of the answer."""
    sigma: float = 0.5
    """Width, in rating points, of the regression reward's bell."""
    coarse_factor: float = 0.8
    """What a rating with fewer than two decimals keeps of its regression reward; 1 does not punish it."""
    ranking_group: int | None = None
    """So many consecutive videos are ranked among each other (reference: 2); None, the whole batch."""
    temporal_bonus: float = 0.3
    """What a good reward gains where the true order of frames did no worse than the perturbed one."""
    temporal_group: int | None = 1
    """So many consecutive videos decide on that bonus together; None, the whole batch. The paper says 1; the reference
    does 2 (quirk: the videos that share a GPU, 8 completions of 4 a video)."""

    def __post_init__(self):
        if not 0 < self.sigma < math.inf:
            raise InputError(f"sigma is {self.sigma}, but a bell needs a width: use a number above 0 (reference: 0.5)")
        for name in ("regression", "ranking", "format", "coarse_factor", "temporal_bonus"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}: use a finite number")
        for name, group in (("ranking_group", self.ranking_group), ("temporal_group", self.temporal_group)):
            if group is not None and group < 1:
                raise InputError(f"{name} is {group}: use a number of videos from 1, or None for the whole batch")


class Ratings(NamedTuple):
    """What was read in G completions of each of P videos.

    scores_PG: float32 ratings, anything where invalid. valid_PG: bool, False where no rating could be read.
    decimals_PG: integers, how many decimals the ratings have. formatted_PG: bool, True where the text has the form.
    """

    scores_PG: jax.Array
    valid_PG: jax.Array
    decimals_PG: jax.Array
    formatted_PG: jax.Array


class Rewards(NamedTuple):
    """float32 rewards [P, G]: each before its weight and with its bonus, their weighted sum `total_PG`, and the bonuses
    of regression and ranking together."""

    regression_PG: jax.Array
    ranking_PG: jax.Array
    format_PG: jax.Array
    total_PG: jax.Array
    temporal_PG: jax.Array


def rewards(ratings: Ratings, mos_P: jax.Array, config: RewardConfig, perturbed: Ratings | None = None) -> Rewards:
    """The rewards of completions about P videos whose mean opinion scores are `mos_P` (float32, 1..5).

    `perturbed` are the ratings of as many completions about copies with perturbed frames; without them there is no
    temporal bonus.

    Raises: InputError where a group of the config does not divide P.
    """
    regression_PG, ranking_PG = _graded(ratings, mos_P, config)
    temporal_PG = jnp.zeros_like(regression_PG)
    if perturbed is not None:
        perturbed_regression_PG, perturbed_ranking_PG = _graded(perturbed, mos_P, config)
        given = {"bonus": config.temporal_bonus, "group": config.temporal_group}
        steady_PG = temporal(regression_PG, perturbed_regression_PG, above=REGRESSION_GOOD, **given)
        ahead_PG = temporal(ranking_PG, perturbed_ranking_PG, above=RANKING_GOOD, **given)
        regression_PG, ranking_PG, temporal_PG = regression_PG + steady_PG, ranking_PG + ahead_PG, steady_PG + ahead_PG
    format_PG = ratings.formatted_PG.astype(jnp.float32)
    total_PG = config.ranking * ranking_PG + config.regression * regression_PG + config.format * format_PG
    return Rewards(regression_PG, ranking_PG, format_PG, total_PG, temporal_PG)


def _graded(ratings: Ratings, mos_P: jax.Array, config: RewardConfig) -> tuple[jax.Array, jax.Array]:
    return (
        regression(ratings, mos_P, config.sigma, config.coarse_factor),
        ranking(ratings.scores_PG, ratings.valid_PG, mos_P, config.ranking_group),
    )


def regression(ratings: Ratings, mos_P: jax.Array, sigma: float = 0.5, coarse_factor: float = 0.8) -> jax.Array:
    """Rewards [P, G] in 0..1 that fall like a bell with the distance to the mean opinion score; 0 where invalid.

    Source: the reference's `regression_reward`. Quirk: a rating with fewer than two decimals keeps `coarse_factor` of
    it, and as trailing zeros do not count there, so does a written 3.50 (`parse.parse_rollout` counts them).
    """
    distance_PG = jnp.where(ratings.valid_PG, ratings.scores_PG - mos_P[:, None], 0.0)
    bell_PG = jnp.exp(-jnp.square(distance_PG) / (2 * sigma**2))
    kept_PG = jnp.where(ratings.decimals_PG < 2, coarse_factor, 1.0)
    return jnp.where(ratings.valid_PG, bell_PG * kept_PG, 0.0)


def ranking(scores_PG: jax.Array, valid_PG: jax.Array, mos_P: jax.Array, group: int | None = None) -> jax.Array:
    """Rewards [P, G] in 0..1 for standing on the right side of the other videos' groups of answers; 0 where invalid.

    Each answer is compared with every other video among `group` consecutive ones (None: all P), as a normal variable
    against a normal variable whose variances are those of the groups; the reward is the fidelity between the
    probability of standing above and the truth, averaged over those videos.

    Source: the reference's `rank_reward` and `fidelity_reward`.

    Raises: InputError where `group` does not divide P.
    """
    P, G = scores_PG.shape
    size = _size("ranking_group", group, P)
    groups = scores_PG.reshape(-1, size, G), valid_PG.reshape(-1, size, G), mos_P.reshape(-1, size)
    return jax.vmap(_ranking_among)(*groups).reshape(P, G)


def _ranking_among(scores_PG: jax.Array, valid_PG: jax.Array, mos_P: jax.Array) -> jax.Array:
    """Rank P videos among each other; the last axis O of what follows are the videos compared with."""
    scores_PG = jnp.where(valid_PG, scores_PG, 0.0)
    answers_P = valid_PG.sum(-1)
    mean_P = scores_PG.sum(-1) / jnp.maximum(answers_P, 1)
    deviation_PG = jnp.where(valid_PG, scores_PG - mean_P[:, None], 0.0)
    variance_P = jnp.square(deviation_PG).sum(-1) / jnp.maximum(answers_P - 1, 1)

    spread_PO = jnp.sqrt(variance_P[:, None] + variance_P + _EPSILON)
    above_PGO = _normal_cdf((scores_PG[..., None] - mean_P) / spread_PO[:, None])
    truth_PO = 0.5 * (1 + jnp.sign(mos_P[:, None] - mos_P))
    fidelity_PGO = _root(above_PGO * truth_PO[:, None]) + _root((1 - above_PGO) * (1 - truth_PO[:, None]))

    compared_PO = ~jnp.eye(len(mos_P), dtype=bool) & (answers_P > 0)
    summed_PG = jnp.where(compared_PO[:, None], fidelity_PGO, 0.0).sum(-1)
    return jnp.where(valid_PG, summed_PG / jnp.maximum(compared_PO.sum(-1), 1)[:, None], 0.0)


def temporal(
    rewards_PG: jax.Array, perturbed_PG: jax.Array, *, above: float, bonus: float = 0.3, group: int | None = None
) -> jax.Array:
    """The bonus [P, G]: `bonus` or 0, for rewards `above` a threshold in a group of videos that passes.

    A group of consecutive videos (None: all P) passes where its mean reward is at least that of the perturbed copies.
    Invalid answers count there with their reward of 0.

    Source: the reference's `grpo_trainer.py`, where the group is what one GPU holds.

    Raises: InputError where `group` does not divide P.
    """
    P, G = rewards_PG.shape
    size = _size("temporal_group", group, P)
    passed = rewards_PG.reshape(-1, size * G).mean(-1) >= perturbed_PG.reshape(-1, size * G).mean(-1)
    passed_P = jnp.repeat(passed, size, total_repeat_length=P)
    return jnp.where(passed_P[:, None] & (rewards_PG > above), bonus, 0.0)


def _size(name: str, group: int | None, videos: int) -> int:
    """How many videos a group holds.

    Raises: InputError where the batch does not divide into such groups.
    """
    size = group or videos
    check_divides(name, size, videos)
    return size


def _root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x + _EPSILON)


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Φ(x) in float32, rounded where torch rounds it: half of 1 + erf.

    Near p = 0 the root of fidelity makes 5e-5 of reward out of one rounding of p, so both the exact tail and XLA's own
    erf (6 ulp off) would miss the reference. erfc is exact enough for 1 - erfc to be a correctly rounded erf.
    """
    x = x / jnp.sqrt(2.0)
    return 0.5 * (1 + jnp.sign(x) * (1 - jax.lax.erfc(jnp.abs(x))))
