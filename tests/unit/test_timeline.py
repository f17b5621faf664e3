"""Ratings over time: the worst moments, the picture, and windows rated as the model rates."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tests import checkpoints, clips
from tests.evaluation import open_judge
from vqathinker_jax import timeline
from vqathinker_jax.data.view import View
from vqathinker_jax.data.windows import Span
from vqathinker_jax.records import Clip
from vqathinker_jax.timeline import Moment, draw, rate_windows, worst, write


def moment(start_s: float, score: float | None, length_s: float = 2.0) -> Moment:
    return Moment(start_s, start_s + length_s, score, "", None if score else "no answer", (), ())


def test_the_worst_moments_do_not_overlap():
    scores = {0: 3.0, 1: 1.5, 2: 1.4, 4: 4.0, 6: None, 8: 2.0, 10: 5.0}
    moments = [moment(start_s, score) for start_s, score in scores.items()]
    assert [m.start_s for m in worst(moments)] == [2, 8, 0]
    assert worst([moment(0, None)]) == []
    assert worst([moment(0, 3.0), moment(2, 3.0)]) == [], "none is worse than another"
    assert worst([moment(0, 3.0), moment(2, 2.0)]) == [moment(2, 2.0)]


def test_the_picture_goes_down_where_the_rating_does():
    picture = draw([moment(0, 5.0), moment(2, 1.0), moment(4, None), moment(6, 5.0)])
    up, across = np.nonzero((np.asarray(picture) == (38, 103, 201)).all(-1))
    assert up[across < 200].min() < 40
    assert up[(across > 300) & (across < 450)].max() > 270
    assert not ((across > 480) & (across < 720)).any(), "a line over a window without a rating"
    draw([])


def test_windows_are_rated_one_by_one_and_written(tmp_path: Path):
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    judge = open_judge(checkpoints.write(tmp_path / "chat", config, tensors))
    video = clips.write(tmp_path / "long.mp4", 30, rate=10)
    moments = sorted(rate_windows(judge, video, Span(1.0)), key=lambda m: m.start_s)
    assert [m.start_s for m in moments] == [0.0, 1.0, 1.9]
    # A random model rates nothing: each window says why.
    assert all(m.score is None and str(m.reason).startswith("no <answer> tags") for m in moments)
    assert all(m.start_s <= t <= m.end_s for m in moments for t in m.frame_times_s)
    write(tmp_path / "curves", "long", video, Span(1.0), moments)
    told = json.loads((tmp_path / "curves" / "long.json").read_text())
    assert "extension" in told["note"]
    assert (told["mean"], len(told["moments"])) == (None, 3)
    assert (tmp_path / "curves" / "long.png").stat().st_size > 0


def test_a_window_that_is_lost_changes_no_others_draws(monkeypatch: pytest.MonkeyPatch):
    lost = Clip(np.empty((0, 0, 0, 3), np.uint8), (), (), ("no frame of it could be decoded",))
    whole = Clip(np.zeros((1, 56, 56, 3), np.uint8), (0,), (0.0,))
    monkeypatch.setattr(timeline, "read_windows", lambda *_: [(0.0, whole), (1.0, lost), (2.0, whole)])
    numbers: list[int] = []
    monkeypatch.setattr(timeline, "rate", lambda _, clips, places: numbers.extend(n for _, n, *_ in clips) or [])
    (moment,) = rate_windows(Mock(view=View(1, 56)), Path("long.mp4"), Span(1.0))
    assert (moment.start_s, moment.reason) == (1.0, "no frame of it could be decoded")
    assert numbers == [0, 2]


@pytest.mark.parametrize("scores", [[3.0], [None], [1.0, 5.0]])
def test_what_is_written_is_json(tmp_path: Path, scores: list):
    write(tmp_path, "x", Path("x.mp4"), Span(2.0, 2.0), [moment(2 * i, score) for i, score in enumerate(scores)])
    assert json.loads((tmp_path / "x.json").read_text())["window_s"] == 2.0
