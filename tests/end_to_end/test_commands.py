"""The command line on a small random checkpoint: what is printed where, and the exit status."""

import json
import sys
import threading
from pathlib import Path

import pytest

import run
from tests import checkpoints, clips
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.generate import generate

SCORE = ["score", "clip.mp4", "--checkpoint", "{checkpoint}"]
SMALL = ["--frames", "4", "--image-size", "56", "--max-new-tokens", "4"]
ASK = ["ask", "--checkpoint", "{checkpoint}", *SMALL, "gone.mp4"]


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


def test_a_video_is_read_while_the_one_before_it_is_rated(
    command, checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    second_is_read = threading.Event()

    def read(video: Path, *view):
        if video.name == "b.mp4":
            second_is_read.set()
        return read_clip(video, *view)

    def write(*given, **settings):
        assert second_is_read.wait(20)
        return generate(*given, **settings)

    monkeypatch.setattr("vqathinker_jax.judge.read_clip", read)
    monkeypatch.setattr("vqathinker_jax.judge.generate", write)
    given = [clips.write(tmp_path / "c.mp4", 8), clips.write(tmp_path / "b.mp4", 9), tmp_path / "gone.mp4"]
    assert command("score", *given, "--json", "--checkpoint", checkpoint, *SMALL) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["video"]).name for row in rows] == ["c.mp4", "b.mp4", "gone.mp4"]
    assert [len(row["frame_indices"]) for row in rows] == [4, 4, 0]
    assert "no such file" in rows[2]["reason"]


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
        ([*SCORE, "--image-size", "50"], "not a multiple of 28"),
        ([*SCORE, "--frames", "0"], "frames is 0"),
        ([*SCORE, "--top-p", "0"], "top_p"),
        (["score", "{empty}", "--checkpoint", "{checkpoint}"], "no videos or pictures"),
        (
            ["score", "clip.mp4", "--checkpoint", "{checkpoint}", "--image-size", "28"],
            "small for the motion branch; try 56",
        ),
        ([*SCORE, "--max-new-tokens", "40000"], "model's 32768 positions"),
        ([*SCORE, "--frames", "9" * 9], "model's 32768 positions"),
        ([*SCORE, "--image-size", "28" + "0" * 9], "32768 positions"),
        ([*SCORE, "--seed", str(2**70)], "give 0 to 4294967295"),
        ([*SCORE, "--seed", "-1"], "seed is -1"),
        ([*SCORE, "--decoder", "decord"], "pip install decord"),
        ([*SCORE, "--slowfast", "gone.pyth"], "brings SlowFast's weights"),
        ([*ASK, "<image>"], "the question holds <image>"),
        ([*ASK, " "], "the question is empty"),
        ([*ASK, "why? " * 20000], "model's 32768 positions"),
        (["convert", "{empty}", "{empty}/../out"], "no config.json"),
        (["convert", "{checkpoint}", "{checkpoint}", "--force"], "holds other things"),
        (["score", ""], "an empty path"),
        (["convert", "{checkpoint}", "{checkpoint}/inside"], "lies in"),
        (["export", "{checkpoint}", "{checkpoint}/inside", "--format", "chat"], "lies in"),
        ([*SCORE, "--stride", "5"], "give --window too"),
        ([*SCORE, "--window", "10", "--stride", "0.001"], "every 0.001 s: less than a hundredth of its 10 s; give 0.1"),
        ([*SCORE, "--window", "2", "--curves", __file__], "cannot be made (File exists); name another"),
        ([*SCORE, "--window", "2", "--curves", f"{__file__}/in"], "cannot be made (Not a directory)"),
        (["score", "clip.mp4", "--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_usage_is_one_error_before_weights_are_read_and_status_2(
    command, checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], found: str
):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setattr("convert.load.open_model", lambda *_, **__: pytest.fail("weights were read"))
    (tmp_path / "empty").mkdir()
    filled = [a.format(checkpoint=checkpoint, empty=tmp_path / "empty") for a in arguments]
    assert command(*filled) == 2
    printed, told = capsys.readouterr()
    assert not printed
    if "no-such-option" not in found:
        assert [line.startswith("error: ") for line in told.splitlines()] == [True]
    assert found in told


def test_an_answer_to_a_question_tells_that_it_is_cut_off_and_what_is_wrong_with_the_file(
    command, checkpoint: Path, tmp_path: Path, capsys
):
    clip = clips.write(tmp_path / "clip.mp4", 40, options=clips.FAST, container_options={"movflags": "faststart"})
    clip.write_bytes(clip.read_bytes()[:-400])
    asked = ["ask", clip, "Is it sharp?", "--checkpoint", checkpoint, *SMALL]
    assert command(*asked) == 0
    printed, told = capsys.readouterr()
    assert printed.strip()
    assert "note: the answer was cut off; raise --max-new-tokens" in told
    assert "note: damaged: " in told
    assert command(*asked, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["video"], row["status"], row["question"]) == (str(clip), "ok", "Is it sharp?")
    assert row["cut_off"]
    assert row["text"].splitlines() == printed.splitlines()
    assert row["health"][0].startswith("damaged: ")
    assert len(row["frame_indices"]) == len(row["frame_times_s"]) == 4


def test_a_question_about_a_file_that_cannot_be_read_fails(command, checkpoint: Path, tmp_path: Path, capsys):
    asked = ["ask", tmp_path / "gone.mp4", "Is it sharp?", "--checkpoint", checkpoint, *SMALL]
    assert command(*asked) == 1
    printed, told = capsys.readouterr()
    assert not printed
    assert told.splitlines()[-1] == f"error: {tmp_path}/gone.mp4: no such file; check the path"
    assert command(*asked, "--json") == 1
    row = json.loads(capsys.readouterr().out)
    assert (row["status"], row["text"], row["cut_off"]) == ("failed", "", False)
    assert "no such file" in row["reason"]


def test_a_path_without_videos_fails_alone(command, checkpoint: Path, tmp_path: Path, capsys):
    clips.write(tmp_path / "clip.mp4", 8)
    given = [tmp_path / "clip.mp4", f"{tmp_path}/*.avi", tmp_path / "." / "clip.mp4"]
    assert command("score", *given, "--json", "--checkpoint", checkpoint, *SMALL) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["video"]).name for row in rows] == ["clip.mp4", "*.avi"]
    assert "no such file" in rows[1]["reason"]


def test_a_machine_without_the_device_that_is_asked_for_is_told_so(
    command, checkpoint: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    def broken() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr("jax.default_backend", broken)
    monkeypatch.setattr("jax.devices", broken)
    assert command("score", "clip.mp4", "--checkpoint", checkpoint, *SMALL) == 2
    assert capsys.readouterr().err.startswith("error: jax finds no device for JAX_PLATFORMS='tpu'; unset it, or see")
    assert command("doctor") == 1
    printed = capsys.readouterr().out
    assert "✗ jax finds no device for JAX_PLATFORMS='tpu' (Unable to initialize backend 'tpu'); unset it" in printed
    assert "✓ decoder pyav" in printed


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
