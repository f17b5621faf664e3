"""Rewards and bonuses against what the reference's own code computed.

Tolerance: 1e-6, a few float32 roundings of numbers near 1. For ranking, as much more as the record itself is off the
exact value, twice: near p = 0 the root of fidelity makes 1.5e-5 of one float32 rounding of p, and torch's erf does not
always round to the nearest.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from tests.records import recorded
from vqathinker_jax.parse import parse_rollout
from vqathinker_jax.records import Answer
from vqathinker_jax.rewards import RANKING_GOOD, REGRESSION_GOOD, Ratings, RewardConfig, rewards, temporal

TOLERANCE = 1e-6


def read(completions: list[str], generations: int) -> Ratings:
    readings = [parse_rollout(text) for text in completions]
    scores = [reading.parsed.score if isinstance(reading.parsed, Answer) else np.nan for reading in readings]
    return Ratings(
        jnp.array(scores).reshape(-1, generations),
        jnp.isfinite(jnp.array(scores)).reshape(-1, generations),
        jnp.array([reading.decimals for reading in readings]).reshape(-1, generations),
        jnp.array([reading.formatted for reading in readings]).reshape(-1, generations),
    )


def exact_ranking(scores_PG: np.ndarray, mos_P: np.ndarray) -> np.ndarray:
    """The ranking rewards of valid answers in float64, one comparison after the other."""
    mean_P, variance_P = scores_PG.mean(-1), scores_PG.var(-1, ddof=1)
    exact_PG = np.zeros(scores_PG.shape)
    for i, mos in enumerate(mos_P):
        for z in set(range(len(mos_P))) - {i}:
            above_G = ndtr((scores_PG[i] - mean_P[z]) / np.sqrt(variance_P[i] + variance_P[z] + 1e-6))
            truth = float(mos > mos_P[z]) + 0.5 * float(mos == mos_P[z])
            exact_PG[i] += np.sqrt(above_G * truth + 1e-6) + np.sqrt((1 - above_G) * (1 - truth) + 1e-6)
    return exact_PG / (len(mos_P) - 1)


def test_rewards_are_the_references(reference_cases: Path):
    cases = recorded(reference_cases / "rewards.json")
    assert cases
    graded = jax.jit(rewards, static_argnames="config")
    for number, case in enumerate(cases):
        ratings, mos_P = read(case["completions"], case["num_generations"]), np.array(case["mos"])
        assert ratings.valid_PG.all(), "the reference's random numbers cannot be compared"
        ours = graded(ratings, mos_P.astype(np.float32), config=RewardConfig())
        theirs = {name: np.array(values).reshape(len(mos_P), -1) for name, values in case["rewards"].items()}
        doubt_PG = 2 * np.abs(theirs["rank"] - exact_ranking(np.asarray(ratings.scores_PG, np.float64), mos_P))
        for name, ours_PG, theirs_PG, allowed in (
            ("rank", ours.ranking_PG, theirs["rank"], TOLERANCE + doubt_PG),
            ("regression", ours.regression_PG, theirs["regression"], TOLERANCE),
            ("format", ours.format_PG, theirs["format"], 0),
            ("total", ours.total_PG, sum(theirs.values()), 2 * TOLERANCE + doubt_PG),
        ):
            assert (np.abs(ours_PG - theirs_PG) <= allowed).all(), f"case {number}: {name}"


def test_temporal_bonuses_are_the_references(reference_cases: Path):
    cases = recorded(reference_cases / "temporal.json")
    assert cases
    for number, case in enumerate(cases):
        plain_BR, perturbed_BR, expected_BR = (
            jnp.array(case[name]) for name in ("rewards", "perturbed_rewards", "with_bonus")
        )
        ours_BR = plain_BR
        for reward, above in ((0, RANKING_GOOD), (1, REGRESSION_GOOD)):
            # What one device holds is one group, whichever videos its rows belong to.
            bonus_PG = temporal(plain_BR[None, :, reward], perturbed_BR[None, :, reward], above=above)
            ours_BR = ours_BR.at[:, reward].add(bonus_PG[0])
        np.testing.assert_allclose(ours_BR, expected_BR, rtol=0, atol=TOLERANCE, err_msg=f"case {number}")
