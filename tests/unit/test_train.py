"""The training loop: a run taken up again is the run that was not interrupted; what moves, and what is left behind."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from convert.load import open_config, open_model
from tests import checkpoints
from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.generate import begin, decode, encode, prefill
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.model.adapter import LoraConfig
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.optim import OptimizerConfig
from vqathinker_jax.policy import prepare
from vqathinker_jax.recipe import ReferenceConfig, TrainConfig
from vqathinker_jax.records import InputError
from vqathinker_jax.rollout import RolloutConfig
from vqathinker_jax.sharding import make_mesh
from vqathinker_jax.skeleton import arrays
from vqathinker_jax.step import update
from vqathinker_jax.train import NotFiniteError, train

CLIPS = Path(__file__).parents[2] / "vqathinker_jax" / "assets" / "clips"

SMALL = TrainConfig(
    checkpoint="set by the fixture below",
    data=DataConfig(
        manifests=str(CLIPS / "train.jsonl"),
        folders=str(CLIPS),
        batch_size=2,
        epochs=12,
        frames=2,
        size=56,
        perturb=True,
    ),
    steps=2,
    # A random model says nothing that can be read; with the reference's fallback there is something to learn from.
    rollout=RolloutConfig(completions=3, max_new_tokens=16, random_fallback=True),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    samples_every=1,
    save_every=1,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """`SMALL`, from a random checkpoint with a motion branch."""
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return replace(SMALL, checkpoint=str(checkpoints.write(tmp_path_factory.mktemp("checkpoint"), config, tensors)))


def start(
    config: TrainConfig, directory: Path, spoil: Callable[[VLM], None] = lambda model: None, **options: Any
) -> Any:
    """Train; `spoil` may change the model first."""

    def load(dtype: Any, mesh: Any) -> VLM:
        model = open_model(Path(config.checkpoint), dtype=dtype, mesh=mesh)
        spoil(model)
        return model

    return train(
        config, directory, open_config(Path(config.checkpoint)), load, **{"display": lambda *_: None, **options}
    )


def run(config: TrainConfig, directory: Path) -> list[dict[str, Any]]:
    """Train, and return the rows of metrics."""
    start(config, directory)
    return rows_of(directory)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Metrics of each step, but for the seconds, which differ from run to run."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in rows]


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays(open_model(directory)).items()}


def moved(config: TrainConfig, directory: Path) -> set[str]:
    """Names of the weights that differ from the checkpoint's."""
    before, after = weights(Path(config.checkpoint)), weights(directory)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def straight(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, uninterrupted."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    run(small, directory)
    return directory


def test_a_run_leaves_its_config_metrics_samples_savepoints_and_model(straight: Path):
    assert json.loads((straight / "config.json").read_text())["rollout"]["completions"] == 3
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    named = {"loss", "kl", "reward", "reward_regression", "reward_ranking", "reward_format", "reward_temporal"}
    named |= {"length", "truncated", "valid", "clip_ratio_reference", "grad_norm", "learning_rate", "unreadable"}
    named |= {f"seconds_{phase}" for phase in ("data", "encode", "rollout", "reward", "update")}
    assert named <= rows[0].keys()
    # The reference policy is the policy at the first step, and no longer at the second.
    assert abs(rows[0]["kl"]) < 1e-6 < rows[1]["kl"]
    samples = [json.loads(line) for line in (straight / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], len(row["completions"])) for row in samples] == [(0, 3), (0, 3), (1, 3), (1, 3)]
    assert {row["video"] for row in samples} == {"pristine.mp4", "damaged.mp4"}
    assert sorted(path.name for path in (straight / "savepoints").iterdir()) == ["1", "2"]
    assert list((straight / "tensorboard").glob("events*"))


def test_nothing_compiles_after_the_first_step(small: TrainConfig, tmp_path: Path):
    compiled = []

    def display(*_: object) -> None:
        programs = encode, prefill, begin, decode, update
        compiled.append([getattr(program, "_cache_size")() for program in programs])  # noqa: B009

    start(replace(small, steps=3), tmp_path / "run", display=display)
    assert compiled == compiled[:1] * 3


def test_all_but_slowfast_moves(small: TrainConfig, straight: Path):
    parts = {name for name in weights(straight / "model") if not name.startswith("motion.")}
    still = {name for name in parts - moved(small, straight / "model") if "key.bias" not in name}
    # A key's bias shifts all scores of a query alike, so its gradient is zero but for rounding.
    assert moved(small, straight / "model") <= parts
    assert not still


