"""Every mesh of 8 devices trains and scores as one device does, and its program gathers no more than it must."""

import json
from typing import Any

import numpy as np
import pytest

from tests.devices import run_on_devices
from tests.meshes import MODEL, SHAPES, C, G, P


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Results by mesh, those of one device first."""
    made = run_on_devices(8, "-m", "tests.meshes", optimise=False)
    # What the compiler says where it cannot go from one placement to another but by gathering everything.
    assert "full rematerialization" not in made.stderr
    return [json.loads(line) for line in made.stdout.splitlines()]


def test_rewards_loss_and_gradients_are_those_of_one_device(rows: list[dict[str, Any]]):
    alone, *spread = rows
    assert len(spread) == len(SHAPES) == 10
    for row in spread:
        assert row["rewards"] == alone["rewards"]
        # float32: partial sums of several devices are added in another order; the loss itself is near 0.
        assert row["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], abs=1e-6)
        assert row["metrics"]["grad_norm"] == pytest.approx(alone["metrics"]["grad_norm"], rel=1e-5)
        assert row["gradient"] == pytest.approx(alone["gradient"], rel=1e-4)


def test_completions_are_those_of_one_device(rows: list[dict[str, Any]]):
    alone, *spread = rows
    scored = [row for row in spread if "ids" in row]
    assert scored
    for row in scored:
        assert row["ids"] == alone["ids"]
        np.testing.assert_allclose(row["log_probs"], alone["log_probs"], atol=1e-4)  # float32, sums in another order


def test_weights_stay_where_they_are(rows: list[dict[str, Any]]):
    assert all(row["stay"] for row in rows)


def test_no_stack_of_layers_is_gathered(rows: list[dict[str, Any]]):
    assert any(row["gathered"] for row in rows)
    for row in rows:
        assert row["stacks"]
        assert not [shape for shape in row["gathered"] if shape in row["stacks"]]


def test_decoding_leaves_matrices_where_they_are(rows: list[dict[str, Any]]):
    scored = [row for row in rows[1:] if "ids" in row]
    for row in scored:
        shapes = [[size for size in shape if size > 1] for shape in row["gathered_by_decode"]]
        assert row["matrices"]
        assert not [shape for shape in shapes if shape in row["matrices"]]


def test_decoding_adds_up_no_logits(rows: list[dict[str, Any]]):
    scored = [row for row in rows[1:] if "ids" in row]
    for row in scored:
        assert row["summed_by_decode"]
        assert not [shape for shape in row["summed_by_decode"] if MODEL.language.vocabulary in shape]


def test_no_device_holds_every_logit(rows: list[dict[str, Any]]):
    for row in rows[1:]:
        assert not [shape for shape in row["logits"] if np.prod(shape) >= P * G * C * MODEL.language.vocabulary]
