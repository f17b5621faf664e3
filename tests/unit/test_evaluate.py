"""Evaluation: every video one row, whatever kills it; answers as one by one; figures as of an uninterrupted run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import checkpoints, clips
from tests.evaluation import FRAMES, open_judge, rate_by_text
from vqathinker_jax import summary
from vqathinker_jax.data.labels import Choice, Item, VideoSet, read_sets
from vqathinker_jax.evaluate import Pace, Progress, evaluate, sheet_of
from vqathinker_jax.judge import Judge
from vqathinker_jax.predictions import Share
from vqathinker_jax.records import InputError
from vqathinker_jax.tasks import TASKS

CLIPS, DAMAGED = 24, 4
HERE = Pace(batch_size=3, workers=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "chat", config, tensors)


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Judge:
    return open_judge(checkpoint)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV with labels, beside its videos: `CLIPS` of them, the first `DAMAGED` each in another way."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(CLIPS):
        clips.write(folder / f"{number}.mp4", [clips.picture(number * 7 % 256)] * (2 + number % 3))
    whole = (folder / "3.mp4").read_bytes()
    (folder / "0.mp4").write_bytes(b"")
    (folder / "1.mp4").write_bytes(b"\0" * 300)
    (folder / "2.mp4").write_text("<script>alert(1)</script>")
    (folder / "3.mp4").write_bytes(whole[: len(whole) // 2])
    rows = "".join(f"{number}.mp4,{number * 37 % 100}\n" for number in range(CLIPS))
    (folder / "labels.csv").write_text("video,mos\n" + rows)
    return folder / "labels.csv"


def rows_of(output: Path) -> dict[str, dict]:
    """The rows on disk by video, which must stand there once."""
    lines = (output / "predictions.jsonl").read_text().splitlines()
    rows = {row["video"]: row for row in map(json.loads, lines)}
    assert len(lines) == len(rows)
    return rows


@pytest.fixture(scope="module")
def uninterrupted(judge: Judge, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "out"
    finish(judge, labels, output)
    return output


def finish(judge: Judge, labels: Path, output: Path, **options) -> Progress:
    """Evaluate and write the summary."""
    sets, last = read_sets(labels), [Progress(0)]
    rows, run = evaluate(judge, sets, output, rate_by_text(), report=last.append, **{"pace": HERE, **options})
    results = summary.join(sets, rows, resamples=50)
    summary.write(output, results, summary.summarise(results, run))
    return last[-1]


def test_every_video_has_one_row_and_failures_their_reasons(uninterrupted: Path, labels: Path):
    rows = rows_of(uninterrupted)
    assert rows.keys() == {f"{number}.mp4" for number in range(CLIPS)}
    for number in range(DAMAGED):
        row = rows[f"{number}.mp4"]
        assert (row["status"], row.get("score")) == ("failed", None)
        assert f"{number}.mp4" in row["reason"]
    for number in range(DAMAGED, CLIPS):
        row = rows[f"{number}.mp4"]
        assert row["text"]
        assert len(row["frame_indices"]) == len(row["frame_times_s"]) == FRAMES
        assert sheet_of(uninterrupted, row).stat().st_size > 0
    found = json.loads((uninterrupted / "summary.json").read_text())["sets"]["labels"]
    assert found["videos"] == CLIPS
    assert found["unreadable"] == DAMAGED
    assert found["srcc"]["value"] is not None
    assert labels.parent.as_posix() not in (uninterrupted / "summary.json").read_text()


def test_answers_are_those_of_the_judge_one_by_one(judge: Judge, uninterrupted: Path, labels: Path):
    rows = rows_of(uninterrupted)
    for number in range(DAMAGED, DAMAGED + 4):
        verdict = judge.score(labels.parent / f"{number}.mp4")
        row = rows[f"{number}.mp4"]
        assert row["text"] == verdict.text
        assert tuple(row["frame_indices"]) == verdict.frame_indices
        assert tuple(row["frame_times_s"]) == verdict.frame_times_s


def test_the_same_command_again_computes_nothing(judge: Judge, uninterrupted: Path, labels: Path, tmp_path: Path):
    shutil.copytree(uninterrupted, tmp_path / "out")
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert finish(judge, labels, tmp_path / "out").total == 0
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_what_changed_is_done_again_and_what_moved_is_not(
    judge: Judge, uninterrupted: Path, labels: Path, tmp_path: Path
):
    output, moved = tmp_path / "out", tmp_path / "set"
    shutil.copytree(uninterrupted, output)
    shutil.copytree(labels.parent, moved)  # other paths, and below other times of change
    for video in moved.glob("*.mp4"):
        os.utime(video, (1, 1))
    clips.write(moved / "0.mp4", [clips.picture(99)] * 5)
    (moved / "5.mp4").write_bytes(b"no longer a video")
    last = finish(judge, moved / "labels.csv", output)
    assert last.total == last.done == 2
    rows = rows_of(output)
    assert "text" in rows["0.mp4"]
    assert rows["5.mp4"]["status"] == "failed"
    assert {name: row for name, row in rows.items() if name not in {"0.mp4", "5.mp4"}} == {
        name: row for name, row in rows_of(uninterrupted).items() if name not in {"0.mp4", "5.mp4"}
    }


def test_an_absent_file_has_no_row_and_is_tried_again(judge: Judge, labels: Path, tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(labels.parent / "4.mp4", folder)
    (folder / "labels.csv").write_text("video,mos\n4.mp4,1\ngone.mp4,2\n")
    last = finish(judge, folder / "labels.csv", tmp_path / "out")
    assert (last.done, last.absent) == (2, 1)
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]["labels"]
    assert (found["coverage"], found["absent"]) == ("1 of 2", ["gone.mp4"])
    assert found["srcc"]["why"] == "1 video: correlation needs 3"
    shutil.copy(labels.parent / "5.mp4", folder / "gone.mp4")
    assert finish(judge, folder / "labels.csv", tmp_path / "out").total == 1
    assert rows_of(tmp_path / "out").keys() == {"4.mp4", "gone.mp4"}
    # One that was rated and is there no more is absent too.
    (folder / "4.mp4").unlink()
    assert finish(judge, folder / "labels.csv", tmp_path / "out").absent == 1
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]["labels"]
    assert (found["coverage"], found["absent"]) == ("1 of 2", ["4.mp4"])


def test_equal_files_are_answered_once(judge: Judge, labels: Path, tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    for copy in "abc":
        shutil.copy(labels.parent / "4.mp4", folder / f"{copy}.mp4")
    finish(judge, folder, tmp_path / "out", pace=Pace(1, 0))
    rows = rows_of(tmp_path / "out")
    assert rows.keys() == {"a.mp4", "b.mp4", "c.mp4"}
    assert len({row["text"] for row in rows.values()}) == 1
    assert len(list((tmp_path / "out" / "frames").iterdir())) == 1


def test_hosts_split_the_set_and_merge(judge: Judge, uninterrupted: Path, labels: Path, tmp_path: Path):
    done = [finish(judge, labels, tmp_path / "out", share=Share(number, 2)).done for number in (1, 2)]
    assert done == [CLIPS // 2, CLIPS // 2]
    assert finish(judge, labels, tmp_path / "out").total == 0
    assert rows_of(tmp_path / "out") == rows_of(uninterrupted)
    for name in "summary.json", "summary.md", "predictions.csv":
        assert (tmp_path / "out" / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_other_settings_do_not_mix(judge: Judge, checkpoint: Path, uninterrupted: Path, labels: Path):
    with pytest.raises(InputError, match=r"max_new_tokens was \d+ and is 3"):
        finish(open_judge(checkpoint, max_new_tokens=3), labels, uninterrupted)
    with pytest.raises(InputError, match="task was 'score' and is 'describe'"):
        evaluate(judge, read_sets(labels), uninterrupted, TASKS["describe"], pace=HERE)


def test_five_kills_leave_every_video_one_row_and_the_same_figures(
    checkpoint: Path, judge: Judge, uninterrupted: Path, labels: Path, tmp_path: Path
):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tests.evaluation", str(checkpoint), str(labels), str(output), "2"]
    kept: dict[str, str] = {}
    for goal in (1, 4, 7, 10, 13):
        child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 120
        while child.poll() is None and len(read(output)) < goal and time.monotonic() < deadline:
            time.sleep(0.005)
        assert child.poll() is None, "it ended before it was killed"
        child.kill()
        child.wait()
        now = read(output)
        assert now.items() >= kept.items(), "a row was lost or made twice"
        assert len(now) >= goal
        kept = now
    # The last row as a crash of the machine would leave it.
    path = output / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    last = finish(judge, labels, output)
    assert last.done == CLIPS - len(kept) + 1
    assert rows_of(output) == rows_of(uninterrupted)
    for name in "summary.json", "summary.md", "predictions.csv":
        assert (output / name).read_bytes() == (uninterrupted / name).read_bytes()


def read(output: Path) -> dict[str, str]:
    """The whole rows that a process which may still be writing has written, by video."""
    path = output / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    assert len(rows) == len({row["video"] for row in rows})
    return {row["video"]: json.dumps(row) for row in rows}


def test_choices_are_counted_by_category(judge: Judge, labels: Path, tmp_path: Path):
    def item(number: int, category: str) -> Item:
        choice = Choice(f"What is wrong with it? ({number})", ("Blur", "Noise"), 0, category)
        return Item(f"4.mp4#{number}", labels.parent / "4.mp4", choice=choice)

    found = VideoSet("questions", tuple(item(number, "kind" if number else "place") for number in range(3)))
    rows, run = evaluate(judge, [found], tmp_path, TASKS["choice"], pace=HERE)
    accuracy = summary.summarise(summary.join([found], rows), run)["sets"]["questions"]["accuracy"]
    assert accuracy["overall"]["questions"] == 3
    assert {name: counted["questions"] for name, counted in accuracy["categories"].items()} == {"kind": 2, "place": 1}
    # Each question is another prompt about the same file.
    assert len({row["key"] for row in rows.values()}) == 3


def test_prompts_that_do_not_fit_are_refused_before_anything_is_written(judge: Judge, labels: Path, tmp_path: Path):
    item = Item("4.mp4#1", labels.parent / "4.mp4", choice=Choice("<image>", ("A", "B"), 0, "all"))
    with pytest.raises(InputError, match=r"set, 4.mp4#1: the question holds <image>"):
        evaluate(judge, [VideoSet("set", (item,))], tmp_path / "out", TASKS["choice"], pace=HERE)
    assert not (tmp_path / "out").exists()


def test_a_pace_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="batch size 0"):
        Pace(0)