def test_a_run_taken_up_again_is_the_run_that_was_not_interrupted(small: TrainConfig, straight: Path, tmp_path: Path):
    def stop_after_one(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert start(small, tmp_path / "run", display=stop_after_one) is None
    assert len(rows_of(tmp_path / "run")) == 1
    assert run(small, tmp_path / "run") == rows_of(straight)
    resumed, expected = weights(tmp_path / "run" / "model"), weights(straight / "model")
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_an_ended_run_is_not_run_again(small: TrainConfig, straight: Path):
    before = (straight / "metrics.jsonl").read_text()
    run(small, straight)
    assert (straight / "metrics.jsonl").read_text() == before


def test_another_configuration_is_refused_by_its_difference(small: TrainConfig, straight: Path):
    with pytest.raises(InputError, match=r"loss\.beta was 0\.04 and is 0\.1"):
        run(replace(small, loss=LossConfig(beta=0.1)), straight)


def test_what_does_not_change_results_may_change(small: TrainConfig, straight: Path):
    run(replace(small, keep=2, data=replace(small.data, prefetch=1)), straight)


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        # In bfloat16, as on an accelerator: what does not move must not come back rounded.
        ({"lora": LoraConfig(rank=2), "arithmetic": "bfloat16"}, ("language.layers.", "motion_projector.")),
        (
            {
                "optimizer": OptimizerConfig(learning_rate=1e-3, freeze_vision=True),
                "loss": LossConfig(beta=0.0),
                "arithmetic": "bfloat16",
            },
            ("language.", "motion_projector."),
        ),
    ],
    ids=["lora", "frozen vision"],
)
def test_what_is_frozen_does_not_move(
    small: TrainConfig, change: dict[str, Any], moves: tuple[str, ...], tmp_path: Path
):
    run(replace(small, **change), tmp_path / "run")
    changed = moved(small, tmp_path / "run" / "model")
    assert changed
    assert ("kl" in rows_of(tmp_path / "run")[0]) == ("loss" not in change)
    assert all(name.startswith(moves) for name in changed)
    assert all(any(name.startswith(part) for name in changed) for part in moves)


def test_what_does_not_move_keeps_its_numbers_where_the_others_are_kept_in_less(small: TrainConfig, tmp_path: Path):
    half = replace(small, arithmetic="bfloat16", parameters="bfloat16", steps=1)
    run(half, tmp_path / "run")
    assert all(
        name.startswith(("language.", "vision.", "projector.", "motion_projector."))
        for name in moved(half, tmp_path / "run" / "model")
    )
    kinds = {str(array.dtype) for array in weights(tmp_path / "run" / "model").values()}
    assert kinds == {"bfloat16", "float32"}


