"""A long video goes in; its rating over time comes out, as numbers and as a picture.

An extension: the paper rates whole videos, and nothing is known of how its ratings of short stretches agree with
people's. At any time no more than a few windows' frames are held.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vqathinker_jax.batch import rate
from vqathinker_jax.data.windows import Span, read_windows
from vqathinker_jax.folder import make_folder
from vqathinker_jax.judge import Judge, Verdict
from vqathinker_jax.records import HIGHEST, LOWEST, Clip

NOTE = "an extension: the paper rates whole videos, not windows"
WORST = 3
STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 320, 40, 24, 28, 34


@dataclass(frozen=True)
class Moment:
    """One window's rating; `reason` says why there is none. frame_times_s are from the video's first frame."""

    start_s: float
    end_s: float
    score: float | None
    thinking: str
    reason: str | None
    frame_times_s: tuple[float, ...]
    health: tuple[str, ...]
    expected: float | None = None
    deviation: float | None = None


def rate_windows(judge: Judge, video: Path, span: Span, places: int = 4) -> Iterator[Moment]:
    """The windows of a video as they are rated, `places` at a time; not in their order.

    Raises: VideoError where the video cannot be read at all.
    """
    lost: list[Moment] = []

    def clips() -> Iterator[tuple[float, int, str, Clip]]:
        windows = read_windows(video, judge.view.frames, judge.view.image_size, span)
        for number, (start_s, clip) in enumerate(windows):
            if clip.indices:
                yield start_s, number, str(video), clip
            else:
                lost.append(_moment(start_s, span, Verdict(str(video), judge.view.decoder, 0.0, reason=clip.health[0])))

    for start_s, verdict in rate(judge, clips(), places):
        yield _moment(start_s, span, verdict)
    yield from lost


def _moment(start_s: float, span: Span, verdict: Verdict) -> Moment:
    end_s = round(start_s + span.window_s, 4)
    said = verdict.thinking, verdict.reason, verdict.frame_times_s, verdict.health, verdict.expected, verdict.deviation
    return Moment(round(start_s, 4), end_s, verdict.score, *said)


def worst(moments: Sequence[Moment], count: int = WORST) -> list[Moment]:
    """The lowest rated moments, in the order of their ratings; none overlaps another or is rated like the best."""
    found: list[Moment] = []
    best = max((m.score for m in moments if m.score is not None), default=0.0)
    lower = [(m.score, m.start_s, m) for m in moments if m.score is not None and m.score < best]
    for _, _, moment in sorted(lower, key=lambda row: row[:2]):
        if len(found) < count and all(moment.end_s <= m.start_s or m.end_s <= moment.start_s for m in found):
            found.append(moment)
    return found


def names(videos: Sequence[Path]) -> list[str]:
    """A file name for each video's curve, no two the same."""
    taken: Counter[str] = Counter()
    found = []
    for video in videos:
        taken[video.name] += 1
        found.append(video.name if taken[video.name] == 1 else f"{video.name}~{taken[video.name]}")
    return found


def told(video: Path, span: Span, moments: Sequence[Moment], fault: str | None = None) -> dict[str, Any]:
    """A film's windows in their order, what they come to, and the first thing that went wrong, as JSON values.

    fault: why the film could not be read at all, where it could not.
    """
    ratings = [moment.score for moment in moments if moment.score is not None]
    reasons = [moment.reason for moment in moments if moment.score is None]
    reason = fault or next(iter(reasons), None)
    return {
        "video": str(video),
        "status": "failed" if fault or reasons else "ok",
        "reason": reason,
        "note": NOTE,
        "window_s": span.window_s,
        "stride_s": span.stride_s or span.window_s,
        "mean": float(np.mean(ratings)) if ratings else None,
        "worst_starts_s": [moment.start_s for moment in worst(moments)],
        "moments": [asdict(moment) for moment in moments],
    }


def write(folder: Path, name: str, video: Path, span: Span, moments: Sequence[Moment]) -> dict[str, Any]:
    """Write `name.json` and `name.png` into a folder, which is made; returns what the former holds."""
    moments = sorted(moments, key=lambda moment: moment.start_s)
    make_folder(folder)
    film = told(video, span, moments)
    (folder / f"{name}.json").write_text(json.dumps(film, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(moments).save(folder / f"{name}.png")
    return film


def describe(film: Mapping[str, Any]) -> str:
    """What `told` makes of a film, for people: the mean, every window's rating, and the worst of them marked."""
    mean = "no window could be rated" if film["mean"] is None else f"{film['mean']:.2f} of 5 on average"
    count = len(film["moments"])
    lines = [f"{film['video']}: {mean} over {count} window{'s' * (count != 1)} ({film['note']})"]
    for moment in film["moments"]:
        rating = f"failed: {moment['reason']}" if moment["score"] is None else f"{moment['score']:.2f}"
        mark = "  <- among the worst" if moment["start_s"] in film["worst_starts_s"] else ""
        lines.append(f"  {moment['start_s']:8.1f} s  {rating}{mark}")
    return "\n".join(lines)


def draw(moments: Sequence[Moment]) -> Image.Image:
    """The rating over time: a dot at each window's middle, gaps where there is no rating, the worst windows shaded."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    end_s = max((moment.end_s for moment in moments), default=1.0)

    def x(time_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * time_s / end_s

    def y(score: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (score - LOWEST) / (HIGHEST - LOWEST)

    for moment in worst(moments):
        pen.rectangle((x(moment.start_s), TOP, x(moment.end_s), HEIGHT - BOTTOM), fill="#f6d5d2")
    for score in range(int(LOWEST), int(HIGHEST) + 1):
        pen.line((LEFT, y(score), WIDTH - RIGHT, y(score)), fill="#dddddd")
        pen.text((LEFT - 16, y(score) - 6), str(score), fill="#555555")
    step_s = next((step_s for step_s in STEPS_S if end_s / step_s <= 12), end_s)
    for tick in range(int(end_s / step_s) + 1):
        pen.text((x(tick * step_s) - 6, HEIGHT - BOTTOM + 6), f"{tick * step_s:g}", fill="#555555")
    pen.text((LEFT, 8), f"rating of each window over time in seconds ({NOTE}); shaded: the worst", fill="#555555")
    for before, after in pairwise(moments):
        if before.score is not None and after.score is not None:
            pen.line((x(_middle(before)), y(before.score), x(_middle(after)), y(after.score)), fill="#2667c9", width=2)
    for moment in moments:
        if moment.score is not None:
            across, up = x(_middle(moment)), y(moment.score)
            pen.ellipse((across - 3, up - 3, across + 3, up + 3), fill="#2667c9")
    return picture


def _middle(moment: Moment) -> float:
    return (moment.start_s + moment.end_s) / 2
