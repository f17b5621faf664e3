"""Real processes, one run: they train as one does, go on in another number, and stop together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.load import open_model
from tests import checkpoints
from vqathinker_jax.skeleton import arrays

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "vqathinker_jax" / "assets" / "clips"
STEPS = 6
RATE = 1e-5
SMALLER = {
    "--data.batch-size": 4,
    "--data.epochs": STEPS,
    "--data.frames": 2,
    "--data.size": 56,
    "--rollout.completions": 2,
    "--rollout.max-new-tokens": 16,
    "--save-every": 1,
    "--samples-every": 1,
    "--loss.beta": 0,
    # Adam's first steps are of this size whatever the gradient's: where that is rounding alone, they have any sign, and
    # runs of other process counts part by as much.
    "--optimizer.learning-rate": RATE,
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a run over eight videos, of a small random model; without motion, which is slow to compile."""
    folder = tmp_path_factory.mktemp("videos")
    lines = [json.loads(line) for line in (CLIPS / "train.jsonl").read_text().splitlines()]
    rows = [
        line | {"id": f"{copy}-{line['id']}", "image": f"{copy}-{line['image']}"} for copy in range(4) for line in lines
    ]
    for copy in range(4):
        for line in lines:
            shutil.copy(CLIPS / line["image"], folder / f"{copy}-{line['image']}")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=False))
    source = checkpoints.write(tmp_path_factory.mktemp("checkpoint"), config, tensors)
    told = SMALLER | {
        "--checkpoint": source,
        "--data.manifests": folder / "train.jsonl",
        "--data.folders": folder,
        "--steps": STEPS,
    }
    # A random model says nothing that can be read; with the reference's fallback there is something to learn from.
    options = [str(word) for pair in told.items() for word in pair] + ["--rollout.random-fallback"]
    return [sys.executable, "run.py", "train", "configs/tiny_cpu.py", *options]


def start(command: Sequence[str], directory: Path, count: int, *options: str) -> list["subprocess.Popen[str]"]:
    """All processes of a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(directory.parent / "cache")}
    made = []
    for index in range(count):
        others = [
            "--processes.count",
            f"{count}",
            "--processes.coordinator",
            coordinator,
            "--processes.index",
            f"{index}",
        ]
        made.append(
            subprocess.Popen(
                [*command, "--run-dir", str(directory), *options, *(others if count > 1 else [])],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return made


def finish(processes: Sequence["subprocess.Popen[str]"]) -> list[str]:
    """What each process says on standard output; all must end well."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, fault) in zip(processes, said, strict=True):
        assert process.returncode == 0, fault[-3000:]
    return [out for out, _ in said]


def wait_for(processes: Sequence["subprocess.Popen[str]"], directory: Path, rows: int) -> None:
    """Return when so many steps are done."""
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < rows:
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_of_two_then_four_then_one_process_is_that_of_one(started: list[str], tmp_path: Path):
    alone, changing = tmp_path / "alone", tmp_path / "changing"
    finish(start(started, alone, 1))

    two = start(started, changing, 2)
    wait_for(two, changing, 1)
    for process in two:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = len(rows_of(changing / "metrics.jsonl"))
    assert done < STEPS - 2, "the run was too fast to be killed in time"

    four = start(started, changing, 4)
    wait_for(four, changing, done + 1)
    four[2].send_signal(signal.SIGTERM)
    said = finish(four)
    assert ["stopped" in out for out in said] == [True, False, False, False]
    assert len(rows_of(changing / "metrics.jsonl")) < STEPS, "the run was too fast to be stopped in time"
    assert not (changing / "model").exists()

    finish(start(started, changing, 1))

    for expected, found in zip(*(rows_of(path / "metrics.jsonl") for path in (alone, changing)), strict=True):
        for name in expected.keys() - {key for key in expected if key.startswith("seconds_")}:
            # float32: partial sums of several processes are added in another order, and Adam's first steps magnify it.
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (expected["step"], name)
    for expected, found in zip(*(rows_of(path / "samples.jsonl") for path in (alone, changing)), strict=True):
        assert (found["step"], found["video"], found["completions"]) == (
            expected["step"],
            expected["video"],
            expected["completions"],
        )
    expected = arrays(open_model(alone / "model"))
    for name, array in arrays(open_model(changing / "model")).items():
        # Six steps of the rate at most; where a gradient is rounding alone, Adam's step has any sign.
        np.testing.assert_allclose(array, expected[name], atol=RATE, err_msg=name)
