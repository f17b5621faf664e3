"""Losses, divergences and advantages against TRL's own trainer (every kind) and the reference's (its first step).

Tolerance: 1e-6, relative or of terms near 1: a loss is a mean of terms of both signs, so its own size says nothing of
its float32 rounding.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.records import recorded
from vqathinker_jax.grpo import Experience, LossConfig, advantages, divergence, policy_loss

assert_close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)


def within(lengths: list[int], tokens: int) -> jax.Array:
    return jnp.arange(tokens) < jnp.array(lengths)[:, None]


def test_every_loss_and_its_gradient_are_trls(reference_cases: Path):
    case = recorded(reference_cases / "loss_kinds.json")
    log_probs_BT, reference_BT = jnp.array(case["logps"]), jnp.array(case["reference_logps"])
    B, T = log_probs_BT.shape
    experience = Experience(
        jnp.array(case["advantages"]),
        within(case["lengths"], T),
        jnp.ones(B, bool),
        jnp.array(case["old_logps"]),
        reference_BT,
    )
    assert len(case["cases"]) >= 15
    for number, setting in enumerate(case["cases"]):
        config = LossConfig(setting["kind"], setting["epsilon_low"], setting["epsilon_high"], setting["beta"])

        def loss(log_probs_BT: jax.Array, config: LossConfig = config) -> jax.Array:
            return policy_loss(log_probs_BT, experience, config, max_tokens=T)[0].value

        ours, gradient_BT = jax.value_and_grad(loss)(log_probs_BT)
        name = f"case {number}: {setting['kind']}"
        assert_close(ours, setting["loss"], err_msg=name)
        assert_close(gradient_BT, jnp.array(setting["gradient"]), err_msg=name, rtol=2e-6, atol=1e-8)
        if setting["kl"] is not None:
            # TRL logs a mean over tokens, the reference (and this project) one over completions.
            kl_BT = divergence(log_probs_BT, reference_BT, "k3")
            assert_close(kl_BT[experience.mask_BT].mean(), setting["kl"], err_msg=name)


@pytest.fixture(scope="module")
def step(reference_cases: Path) -> dict[str, Any]:
    return recorded(reference_cases / "grpo" / "expected.json")


def test_advantages_are_the_references(step: dict[str, Any]):
    rewards_PG = jnp.array(step["rewards_per_func"]).sum(-1).reshape(-1, step["num_generations"])
    advantages_PG, flat_P = advantages(rewards_PG)
    assert_close(advantages_PG.reshape(-1), step["advantages"])
    assert not flat_P.any()


def test_the_first_steps_loss_and_metrics_are_the_references(step: dict[str, Any]):
    log_probs_BT = jnp.array(step["policy_logps"])
    B, T = log_probs_BT.shape
    experience = Experience(
        jnp.array(step["advantages"]),
        within(step["completion_lengths"], T),
        jnp.ones(B, bool),
        reference_log_probs_BT=jnp.array(step["reference_logps"]),
    )
    config = LossConfig(clip_low=step["epsilon"], clip_high=step["epsilon"], beta=step["beta"])
    loss, metrics = policy_loss(log_probs_BT, experience, config, max_tokens=T)
    first = step["steps"][0]
    assert_close(loss.value, first["loss"])
    assert_close(metrics["kl"].value, first["kl"])
    assert metrics["clip_ratio_reference"].value == first["clip_ratio"]
