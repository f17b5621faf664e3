"""A video of any length goes in; the frames of one window after another come out, decoded once and never all held.

An extension: the paper looks at whole videos. Within a window frames are drawn by the paper's rule. Frames are known by
their times; one that damage took away is stood in for by the one before it, and the window says so.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from vqathinker_jax.data.decoder import decoded, upright_rgb
from vqathinker_jax.data.frames import resize, sample_indices
from vqathinker_jax.data.packets import Survey, opened, survey
from vqathinker_jax.data.paths import PICTURES
from vqathinker_jax.data.video import check_file
from vqathinker_jax.records import Clip, InputError, VideoError

SHORTEST_S = 0.01


@dataclass(frozen=True)
class Span:
    """How a video is cut into windows: of `window_s` seconds, one every `stride_s`; 0 stands for one after another."""

    window_s: float
    stride_s: float = 0.0

    def __post_init__(self):
        if not 0 < self.window_s < float("inf") or not 0 <= self.stride_s < float("inf"):
            raise InputError(f"a window of {self.window_s:g} s every {self.stride_s:g} s: give finite seconds above 0")
        if self.window_s < SHORTEST_S:
            raise InputError(f"a window of {self.window_s:g} s holds no two frames: give {SHORTEST_S:g} or more")
        if 0 < self.stride_s < self.window_s / 100:
            raise InputError(
                f"a window every {self.stride_s:g} s: less than a hundredth of its {self.window_s:g} s; "
                f"give {self.window_s / 100:g} or more"
            )

    def starts(self, length_s: float) -> list[float]:
        """When windows begin in a video whose last frame begins at `length_s`; the last reaches its end."""
        stride_s = self.stride_s or self.window_s
        last_s = max(length_s - self.window_s, 0.0)
        count = int(last_s / stride_s) + 1
        starts = [number * stride_s for number in range(count)]
        return starts if last_s - starts[-1] < 1e-6 or self.window_s > length_s else [*starts, last_s]


@dataclass
class _Window:
    """A window that is being filled; places count the video's frames, which are resized. faulty: while it was open, the
    decoder met what it cannot read."""

    start_s: float
    places: tuple[int, ...]
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    faulty: bool = False


def read_windows(path: Path, frames: int, size: int, span: Span) -> Iterator[tuple[float, Clip]]:
    """Each window's beginning in seconds, and its frames as uint8 RGB [F, size, size, 3] with their times.

    Raises:
        VideoError: the file is no video, or not one frame of it can be decoded.
    """
    if path.suffix.lower() in PICTURES:
        raise VideoError(f"{path}: a picture has no windows; leave --window out")
    check_file(path)
    packets = survey(path)
    times_s = packets.times_s(list(packets.pts) if packets.seekable else [None] * packets.count)
    waiting = [_plan(start_s, times_s, frames, span) for start_s in span.starts(times_s[-1])]
    found = False
    open_windows: list[_Window] = []
    for place, frame_YXC in _shown(path, packets, {place for window in waiting for place in window.places}, size):
        if frame_YXC is None:
            for window in open_windows or waiting[:1]:
                window.faulty = True
            continue
        found = True
        while waiting and waiting[0].places[0] <= place:
            open_windows.append(waiting.pop(0))
        for window in open_windows:
            if place in window.places:
                window.frames[place] = frame_YXC
        while open_windows and open_windows[0].places[-1] <= place:
            yield _filled(open_windows.pop(0), times_s, packets.at_fault)
    if not found:
        raise VideoError(f"{path}: no frame could be decoded; export or download it again")
    for window in open_windows + waiting:  # damage swallowed the last of their frames
        yield _filled(window, times_s, packets.at_fault)


def _plan(start_s: float, times_s: list[float], frames: int, span: Span) -> _Window:
    """The window with the places of its frames; one between two frames has the one before it."""
    first = bisect_left(times_s, start_s - 1e-6)
    last = max(bisect_left(times_s, start_s + span.window_s - 1e-6) - 1, first)
    first, last = min(first, len(times_s) - 1), min(last, len(times_s) - 1)
    return _Window(start_s, tuple(first + index for index in sample_indices(last - first, frames)))


def _shown(path: Path, packets: Survey, wanted: set[int], size: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """The wanted frames that can be decoded, resized, each with its place among all frames; None for each fault."""
    place_of = {pts: place for place, pts in enumerate(packets.pts)} if packets.seekable else {}
    with opened(path) as (container, stream):
        if packets.at_fault:
            stream.codec_context.thread_count = 1  # frame threads swallow sound frames next to a fault
        else:
            stream.thread_type = "AUTO"
        try:
            count = 0
            for frame in decoded(container, stream):
                if frame is None:
                    yield count, None
                    continue
                place = count if frame.pts is None or not place_of else place_of.get(frame.pts, -1)
                count += 1
                if place in wanted and not frame.is_corrupt:
                    yield place, resize(upright_rgb(frame)[None], size)[0]
        except FFmpegError as error:
            raise VideoError(f"{path}: its pictures cannot be shown ({error.strerror}); convert it to H.264") from None


def _filled(window: _Window, times_s: list[float], at_fault: bool) -> tuple[float, Clip]:
    if not window.frames:
        empty = Clip(np.empty((0, 0, 0, 3), np.uint8), (), (), ("no frame of it could be decoded",))
        return window.start_s, empty
    there = sorted(window.frames)
    shown = [there[max(bisect_left(there, place + 1) - 1, 0)] for place in window.places]
    lost = len(set(window.places) - window.frames.keys())
    health = (f"damaged: {lost} of {len(set(window.places))} frames could not be decoded",) * bool(lost)
    health += ("damaged: parts of the file are missing or have errors",) * (at_fault or window.faulty)
    frames_FYXC = np.stack([window.frames[place] for place in shown])
    return window.start_s, Clip(frames_FYXC, tuple(shown), tuple(times_s[place] for place in shown), health)
