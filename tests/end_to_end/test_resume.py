"""A run that is killed again and again ends with the very numbers of the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from convert.load import open_model
from vqathinker_jax.skeleton import arrays

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "run.py", "train", "configs/tiny_cpu.py", "--save-every", "2", "--keep", "2"]
SMALLER = ["--data.frames", "2", "--rollout.completions", "2", "--rollout.max-new-tokens", "16"]


def start(directory: Path, cache: Path) -> "subprocess.Popen[str]":
    caching = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [*COMMAND, *SMALLER, "--run-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), **caching},
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in rows]


def killed(directory: Path, cache: Path, chance: random.Random) -> int:
    """Start the run, kill it some time after it wrote another row; returns the rows that it then had."""
    process = start(directory, cache)
    metrics = directory / "metrics.jsonl"
    before = metrics.read_text() if metrics.exists() else ""
    while process.poll() is None and (not metrics.exists() or len(metrics.read_text()) <= len(before)):
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(metrics.read_text().splitlines())


def test_a_run_killed_three_times_ends_as_the_run_that_was_not(tmp_path: Path):
    whole = start(tmp_path / "whole", tmp_path / "cache")
    _, said = whole.communicate()
    assert whole.returncode == 0, said
    chance = random.Random(0)
    reached = [killed(tmp_path / "torn", tmp_path / "cache", chance) for _ in range(3)]
    assert reached[0] < 12, "the run ended before it could be killed"
    last = start(tmp_path / "torn", tmp_path / "cache")
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert rows_of(tmp_path / "torn") == rows_of(tmp_path / "whole")
    expected = arrays(open_model(tmp_path / "whole" / "model"))
    for name, array in arrays(open_model(tmp_path / "torn" / "model")).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected[name]), err_msg=name)
