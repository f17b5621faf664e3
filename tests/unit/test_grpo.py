"""Advantages, chunked log-probs and the properties every loss must have; its numbers are held in tests/parity."""

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from vqathinker_jax.grpo import (
    Divergence,
    Experience,
    LossConfig,
    LossKind,
    Mean,
    advantages,
    divergence,
    log_probs,
    policy_loss,
)
from vqathinker_jax.records import InputError

# float32: the same sums in another order.
assert_close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
KINDS = get_args(LossKind)
B, T, D, V, CHUNK = 3, 20, 8, 97, 4


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# Advantages


@pytest.mark.parametrize("G", [2, 4, 7])
def test_advantages_are_centred_with_unit_unbiased_deviation(G: int):
    advantages_PG, flat_P = advantages(drawn(5, G))
    assert_close(advantages_PG.mean(-1), 0, atol=1e-6)
    assert_close(advantages_PG.std(-1, ddof=1), 1, atol=1e-2)  # the 1e-4 beside the deviation
    assert not flat_P.any()


def test_unscaled_advantages_are_the_rewards_less_their_means():
    rewards_PG = drawn(5, 4)
    advantages_PG, _ = advantages(rewards_PG, scale=False)
    assert_close(advantages_PG, rewards_PG - rewards_PG.mean(-1, keepdims=True), atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 2.7])
def test_a_group_without_spread_has_no_advantage_at_all(reward: float):
    # Seven times 0.1 has a mean in float32 that is not 0.1.
    rewards_PG = jnp.concatenate([jnp.full((2, 7), reward), drawn(1, 7)])
    advantages_PG, flat_P = advantages(rewards_PG)
    assert flat_P.tolist() == [True, True, False]
    assert not advantages_PG[:2].any()
    assert advantages_PG[2].all()


# Log-probs


def plain_log_probs(hidden_BTD: jax.Array, kernel_DV: jax.Array, targets_BT: jax.Array, temperature: float):
    logits_BTV = (hidden_BTD @ kernel_DV).astype(jnp.float32) / temperature
    return jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1)[..., 0]


def chunked_log_probs(hidden_BTD: jax.Array, kernel_DV: jax.Array, targets_BT: jax.Array, temperature: float, chunk=4):
    return log_probs(hidden_BTD, targets_BT, lambda hidden_BTD: hidden_BTD @ kernel_DV, temperature, chunk)


TARGETS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)))
INPUTS = drawn(B, T, D), drawn(D, V, seed=1)
WEIGHTS = drawn(B, T, seed=2)