@pytest.fixture
def taught(small: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Supervised training on the two clips, each with a response of its own length."""
    said = ["<think>Sharp.</think><answer>4.80</answer>", "<answer>1.57</answer>"]
    lines = [json.loads(line) for line in (CLIPS / "train.jsonl").read_text().splitlines()]
    (tmp_path / "lessons.jsonl").write_text(
        "".join(json.dumps(line | {"response": text}) + "\n" for line, text in zip(lines, said, strict=True))
    )
    return replace(small, stage="sft", data=replace(small.data, manifests=str(tmp_path / "lessons.jsonl")))


def test_supervised_training_learns_to_say_the_responses_and_resumes(taught: TrainConfig, tmp_path: Path):
    whole = run(replace(taught, steps=12), tmp_path / "run")
    # From about the logarithm of the vocabulary down; a random model of this size is no quicker.
    assert whole[-1]["loss"] < 0.75 * whole[0]["loss"]
    assert {"loss", "grad_norm", "length", "tokens", "learning_rate"} <= whole[0].keys()
    assert "reward" not in whole[0]
    seen = []

    def stop_after_five(done: int, *_: object) -> None:
        seen.append(done)
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert start(replace(taught, steps=12), tmp_path / "again", display=stop_after_five) is None
    assert seen == [1, 2, 3, 4, 5]
    assert run(replace(taught, steps=12), tmp_path / "again") == whole
    assert not [name for name in moved(taught, tmp_path / "again" / "model") if name.startswith("motion.")]


def test_supervised_training_in_micro_batches_is_the_same_but_for_rounding(taught: TrainConfig, tmp_path: Path):
    one, two = (run(replace(taught, steps=1, micro_batches=parts), tmp_path / str(parts))[0] for parts in (1, 2))
    # float32: the two videos' sums are added in another order.
    np.testing.assert_allclose([one["loss"], one["grad_norm"]], [two["loss"], two["grad_norm"]], rtol=1e-4)


def test_supervised_training_without_responses_is_refused(small: TrainConfig, tmp_path: Path):
    with pytest.raises(InputError, match="2 of 2 rows have no response"):
        run(replace(small, stage="sft"), tmp_path / "run")


def test_several_iterations_learn_from_one_rollout(small: TrainConfig, straight: Path, tmp_path: Path):
    (row,) = run(replace(small, steps=1, iterations=2), tmp_path / "run")
    whole = rows_of(straight)[0]
    assert {key: row[key] for key in whole if key.startswith("reward")} == {
        key: value for key, value in whole.items() if key.startswith("reward")
    }
    # At the first of the two updates the policy is its own reference, by the second it has moved, and so far from the
    # one that drew the completions that some ratios are clipped.
    assert abs(whole["kl"]) < 1e-6 < row["kl"]
    clipped = ("clip_low", "clip_high", "clip_ratio_reference")
    assert sum(whole[name] for name in clipped) == 0 < sum(row[name] for name in clipped)


def test_a_reference_that_follows_stays_near(small: TrainConfig, tmp_path: Path, straight: Path):
    followed = run(replace(small, reference=ReferenceConfig(every=1)), tmp_path / "run")
    assert abs(followed[1]["kl"]) < 1e-6 < rows_of(straight)[1]["kl"]


def test_a_reference_in_the_hosts_memory_changes_nothing(small: TrainConfig, straight: Path, tmp_path: Path):
    waiting = replace(small, reference=ReferenceConfig(memory="host"))

    def load(dtype: Any, mesh: Any) -> VLM:
        return open_model(Path(small.checkpoint), dtype=dtype, mesh=mesh)

    reference = prepare(load, waiting, make_mesh(small.mesh), 2).fixed.reference
    assert reference
    layers: Any = reference[0]["language"]["layers"]
    matrices = [layers[name]["kernel"].get_value() for name in ("gate", "query", "down")]
    assert {x.sharding.memory_kind for x in matrices} == {"pinned_host"}
    # A plan, which has no more of an array than this, is told too.
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in matrices]
    seen = set()
    jax.jit(lambda *traced: seen.update(jax.typeof(x).memory_space for x in traced)).lower(*shapes)
    assert seen == {jax.memory.Space.Host}
    # float32: another program, which may fuse otherwise.
    for row, before in zip(run(waiting, tmp_path / "run"), rows_of(straight), strict=True):
        np.testing.assert_allclose(row["kl"], before["kl"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(row["grad_norm"], before["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"every": 1, "memory": "host"}, "set every 0, or memory device"), ({"mix": 0.5}, "it never does; set every too")],
)
def test_a_reference_that_cannot_be_is_refused(settings: dict[str, Any], fault: str):
    with pytest.raises(InputError, match=fault):
        ReferenceConfig(**settings)


def test_micro_batches_change_nothing_but_rounding(small: TrainConfig, straight: Path, tmp_path: Path):
    parts = run(replace(small, micro_batches=2), tmp_path / "run")
    whole = rows_of(straight)[0]
    assert {key: parts[0][key] for key in whole if key.startswith("reward")} == {
        key: value for key, value in whole.items() if key.startswith("reward")
    }
    # float32: the two videos' gradients are added in another order.
    np.testing.assert_allclose(parts[0]["grad_norm"], whole["grad_norm"], rtol=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(small: TrainConfig, tmp_path: Path):
    def spoil(model: VLM) -> None:
        model.language.norm.scale.set_value(model.language.norm.scale[...].at[0].set(np.nan))

    for _ in range(2):
        with pytest.raises(NotFiniteError, match=r"step 0: the loss is nan.*damaged\.mp4.*savepoints"):
            start(small, tmp_path / "run", spoil)
    assert (tmp_path / "run" / "savepoints" / "0").is_dir()
    assert rows_of(tmp_path / "run") == []
    # Of several iterations over a rollout an earlier one may have moved the weights.
    with pytest.raises(NotFiniteError, match="nothing has been saved yet"):
        start(replace(small, iterations=2), tmp_path / "other", spoil)


def test_settings_that_cannot_be_are_refused_with_those_that_can(small: TrainConfig):
    with pytest.raises(InputError, match="completions is 1"):
        RolloutConfig(completions=1)
    with pytest.raises(InputError, match="but the epochs hold 12 batches"):
        start(replace(small, steps=13), Path("unused"))
    with pytest.raises(InputError, match="micro_batches is 3, which does not divide a batch of 2 videos: use 1 or 2"):
        replace(small, micro_batches=3)
    with pytest.raises(InputError, match="seed is -1: give 0 to 4294967295"):
        replace(small, seed=-1)
    with pytest.raises(InputError, match="would all be equal"):
        RolloutConfig(temperature=0.0)


def test_a_prompt_that_passes_the_models_positions_is_refused(small: TrainConfig, tmp_path: Path):
    long = replace(small, rollout=RolloutConfig(max_new_tokens=40_000))
    with pytest.raises(InputError, match="exceed the model's"):
        run(long, tmp_path / "run")
