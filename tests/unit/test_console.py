"""What is printed about texts of any origin: every line of them, and nothing that steers a terminal."""

import json

import pytest

from vqathinker_jax import console
from vqathinker_jax.judge import Reply, Verdict

STEERING = "sharp\x1b[2J\x07\nbut \u202eblocky\x9b\r\nat\tthe end"
SHOWN = ["sharp\ufffd[2J\ufffd", "but \ufffdblocky\ufffd", "at\ufffdthe end"]


def test_a_reply_keeps_its_lines_and_loses_its_control_characters(capsys: pytest.CaptureFixture[str]):
    console.print_reply(Reply("clip.mp4", "pyav", 1.0, text=STEERING, health=("odd\x1b",), cut_off=True))
    printed, told = capsys.readouterr()
    assert printed.splitlines() == SHOWN
    assert told.splitlines() == ["note: the answer was cut off; raise --max-new-tokens", "note: odd\ufffd"]


def test_names_keep_their_spaces_and_emoji():
    name = "Screen 9.41\u202fAM \u3000\U0001f469\u200d\U0001f680.mov"
    assert console.printable(name) == name
    assert console.printable("a\u202eb\u2028c\ud800") == "a\ufffdb\ufffdc\ufffd"


def test_a_log_hears_of_slow_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 1.0, 31.0, 31.0, 32.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now, 33.0))
    with console.counting("looking") as count:
        for done in (1, 2, 3):
            count(done, 500, "well")
    assert capsys.readouterr().err.splitlines() == ["looking: 2 of 500, well"]


def test_a_reply_that_failed_is_an_error(capsys: pytest.CaptureFixture[str]):
    console.print_reply(Reply("a\x1b.mp4", "pyav", 1.0, reason="a\x1b.mp4: no such file; check the path"))
    assert capsys.readouterr() == ("", "error: a\ufffd.mp4: no such file; check the path\n")


def test_a_verdict_shows_its_reasoning_line_by_line(capsys: pytest.CaptureFixture[str]):
    verdict = Verdict("a\nb.mp4", "pyav", 1.0, frame_indices=(0, 3), health=("odd",), score=4.5, thinking=STEERING)
    console.print_verdict(verdict)
    rating, *lines = capsys.readouterr().out.splitlines()
    assert rating == "a\ufffdb.mp4: 4.50 of 5  (2 frames, 1.0 s)"
    assert lines == [*(f"    {line}" for line in SHOWN), "    note: odd", ""]


def test_a_verdict_tells_what_was_expected_where_that_is_known(capsys: pytest.CaptureFixture[str]):
    console.print_verdict(Verdict("a.mp4", "pyav", 1.0, score=4.75, expected=4.3149, deviation=0.625))
    assert capsys.readouterr().out.splitlines()[0] == "a.mp4: 4.75 of 5, expected 4.31 ± 0.62  (0 frames, 1.0 s)"


def test_a_failed_verdict_names_its_file_once_and_keeps_what_was_written(capsys: pytest.CaptureFixture[str]):
    console.print_verdict(Verdict("a.mp4", "pyav", 1.0, reason="a.mp4: an empty file; export it again"))
    console.print_verdict(Verdict("a.mp4", "pyav", 1.0, reason="no <answer> tags", text="fine\nit is"))
    assert capsys.readouterr().out.splitlines() == [
        "a.mp4: failed: an empty file; export it again",
        "",
        "a.mp4: failed: no <answer> tags",
        "    fine",
        "    it is",
        "",
    ]


def test_a_table_has_the_best_first_and_the_failed_last(capsys: pytest.CaptureFixture[str]):
    scores = {"bad.mp4": 1.25, "none.mp4": None, "good.mp4": 4.0}
    console.print_table([Verdict(name, "pyav", 1.0, score=score, reason=None) for name, score in scores.items()])
    assert capsys.readouterr().out.splitlines() == ["  4.00  good.mp4", "  1.25  bad.mp4", "failed  none.mp4"]


def test_of_videos_rated_alike_the_one_of_which_more_was_expected_comes_first(capsys: pytest.CaptureFixture[str]):
    likely = {"worse.mp4": 3.9, "better.mp4": 4.1}
    console.print_table([Verdict(name, "pyav", 1.0, score=4.0, expected=mean) for name, mean in likely.items()])
    assert capsys.readouterr().out.splitlines() == ["  4.00  better.mp4", "  4.00  worse.mp4"]


def test_a_row_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]):
    row = Verdict("\u2028.mp4", "pyav", 1.0, text=STEERING, reason="none").row()
    console.print_row(row)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert len(printed.splitlines()) == 1
    assert json.loads(printed)["text"] == STEERING


def test_an_error_is_a_line_for_each_fault(capsys: pytest.CaptureFixture[str]):
    console.print_error(ValueError("one\x1b\ntwo"))
    assert capsys.readouterr() == ("", "error: one\ufffd\nerror: two\n")


@pytest.mark.parametrize(("total", "shown"), [(None, "film.mp4: 100 windows"), (200, "film.mp4: 100 of 200, windows")])
def test_what_is_counted_is_told_with_its_total_where_that_is_known(
    total: int | None, shown: str, capsys: pytest.CaptureFixture[str]
):
    with console.counting("film.mp4") as count:
        count(100, total, "windows")
    assert capsys.readouterr().err.splitlines()[-1] == shown


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [({"reward": 1.5, "loss": 0.1, "kl": 0.02}, "reward 1.500, kl 0.0200"), ({"loss": 2.0}, "loss 2.000")],
)
def test_a_step_of_either_stage_is_a_line(metrics: dict[str, float], shown: str, capsys: pytest.CaptureFixture[str]):
    with console.training("run") as display:
        display(1, 4, metrics | {"tokens": 30.0, "seconds_update": 2.0})
    assert capsys.readouterr().err.splitlines()[-1] == f"step 1 of 4: {shown}, 15 tokens/s, 2.0 s"
