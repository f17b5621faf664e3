"""Rows on disk: whole after a crash, one a video, and not mixed with another run's."""

import json
import multiprocessing
from pathlib import Path

import pytest

from vqathinker_jax.predictions import ALL, Predictions, Share, read_rows
from vqathinker_jax.records import InputError

RUN = {"checkpoint": "abc", "frames": 12}
SETS = {"one"}


def row(video: str, score: float = 3.0) -> dict:
    return {"set": "one", "video": video, "key": f"k-{video}", "score": score}


def lines(folder: Path, name: str = "predictions.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_rows_are_on_disk_at_once_and_come_back(tmp_path: Path):
    with Predictions(tmp_path / "out", RUN, SETS) as predictions:
        predictions.add(row("a\n\u2028<b>.mp4"))
        assert lines(tmp_path / "out") == [row("a\n\u2028<b>.mp4")]
        assert (tmp_path / "out" / "predictions.jsonl").read_bytes().isascii()
        predictions.add(row("b.mp4"))
    with Predictions(tmp_path / "out", RUN, SETS) as predictions:
        assert list(predictions.rows.values()) == [row("a\n\u2028<b>.mp4"), row("b.mp4")]


@pytest.mark.parametrize(
    "torn", [b'{"set": "one", "vid', b"\0\0\0\0", b'{"set": "one", "video": "c.mp4"}', b"[]\n", b"\xff\n"]
)
def test_a_torn_row_is_taken_out(tmp_path: Path, torn: bytes):
    with Predictions(tmp_path, RUN, SETS) as predictions:
        predictions.add(row("a.mp4"))
    with (tmp_path / "predictions.jsonl").open("ab") as file:
        file.write(torn)
    with Predictions(tmp_path, RUN, SETS) as predictions:
        assert list(predictions.rows) == [("one", "a.mp4")]
        predictions.add(row("b.mp4"))
    assert lines(tmp_path) == [row("a.mp4"), row("b.mp4")]


def test_a_row_may_be_torn_in_the_middle_of_the_file(tmp_path: Path):
    with Predictions(tmp_path, RUN, SETS) as predictions:
        for name in "abc":
            predictions.add(row(name))
    path = tmp_path / "predictions.jsonl"
    content = bytearray(path.read_bytes())
    content[content.index(b"k-b") - 9 : content.index(b"k-b")] = b"\0" * 9
    path.write_bytes(content)
    with Predictions(tmp_path, RUN, SETS) as predictions:
        assert [video for _, video in predictions.rows] == ["a", "c"]
    assert lines(tmp_path) == [row("a"), row("c")]


def test_a_video_made_anew_has_one_row_still(tmp_path: Path):
    with Predictions(tmp_path, RUN, SETS) as predictions:
        predictions.add(row("a.mp4", 2.0))
        predictions.add(row("a.mp4", 4.0))
    assert lines(tmp_path) == [row("a.mp4", 4.0)]


def hold(folder: Path, ready, release) -> None:
    with Predictions(folder, RUN, SETS):
        ready.set()
        release.wait(60)


def test_two_processes_on_one_output_are_refused(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out", ready, release))
    other.start()
    try:
        assert ready.wait(60)
        for resume, share in (True, ALL), (False, ALL), (True, Share(1, 2)):
            with pytest.raises(InputError, match="another process is writing there"):
                Predictions(tmp_path / "out", RUN, SETS, resume=resume, share=share)
    finally:
        release.set()
        other.join()
    Predictions(tmp_path / "out", RUN, SETS).__exit__()


@pytest.mark.parametrize(
    ("run", "sets", "found"),
    [
        (RUN | {"frames": 6}, SETS, r"holds another run \(frames was 12 and is 6\)"),
        (RUN | {"checkpoint": "abd", "seed": 1}, SETS, "checkpoint was 'abc' and is 'abd'; seed was None and is 1"),
        (RUN, {"two"}, "holds predictions for one too"),
    ],
)
def test_an_output_of_another_run_is_refused_unless_started_over(tmp_path: Path, run: dict, sets: set, found: str):
    with Predictions(tmp_path, RUN, SETS) as predictions:
        predictions.add(row("a.mp4"))
    with pytest.raises(InputError, match=found):
        Predictions(tmp_path, run, sets)
    with Predictions(tmp_path, RUN, SETS) as predictions:
        assert len(predictions.rows) == 1
    with Predictions(tmp_path, run, sets, resume=False) as predictions:
        assert predictions.rows == {}
    assert lines(tmp_path) == []


def test_sets_may_be_added(tmp_path: Path):
    with Predictions(tmp_path, RUN, SETS) as predictions:
        predictions.add(row("a.mp4"))
    with Predictions(tmp_path, RUN, SETS | {"two"}) as predictions:
        assert len(predictions.rows) == 1


def test_what_a_kill_left_of_the_first_writing_is_no_obstacle(tmp_path: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.12ab").write_text('{"ru')
    with Predictions(tmp_path, RUN, SETS) as predictions:
        predictions.add(row("a.mp4"))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json", "predictions.jsonl"}


def test_a_share_cannot_start_over(tmp_path: Path):
    with Predictions(tmp_path, RUN, SETS, share=Share(1, 2)) as first:
        first.add(row("a"))
        with pytest.raises(InputError, match="a share cannot start over"):
            Predictions(tmp_path, RUN, SETS, share=Share(2, 2), resume=False)
    assert lines(tmp_path, "predictions-1-of-2.jsonl") == [row("a")]


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"run.json": "[]"}, {"run.json": '{"run": 3, "sets": []}'}])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, content: dict, resume: bool):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"holds other things|is not an evaluation's"):
        Predictions(tmp_path, RUN, SETS, resume=resume)
    for name, text in content.items():
        assert (tmp_path / name).read_text() == text


