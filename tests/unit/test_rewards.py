"""What rewards promise beyond the reference's numbers: invalid answers, lone videos, groups, the temporal bonus."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

from vqathinker_jax import rewards as rewarding
from vqathinker_jax.records import InputError
from vqathinker_jax.rewards import RANKING_GOOD, REGRESSION_GOOD, Ratings, RewardConfig, regression, temporal

# float32: the same few sums in another order.
# Compiled once a shape, as in training; `test_rewards_do_not_depend_on_what_jit_makes_of_them` runs them plain.
rewards = jax.jit(rewarding.rewards, static_argnames="config")
ranking = jax.jit(rewarding.ranking, static_argnames="group")
assert_close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
MOS = jnp.array([2.1, 4.4, 3.3, 2.1])


def ratings(scores_PG: ArrayLike, valid_PG: ArrayLike | None = None, decimals: int = 2) -> Ratings:
    scores_PG = jnp.asarray(scores_PG, jnp.float32)
    valid_PG = jnp.ones(scores_PG.shape, bool) if valid_PG is None else jnp.asarray(valid_PG)
    return Ratings(scores_PG, valid_PG, jnp.full(scores_PG.shape, decimals), jnp.zeros(scores_PG.shape, bool))


def drawn(P: int = 4, G: int = 5, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(1, 5, (P, G)), jnp.float32)


def some(share: float) -> jax.Array:
    """True in about this share of [4, 5] places."""
    return jnp.asarray(np.random.default_rng(2).random((4, 5)) < share)


def test_regression_falls_with_the_distance_and_is_one_on_the_spot():
    scores_PG = np.array([[2.1, 2.6, 1.6, 4.1]])
    expected = [1, np.exp(-0.5), np.exp(-0.5), np.exp(-8)]
    assert_close(regression(ratings(scores_PG), MOS[:1])[0], expected)
    assert_close(regression(ratings(scores_PG), MOS[:1], sigma=1.0)[0, 1], np.exp(-0.125))


@pytest.mark.parametrize(("decimals", "kept"), [(0, 0.8), (1, 0.8), (2, 1.0), (3, 1.0)])
def test_a_coarse_rating_keeps_a_part_unless_that_is_switched_off(decimals: int, kept: float):
    exact = ratings(MOS[:, None], decimals=decimals)
    assert_close(regression(exact, MOS), kept)
    assert_close(regression(exact, MOS, coarse_factor=1.0), 1.0)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e15, -3.0])
def test_invalid_answers_earn_nothing_and_change_nobody_elses_reward(poison: float):
    scores_PG = drawn()
    # One invalid answer a video, each in another place: what is left is a batch of G - 1 answers.
    invalid_PG = jnp.arange(5) == jnp.array([[0], [2], [4], [2]])
    poisoned_PG = jnp.where(invalid_PG, poison, scores_PG)
    left = ratings(scores_PG[~invalid_PG].reshape(4, 4))
    graded = rewards(ratings(poisoned_PG, ~invalid_PG), MOS, RewardConfig())
    expected = rewards(left, MOS, RewardConfig())
    for ours_PG, expected_PG in zip(graded[:2], expected[:2], strict=True):
        assert not ours_PG[invalid_PG].any()
        assert_close(ours_PG[~invalid_PG].reshape(4, 4), expected_PG)


def test_a_video_without_a_valid_answer_is_compared_with_nobody():
    scores_PG = drawn()
    valid_PG = jnp.ones((4, 5), bool).at[2].set(False)
    others = np.array([0, 1, 3])
    expected_PG = ranking(scores_PG[others], valid_PG[others], MOS[others])
    graded_PG = ranking(jnp.where(valid_PG, scores_PG, jnp.nan), valid_PG, MOS)
    assert_close(graded_PG[others], expected_PG)
    assert not graded_PG[2].any()


def test_one_valid_answer_counts_as_certain_of_itself():
    valid_PG = jnp.array([[True, False], [True, False]])
    scores_PG = jnp.array([[2.0, jnp.nan], [4.0, jnp.nan]])
    # Without variance a lower rating is surely lower, which is the truth: sqrt(1 + 1e-6) + sqrt(1e-6).
    assert_close(ranking(scores_PG, valid_PG, MOS[:2])[:, 0], 1.001)


def test_nothing_valid_is_zero_everywhere():
    nothing = ratings(np.full((4, 5), np.nan), np.zeros((4, 5), bool))
    assert not rewards(nothing, MOS, RewardConfig()).total_PG.any()


@pytest.mark.parametrize(("videos", "group"), [(1, None), (4, 1)])
def test_a_video_alone_has_nothing_to_be_ranked_with(videos: int, group: int | None):
    scores_PG = drawn(videos)
    assert not ranking(scores_PG, jnp.ones(scores_PG.shape, bool), MOS[:videos], group).any()


def test_a_ranking_group_sees_only_itself():
    scores_PG, valid_PG = drawn(), some(0.8)
    pairs = [ranking(scores_PG[at], valid_PG[at], MOS[at]) for at in (slice(0, 2), slice(2, 4))]
    assert_close(ranking(scores_PG, valid_PG, MOS, 2), jnp.concatenate(pairs))
    assert not jnp.allclose(ranking(scores_PG, valid_PG, MOS), jnp.concatenate(pairs))


def test_ranking_rewards_the_right_order_and_not_its_reverse():
    scores_PG = MOS[:, None] + jnp.array([-0.1, 0.0, 0.1])
    valid_PG = jnp.ones(scores_PG.shape, bool)
    right_PG, wrong_PG = ranking(scores_PG, valid_PG, MOS), ranking(-scores_PG, valid_PG, MOS)
    assert right_PG.min() > 0.9
    assert wrong_PG.max() < 0.5


def test_ranking_does_not_depend_on_the_order_of_videos_or_answers():
    scores_PG, valid_PG = drawn(), some(0.8)
    videos, answers = np.array([2, 0, 3, 1]), np.array([4, 1, 0, 3, 2])
    shuffled_PG = ranking(scores_PG[videos][:, answers], valid_PG[videos][:, answers], MOS[videos])
    assert_close(shuffled_PG, ranking(scores_PG, valid_PG, MOS)[videos][:, answers])


@pytest.mark.parametrize("function", ["ranking", "temporal"])
@pytest.mark.parametrize("group", [3, 5])
def test_a_group_that_does_not_divide_the_batch_is_refused_with_those_that_do(function: str, group: int):
    config = RewardConfig(**{f"{function}_group": group})
    with pytest.raises(InputError, match=rf"{function}_group is {group}.*4 videos: use 1, 2 or 4"):
        rewards(ratings(drawn()), MOS, config, ratings(drawn()))


@pytest.mark.parametrize(("group", "gains"), [(1, [1, 0, 1, 0]), (2, [1, 1, 0, 0]), (None, [1, 1, 1, 1])])
def test_the_temporal_bonus_is_decided_by_groups_of_videos(group: int | None, gains: list[int]):
    rewards_PG = jnp.repeat(jnp.array([[0.9], [0.6], [0.7], [0.6]]), 4, 1)
    perturbed_PG = jnp.repeat(jnp.array([[0.6], [0.7], [0.7], [0.7]]), 4, 1)
    bonus_PG = temporal(rewards_PG, perturbed_PG, above=0.5, group=group)
    assert_close(bonus_PG, 0.3 * np.array(gains)[:, None] * np.ones(4))


def test_only_rewards_above_the_threshold_gain():
    rewards_PG = jnp.array([[0.4, 0.5, 0.51, 1.0]])
    assert (temporal(rewards_PG, rewards_PG - 0.1, above=0.5) > 0).tolist() == [[False, False, True, True]]


def test_bonus_and_weights_enter_the_total():
    plain = ratings(drawn())._replace(formatted_PG=some(0.5))
    perturbed = ratings(drawn(seed=1))
    config = RewardConfig(regression=2.0, ranking=0.5, format=3.0, temporal_group=2, ranking_group=2)
    without, copies = rewards(plain, MOS, config), rewards(perturbed, MOS, config)
    given = rewards(plain, MOS, config, perturbed)
    for name, above in (("regression_PG", REGRESSION_GOOD), ("ranking_PG", RANKING_GOOD)):
        bonus_PG = temporal(getattr(without, name), getattr(copies, name), above=above, group=2)
        assert_close(getattr(given, name), getattr(without, name) + bonus_PG)
    np.testing.assert_array_equal(given.format_PG, plain.formatted_PG)
    total_PG = 2 * given.regression_PG + 0.5 * given.ranking_PG + 3 * given.format_PG
    assert_close(given.total_PG, total_PG)
    assert (given.total_PG != without.total_PG).any()


def test_rewards_do_not_depend_on_what_jit_makes_of_them():
    given = ratings(drawn(), some(0.8)), MOS, RewardConfig()
    for ours, plain in zip(rewards(*given), rewarding.rewards(*given), strict=True):
        assert_close(ours, plain)


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": np.nan}, {"ranking_group": 0}, {"temporal_group": -1}])
def test_a_config_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RewardConfig(**wrong)


@pytest.mark.parametrize("name", ["regression", "ranking", "format", "sigma", "coarse_factor", "temporal_bonus"])
def test_weights_that_are_no_numbers_are_refused(name: str):
    with pytest.raises(InputError, match=f"{name} is nan"):
        RewardConfig(**{name: float("nan")})
