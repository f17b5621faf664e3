"""The command line on a small random checkpoint: what is printed where, and the exit status."""

import json
import sys
from pathlib import Path

import pytest

import run
from tests import checkpoints, clips

SMALL = ["--frames", "4", "--image-size", "56", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "chat", config, tensors)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run one command in this process; returns its exit status."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        try:
            return run.main()
        except SystemExit as stop:
            return int(stop.code or 0)

    return call


def test_an_answer_without_a_rating_fails_and_keeps_its_text(command, checkpoint: Path, tmp_path: Path, capsys):
    clips.write(tmp_path / "clip.mp4", 8)
    (tmp_path / "notes.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    assert command("score", tmp_path, "--json", "--checkpoint", checkpoint, *SMALL) == 1
    rows = {Path(row["video"]).name: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {"clip.mp4", "notes.mp4", "empty.mp4"}
    for row in rows.values():
        assert row["status"] == "failed"
        assert row["score"] is None
    assert rows["clip.mp4"]["reason"] == "no <answer> tags (cut off after 4 tokens)"
    assert rows["clip.mp4"]["text"]
    assert len(rows["clip.mp4"]["frame_indices"]) == len(rows["clip.mp4"]["frame_times_s"]) == 4
    assert "notes.mp4: holds text" in rows["notes.mp4"]["reason"]
    assert "empty.mp4: an empty file" in rows["empty.mp4"]["reason"]


def test_a_table_names_every_video_and_steers_no_terminal(command, checkpoint: Path, tmp_path: Path, capsys):
    missing = tmp_path / "gone\x1b.mp4"
    assert command("score", missing, tmp_path / "other.mp4", "--checkpoint", checkpoint, *SMALL) == 1
    printed = capsys.readouterr().out
    assert "other.mp4: failed: " in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["score"], "no paths given"),
        (["score", "clip.mp4", "--checkpoint", "{empty}"], "no config.json"),
        (["score", "clip.mp4", "--checkpoint", "{checkpoint}", "--image-size", "50"], "not a multiple of 28"),
        (["score", "clip.mp4", "--checkpoint", "{checkpoint}", "--frames", "0"], "frames is 0"),
        (["score", "clip.mp4", "--checkpoint", "{checkpoint}", "--top-p", "0"], "top_p"),
        (["score", "{empty}", "--checkpoint", "{checkpoint}"], "no videos or pictures"),
        (["ask", "gone.mp4", "Is it sharp?", "--checkpoint", "{checkpoint}", *SMALL], "gone.mp4: no such file"),
        (["ask", "gone.mp4", "<image>", "--checkpoint", "{checkpoint}", *SMALL], "the question holds <image>"),
        (["convert", "{empty}", "{empty}/out"], "no config.json"),
        (["convert", "{checkpoint}", "{checkpoint}", "--force"], "holds other things"),
        (["score", ""], "an empty path"),
        (["score", "clip.mp4", "--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_usage_is_one_error_and_status_2(command, checkpoint: Path, tmp_path: Path, capsys, arguments, found):
    (tmp_path / "empty").mkdir()
    filled = [a.format(checkpoint=checkpoint, empty=tmp_path / "empty") for a in arguments]
    assert command(*filled) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any(found in line for line in errors) or "no-such-option" in found


def test_a_converted_checkpoint_answers_as_its_source(command, checkpoint: Path, tmp_path: Path, capsys):
    clips.write(tmp_path / "clip.mp4", 8)
    assert command("convert", checkpoint, tmp_path / "native") == 0
    answers = []
    for folder in (checkpoint, tmp_path / "native"):
        capsys.readouterr()
        assert command("ask", tmp_path / "clip.mp4", "Is it sharp?", "--checkpoint", folder, *SMALL) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert answers[0].strip()
