"""The bundled model and clips, as a newcomer runs them: in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "vqathinker_jax" / "assets"
KEYS = {
    "video",
    "status",
    "score",
    "expected",
    "deviation",
    "thinking",
    "answer",
    "text",
    "reason",
    "frame_indices",
    "frame_times_s",
    "health",
}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory):
    """Run the command line; compiled programs are kept for the next call."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, ROOT / "run.py", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((ASSETS / "expected.json").read_text())["clips"]


def test_the_bundled_clips_are_rated_as_recorded_beside_a_bad_file(call, expected: dict, tmp_path: Path):
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 100)
    clips = [ASSETS / "clips" / name for name in expected]
    done = call("score", *clips, tmp_path / "torn.mp4", "--json")
    assert done.returncode == 1, done.stderr
    *rated, torn = [json.loads(line) for line in done.stdout.splitlines()]
    for row, (name, recorded) in zip(rated, expected.items(), strict=True):
        assert row.keys() == KEYS | {"decoder", "seconds"}
        assert (Path(row["video"]).name, row["status"], row["reason"]) == (name, "ok", None)
        assert (row["score"], row["text"]) == (recorded["score"], recorded["text"])
        assert row["thinking"].startswith("Detail ")
        # float32 on another machine: probabilities, unlike what is likeliest, differ in their last digits.
        assert row["expected"] == pytest.approx(recorded["expected"], abs=0.01)
        assert 0 < row["deviation"] < 2
        # As its config says, where other checkpoints are shown 12.
        assert len(row["frame_indices"]) == len(row["frame_times_s"]) == 6
    assert (torn["status"], torn["score"]) == ("failed", None)
    assert "torn.mp4" in torn["reason"]
    assert "demonstration" in done.stderr
    assert expected["pristine.mp4"]["score"] > expected["damaged.mp4"]["score"] + 1


def test_an_evaluation_and_windows_expect_what_scoring_expects(call, expected: dict, tmp_path: Path):
    clips = [ASSETS / "clips" / name for name in expected]
    scored = [json.loads(line) for line in call("score", *clips, "--json").stdout.splitlines()]
    likely = {Path(row["video"]).name: (row["score"], row["expected"], row["deviation"]) for row in scored}
    done = call("evaluate", ASSETS / "clips", "--output", tmp_path / "out", "--workers", "0")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    # float32: several places at a time add in another order.
    assert {row["video"]: (row["score"], row["expected"], row["deviation"]) for row in rows} == {
        name: pytest.approx(numbers, abs=1e-3) for name, numbers in likely.items()
    }
    done = call("score", clips[0], "--window", "60", "--json", "--curves", tmp_path / "curves")
    (moment,) = json.loads(done.stdout)["moments"]
    assert (moment["score"], moment["expected"], moment["deviation"]) == pytest.approx(likely[clips[0].name], abs=0.5)


@pytest.mark.parametrize("options", [["--weights", "int8"], ["--weights", "fp8"], ["--cache", "int8"]], ids=" ".join)
def test_a_model_in_bytes_expects_nearly_the_same(call, expected: dict, options: list[str]):
    clips = [ASSETS / "clips" / name for name in expected]
    full, narrow = (
        [json.loads(line) for line in call("score", *clips, "--json", *given).stdout.splitlines()]
        for given in ([], options)
    )
    assert all(row["status"] == "ok" for row in narrow)
    likely, nearly = (np.array([(row["expected"], row["deviation"]) for row in rows]) for rows in (full, narrow))
    # The pristine clip leaves no doubt that bytes could move, the damaged one does.
    assert 0 < np.abs(likely - nearly).max() < 0.3


def test_a_free_question_gets_an_answer(call):
    done = call("ask", ASSETS / "clips" / "damaged.mp4", "What is wrong with this video?")
    assert done.returncode == 0, done.stderr
    assert "Detail " in done.stdout


def test_the_doctor_finds_the_installation_sound(call, expected: dict):
    done = call("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in expected:
        assert f"✓ {name}" in done.stdout
    assert "✗" not in done.stdout


def test_the_bundled_model_is_small():
    size = sum(file.stat().st_size for file in (ASSETS / "checkpoint").iterdir())
    assert size < 8e6
