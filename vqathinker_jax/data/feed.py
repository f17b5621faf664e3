"""Files go in, what the model will see of them comes out: decoded by worker processes, as soon as any is ready.

A file that kills its decoder costs a worker and no more: those that were in work at the time are tried again one by
one, and the one that does it again is a fault like any other.
"""

import hashlib
import io
import math
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.data.view import View
from vqathinker_jax.data.workers import READ_AHEAD, start_worker
from vqathinker_jax.records import Clip, InputError, VideoError

PATIENCE_S = 0.005
SHEET_COLUMNS, SHEET_SIDE = 6, 128


class Content(NamedTuple):
    """What tells a file from its former self: the SHA-256 of its bytes; size and time of change, quicker to read."""

    sha256: str
    size: int
    modified_ns: int


class Seen(NamedTuple):
    """What came of one file.

    place: its number in the list. content: None where it cannot be opened. clip: resized, or None. sheet: the frames
    in small, as one WebP picture, `SHEET_COLUMNS` a row; empty without a clip. fault: why there is no clip.
    """

    place: int
    content: Content | None
    clip: Clip | None = None
    sheet: bytes = b""
    fault: str | None = None


def feed(videos: Sequence[Path], view: View, workers: int) -> Iterator[Seen | None]:
    """Each file as soon as some worker has looked at it; None where for a moment none is ready.

    With 0 workers this process looks at them, one after the other, as it does where there is no file at all.
    """
    if not workers or not any(video.is_file() for video in videos):
        yield from (look(place, video, view) for place, video in enumerate(videos))
        return
    waiting, suspects = deque(range(len(videos))), deque[int]()
    running: dict[Future[Seen], int] = {}
    pool = _pool(workers)
    try:
        while waiting or suspects or running:
            # Suspects have the pool to themselves, one at a time, so that it is clear which of them kills it.
            while (suspects and not running) or (waiting and not suspects and len(running) < READ_AHEAD * workers + 1):
                queue = suspects or waiting
                try:
                    running[pool.submit(look, queue[0], videos[queue[0]], view)] = queue[0]
                except BrokenProcessPool:  # a worker has died since; where others were in work, they tell so below
                    if running:
                        break
                    pool.shutdown()
                    pool = _pool(workers)
                else:
                    queue.popleft()
            done, _ = wait(running, PATIENCE_S, FIRST_COMPLETED)
            if not done:
                yield None
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                pool.shutdown()
                pool, done = _pool(workers), {f for f in running if f.done() and f.exception() is None}
                lost = [place for future, place in running.items() if future not in done]
                running = {future: place for future, place in running.items() if future in done}
                if len(lost) == 1:
                    yield Seen(lost[0], content_of(videos[lost[0]]), fault=f"{videos[lost[0]]}: {_KILLER}")
                else:
                    suspects.extendleft(reversed(lost))
            for future in done:
                del running[future]
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_KILLER = "ends the process that decodes it; export it again, or try the other --decoder"


def look(place: int, video: Path, view: View) -> Seen:
    """Look at one file; whatever is wrong with it ends in `fault`."""
    content = content_of(video)
    if content is None:
        return Seen(place, None, fault=f"{video}: cannot be opened; check the path and its permissions")
    try:
        clip = read_clip(video, view.frames, view.decoder)
    except VideoError as fault:
        return Seen(place, content, fault=str(fault))
    except InputError:
        raise
    except Exception as error:  # of one file, which must not end a run over thousands
        return Seen(place, content, fault=f"{video}: {type(error).__name__} in reading it ({error}); export it again")
    clip = replace(clip, frames_FYXC=resize(clip.frames_FYXC, view.image_size))
    return Seen(place, content, clip, contact_sheet(clip.frames_FYXC))


def content_of(path: Path) -> Content | None:
    """What the file holds now; None where it is no file that can be read."""
    try:
        if not path.is_file():
            return None
        status = path.stat()
        with path.open("rb") as file:
            return Content(hashlib.file_digest(file, "sha256").hexdigest(), status.st_size, status.st_mtime_ns)
    except OSError:
        return None


def contact_sheet(frames_FYXC: np.ndarray, side: int = SHEET_SIDE) -> bytes:
    """The frames as squares of `side` pixels in one WebP picture, `SHEET_COLUMNS` a row."""
    rows = math.ceil(len(frames_FYXC) / SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, rows * side))
    for number, frame_YXC in enumerate(frames_FYXC):
        row, column = divmod(number, SHEET_COLUMNS)
        small = Image.fromarray(frame_YXC).resize((side, side), Image.Resampling.BOX)
        sheet.paste(small, (column * side, row * side))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=60)
    return file.getvalue()


def _pool(workers: int) -> ProcessPoolExecutor:
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=fresh, initializer=_start)


def _start() -> None:
    start_worker(0, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which a pool ends the others when one has died
