"""`evaluate` and `score --window` as a user runs them: what is written, what is refused, and the exit status."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import run
from tests import checkpoints, clips

SMALL = ["--frames", "4", "--image-size", "56", "--max-new-tokens", "4"]
WRITTEN = {"frames", "predictions.jsonl", "predictions.csv", "report.html", "run.json", "summary.json", "summary.md"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "chat", config, tensors)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path):
    """Run one command in this process with the small model; returns its exit status."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> int:
        options = map(str, [*arguments, "--checkpoint", checkpoint, *SMALL])
        monkeypatch.setattr(sys, "argv", ["run.py", *options])
        try:
            return run.main()
        except SystemExit as stop:
            return int(stop.code or 0)

    return call


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        clips.write(folder / f"{number}.mp4", 4 + number)
    (folder / "labels.csv").write_text("video,mos\n0.mp4,1\n1.mp4,2\ngone.mp4,3\n")
    return folder


def test_a_folder_goes_in_and_everything_comes_out(command, videos: Path, tmp_path: Path, capsys):
    assert command("evaluate", videos, "--output", tmp_path / "out", "--workers", "0") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= WRITTEN
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    printed = capsys.readouterr().out
    assert "| videos | 3 | 0 | 0 | 3 (100.0%) | 3 (100.0%) | 0 |" in printed
    # Another list of the same videos is another run, and an empty folder of ours is not in its way.
    labels = videos / "labels.csv"
    assert command("evaluate", labels, "--output", tmp_path / "out", "--workers", "0") == 2
    assert "holds predictions for videos too" in capsys.readouterr().err
    compared = ["--compare", tmp_path / "out"]
    assert command("evaluate", labels, "--output", tmp_path / "two", "--workers", "0", *compared) == 1
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["sets"]["labels"]["absent"] == ["gone.mp4"]
    assert "0 videos: correlation needs 3" in capsys.readouterr().out


def test_another_run_s_folder_is_refused_before_a_model_is_loaded(
    command, videos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    given = ["evaluate", videos, "--output", tmp_path / "out", "--workers", "0"]
    assert command(*given) == 1
    # A stand-in that must not be reached.
    monkeypatch.setattr("vqathinker.load", None)
    assert command(*given, "--temperature", "0.5") == 2
    assert "holds another run (seed was None and is 0; temperature was 0.0 and is 0.5)" in capsys.readouterr().err
    assert command("evaluate", videos / "labels.csv", "--output", tmp_path / "out") == 2
    assert "holds predictions for videos too" in capsys.readouterr().err
    with pytest.raises(TypeError, match="not callable"):
        command(*given)


def test_shares_leave_the_figures_to_the_last_run(command, videos: Path, tmp_path: Path, capsys):
    for share in "1/2", "2/2":
        assert command("evaluate", videos, "--output", tmp_path / "out", "--workers", "0", "--share", share) == 1
        assert f"share {share} is done" in capsys.readouterr().out
    assert not (tmp_path / "out" / "summary.json").exists()
    assert command("evaluate", videos, "--output", tmp_path / "out", "--workers", "0") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= WRITTEN


def test_descriptions_need_no_rating(command, videos: Path, tmp_path: Path):
    assert command("evaluate", videos, "--output", tmp_path / "out", "--workers", "0", "--task", "describe") == 0


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["gone.json"], "cannot be read"),
        (["videos", "--batch-size", "0"], "batch size 0"),
        (["videos", "--share", "3/2"], "write which of how many"),
        (["videos", "--processes.coordinator", "127.0.0.1:1"], "1 processes with coordinator"),
        (["videos", "--share", "1/2", "--processes.count", "0"], "leave it or --processes out"),
        (["videos", "--videos", "."], "is itself a folder of videos"),
        (["videos", "--output", "videos/out"], "lies among the videos"),
        (["videos", "--preset", "paper", "--task", "choice"], "has no questions"),
        (["videos", "--compare", "videos"], "holds no predictions.jsonl"),
        (["videos", "--preset", "paper"], "none of the paper's metas"),
        (["videos/labels.csv", "--task", "choice"], "name JSON lines with video, question"),
        (["videos", "--output", "videos/labels.csv/out"], "lies among the videos"),
        (["videos/labels.csv", "--output", "videos/labels.csv/out"], "cannot be made (Not a directory)"),
    ],
)
@pytest.mark.usefixtures("videos")
def test_wrong_usage_is_one_error_and_status_2(command, tmp_path: Path, capsys, arguments: list[str], found: str):
    given = arguments if "--output" in arguments else [*arguments, "--output", tmp_path / "out"]
    assert command("evaluate", *given) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any(found in line for line in errors)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "videos" / "out").exists()


def test_windows_draw_a_curve_for_each_video(command, videos: Path, tmp_path: Path, capsys):
    assert command("score", videos / "2.mp4", videos / "gone.mp4", "--window", "0.1", "--json") == 1
    told, gone = map(json.loads, capsys.readouterr().out.splitlines())
    assert (gone["video"], gone["status"]) == (str(videos / "gone.mp4"), "failed")
    assert "no such file" in gone["reason"]
    assert gone.keys() == told.keys()
    assert len(told["moments"]) == 3
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {"2.mp4.json", "2.mp4.png"}
    for window in "0", "inf", "nan":
        assert command("score", videos / "2.mp4", "--window", window) == 2
    assert command("score", videos / "2.mp4", "--window", "1", "--decoder", "decord") == 2


def test_hosts_that_know_each_other_leave_what_one_leaves(command, checkpoint: Path, videos: Path, tmp_path: Path):
    given = ["evaluate", videos / "labels.csv", "--task", "describe", "--workers", "0", "--output"]
    assert command(*given, tmp_path / "one") == 1
    # What another run left of the same is to go.
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    rows = (tmp_path / "one" / "predictions.jsonl").read_text()
    (tmp_path / "two" / "predictions.jsonl").write_text(rows.replace('"text": "', '"text": "formerly '))
    with socket.create_server(("127.0.0.1", 0)) as free:
        given += [tmp_path / "two", "--no-resume", "--processes.count", "2"]
        given += ["--processes.coordinator", f"127.0.0.1:{free.getsockname()[1]}"]
    hosts = [
        subprocess.Popen(
            [
                sys.executable,
                "run.py",
                *map(str, [*given, "--processes.index", index, "--checkpoint", checkpoint, *SMALL]),
            ],
            cwd=Path(run.__file__).parent,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [1, 0], "the absent video is of the first share"
    assert ["wrote" in text for text in said] == [True, False]
    for name in "summary.json", "summary.md", "predictions.csv":
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted((tmp_path / "two" / "predictions.jsonl").read_text().splitlines()) == sorted(rows.splitlines())