def test_a_file_is_no_output(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is a file"):
        Predictions(tmp_path / "out", RUN, SETS)


def test_hosts_work_side_by_side_and_are_merged(tmp_path: Path):
    with (
        Predictions(tmp_path, RUN, SETS, share=Share(1, 2)) as first,
        Predictions(tmp_path, RUN, SETS, share=Share(2, 2)) as second,
    ):
        with pytest.raises(InputError, match="another process"):
            Predictions(tmp_path, RUN, SETS, share=Share(2, 2))
        with pytest.raises(InputError, match="another process"):
            Predictions(tmp_path, RUN, SETS)
        first.add(row("a"))
        second.add(row("b"))
        first.add(row("c"))
    assert lines(tmp_path, "predictions-1-of-2.jsonl") == [row("a"), row("c")]
    with Predictions(tmp_path, RUN, SETS) as merged:
        assert {video for _, video in merged.rows} == {"a", "b", "c"}
        merged.add(row("d"))
    assert sorted(found["video"] for found in lines(tmp_path)) == ["a", "b", "c", "d"]
    assert [path.name for path in tmp_path.glob("predictions*")] == ["predictions.jsonl"]
    # What a share does again is later than what the whole has.
    with Predictions(tmp_path, RUN, SETS, share=Share(2, 2)) as second:
        second.add(row("b") | {"text": "anew"})
    for share in Share(2, 2), Share(1, 2), Share():
        with Predictions(tmp_path, RUN, SETS, share=share) as opened:
            assert opened.rows["one", "b"] == row("b") | {"text": "anew"}, share


def test_shares_are_written_as_which_of_how_many():
    assert Share.parse("2/4") == Share(2, 4)
    for wrong in "0/4", "5/4", "2", "a/b", "2/4/", "-1/4":
        with pytest.raises(InputError, match="write which of how many"):
            Share.parse(wrong)


def test_no_file_has_no_rows(tmp_path: Path):
    assert read_rows(tmp_path / "gone.jsonl") == {}