def weighted(function: Any, *options: Any):
    def total(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
        return (function(hidden_BTD, kernel_DV, TARGETS, *options) * WEIGHTS).sum()

    return jax.value_and_grad(total, argnums=(0, 1))


@pytest.mark.parametrize("chunk", [1, 4, 7, 20, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunked_log_probs_are_the_plain_ones_gradients_too(chunk: int, temperature: float):
    plain_BT = plain_log_probs(*INPUTS, TARGETS, temperature)
    assert_close(chunked_log_probs(*INPUTS, TARGETS, temperature, chunk), plain_BT, rtol=1e-5, atol=1e-5)
    _, expected = weighted(plain_log_probs, temperature)(*INPUTS)
    _, gradients = weighted(chunked_log_probs, temperature, chunk)(*INPUTS)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # float32 sums over 60 positions


def test_log_probs_of_half_precision_hidden_states_are_float32():
    hidden_BTD, kernel_DV = (jnp.asarray(x, jnp.bfloat16) for x in INPUTS)
    ours_BT = chunked_log_probs(hidden_BTD, kernel_DV, TARGETS, 1.0)
    assert ours_BT.dtype == jnp.float32
    assert_close(ours_BT, plain_log_probs(hidden_BTD, kernel_DV, TARGETS, 1.0))


def sizes_in_program(jaxpr: Jaxpr) -> Iterator[int]:
    """How many elements each array of a traced program holds, those of its inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield math.prod(getattr(variable.aval, "shape", ()))
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr)):
            if isinstance(parameter, ClosedJaxpr | Jaxpr):
                yield from sizes_in_program(parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter)


def sizes_in_module(text: str) -> list[int]:
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d+\[(\d+(?:,\d+)*)\]", text)]


@pytest.mark.parametrize("function", [plain_log_probs, chunked_log_probs])
def test_no_array_holds_logits_of_more_than_a_chunk_of_positions(function: Any):
    """Forward and backward, as traced and as compiled; the plain ones prove that the count would see them."""
    step = jax.jit(weighted(function, 1.0))
    largest = B * (CHUNK if function is chunked_log_probs else T) * V
    assert max(sizes_in_program(step.trace(*INPUTS).jaxpr.jaxpr)) == largest
    assert max(sizes_in_module(step.lower(*INPUTS).compile().as_text() or "")) == largest


# Losses


def experience(rows: int = B, seed: int = 0) -> Experience:
    lengths_B = jnp.asarray(np.random.default_rng(seed).integers(3, T, rows))
    return Experience(
        advantages_B=drawn(rows, seed=seed + 1),
        mask_BT=jnp.arange(T) < lengths_B[:, None],
        stopped_B=jnp.ones(rows, bool),
        old_log_probs_BT=drawn(rows, T, seed=seed + 2) / 2 - 2,
        reference_log_probs_BT=drawn(rows, T, seed=seed + 3) / 2 - 2,
    )


POLICY = drawn(6, T, seed=9) / 2 - 2


@partial(jax.jit, static_argnames="config")
def loss_and_gradient(log_probs_BT: jax.Array, given: Experience, config: LossConfig) -> tuple[Mean, jax.Array, Any]:
    def total(log_probs_BT: jax.Array):
        loss, metrics = policy_loss(log_probs_BT, given, config, max_tokens=32)
        return loss.total, (loss, metrics)

    (_, (loss, metrics)), gradient_BT = jax.value_and_grad(total, has_aux=True)(log_probs_BT)
    return loss, gradient_BT / loss.weight, metrics


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_whole(kind: LossKind):
    config, whole = LossConfig(kind), experience(6)
    loss, gradient_BT, metrics = loss_and_gradient(POLICY, whole, config)
    parts = [
        loss_and_gradient(POLICY[at], jax.tree.map(lambda x, at=at: x[at], whole), config)
        for at in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    summed = jax.tree.map(lambda *x: sum(x), *[(loss, metrics) for loss, _, metrics in parts])
    for ours, expected in zip(jax.tree.leaves(summed), jax.tree.leaves((loss, metrics)), strict=True):
        assert_close(ours, expected)
    scaled_BT = np.concatenate([gradient_BT * loss.weight for loss, gradient_BT, _ in parts]) / loss.weight
    assert_close(scaled_BT, gradient_BT)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_outside_the_mask_get_no_gradient_whatever_their_log_probs(kind: LossKind):
    given = experience(6)._replace(old_log_probs_BT=POLICY / 2, reference_log_probs_BT=POLICY / 2)
    config, outside_BT = LossConfig(kind), ~given.mask_BT
    loss, gradient_BT, _ = loss_and_gradient(POLICY, given, config)
    old_BT, reference_BT = (jnp.where(outside_BT, bad, POLICY / 2) for bad in (jnp.nan, jnp.inf))
    wild = given._replace(old_log_probs_BT=old_BT, reference_log_probs_BT=reference_BT)
    wild_loss, wild_gradient_BT, _ = loss_and_gradient(jnp.where(outside_BT, -jnp.inf, POLICY), wild, config)
    np.testing.assert_array_equal(wild_loss.total, loss.total)
    np.testing.assert_array_equal(wild_gradient_BT, gradient_BT)
    assert not gradient_BT[outside_BT].any()
    assert gradient_BT[given.mask_BT].any()


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_completions_are_as_if_never_drawn(kind: LossKind):
    given = experience(6)._replace(stopped_B=jnp.array([True, False, True, True, False, True]))
    config, stopped = LossConfig(kind, drop_truncated=True), given.stopped_B
    loss, gradient_BT, metrics = loss_and_gradient(POLICY, given, config)
    left = loss_and_gradient(POLICY[stopped], jax.tree.map(lambda x: x[stopped], given), config)
    assert_close(loss.value, left[0].value)
    assert_close(gradient_BT[stopped], left[1])
    assert_close(metrics["kl"].value, left[2]["kl"].value)
    assert not gradient_BT[~stopped].any()
    kept_loss, *_ = loss_and_gradient(POLICY, given, LossConfig(kind))
    assert kept_loss.weight > loss.weight, "without the option they count"


def test_nothing_left_is_a_loss_of_zero():
    given = experience()._replace(stopped_B=jnp.zeros(B, bool))
    loss, metrics = policy_loss(POLICY[:B], given, LossConfig(drop_truncated=True), max_tokens=T)
    assert loss.value == metrics["kl"].value == metrics["clip_high"].value == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_advantage_and_no_divergence_is_no_gradient(kind: LossKind):
    given = experience(6)._replace(advantages_B=jnp.zeros(6), reference_log_probs_BT=None)
    loss, gradient_BT, metrics = loss_and_gradient(POLICY, given, LossConfig(kind, beta=0.0))
    assert loss.total == 0
    assert not gradient_BT.any()
    assert "kl" not in metrics


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_that_drew_the_tokens_is_pushed_by_the_advantage_alone(kind: LossKind):
    given = experience(6)._replace(old_log_probs_BT=None)
    _, gradient_BT, metrics = loss_and_gradient(POLICY, given, LossConfig(kind, beta=0.0))
    lengths_B, advantages_B = given.mask_BT.sum(-1), given.advantages_B
    share_B = {"grpo": 1 / lengths_B / 6, "gspo": 1 / lengths_B / 6, "dr_grpo": jnp.full(6, 1 / 6 / 32)}
    expected_BT = given.mask_BT * (-advantages_B * share_B.get(kind, jnp.full(6, 1 / lengths_B.sum())))[:, None]
    assert_close(gradient_BT, expected_BT)
    assert metrics["clip_low"].total == metrics["clip_high"].total == metrics["clip_ratio_reference"].total == 0


def test_clipping_holds_back_each_side_where_it_should_and_is_counted():
    # Four tokens a row, with ratios below, within and above the range, under either sign of the advantage.
    log_probs_BT = jnp.log(jnp.array([[0.5, 0.85, 1.0, 1.5]] * 2))
    given = Experience(jnp.array([1.0, -1.0]), jnp.ones((2, 4), bool), jnp.ones(2, bool), jnp.zeros((2, 4)))
    config = LossConfig(clip_low=0.2, clip_high=0.3, beta=0.0)
    _, gradient_BT, metrics = loss_and_gradient(log_probs_BT, given, config)
    assert (gradient_BT != 0).tolist() == [[True, True, True, False], [False, True, True, True]]
    assert {name: float(mean.value) for name, mean in metrics.items()} == {
        "clip_low": 1 / 8,
        "clip_high": 1 / 8,
        "clip_ratio_reference": 2 / 8,
    }
    narrower = loss_and_gradient(log_probs_BT, given, LossConfig(clip_low=0.1, clip_high=0.6, beta=0.0))[2]
    assert (narrower["clip_low"].value, narrower["clip_high"].value) == (2 / 8, 0)


def test_divergences_are_their_formulas_and_none_is_zero_apart():
    log_probs_T, reference_T = jnp.array([-1.0, -2.0, -3.0]), jnp.array([-1.5, -2.0, -1.0])
    gap_T = log_probs_T - reference_T
    assert_close(divergence(log_probs_T, reference_T, "k1"), gap_T)
    assert_close(divergence(log_probs_T, reference_T, "k2"), gap_T**2 / 2)
    assert_close(divergence(log_probs_T, reference_T, "k3"), np.exp(-gap_T) - 1 + gap_T)


@pytest.mark.parametrize("kind", get_args(Divergence))
def test_the_divergence_enters_the_loss_at_its_weight(kind: Divergence):
    given, config = experience(6), LossConfig("dapo", beta=0.5, divergence=kind)
    assert given.reference_log_probs_BT is not None
    kl_BT = divergence(POLICY, given.reference_log_probs_BT, kind)
    with_kl, without = (loss_and_gradient(POLICY, given, c)[0] for c in (config, LossConfig("dapo", beta=0.0)))
    assert_close(with_kl.value - without.value, 0.5 * kl_BT[given.mask_BT].mean())


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"kind": "ppo"}, "use one of grpo, dr_grpo, dapo, gspo, cispo"),
        ({"divergence": "kl"}, "use one of k1, k2, k3"),
        ({"clip_low": 1.1}, "clip_low must be in 0..1"),
        ({"clip_high": -0.1}, "clip_high and beta not negative"),
        ({"beta": -1.0}, "clip_high and beta not negative"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict, cure: str):
    with pytest.raises(InputError, match=re.escape(cure)):
        LossConfig(**wrong)


def test_beta_without_a_reference_policy_is_refused():
    with pytest.raises(InputError, match=r"beta is 0\.04, but there is no reference policy"):
        policy_loss(POLICY, experience(6)._replace(reference_log_probs_BT=None), LossConfig(), max_tokens=T)
