"""Files as workers see them: every one once, faults as values, and a file that kills its decoder is one fault."""

import hashlib
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import clips
from vqathinker_jax.data import feed as module
from vqathinker_jax.data.feed import Seen, contact_sheet, content_of, feed, look
from vqathinker_jax.data.view import View

VIEW = View(4, 56, "pyav")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    whole = [clips.write(folder / f"{number}.mp4", [clips.picture(number)] * 3) for number in range(5)]
    (folder / "text.mp4").write_text("no video")
    return [*whole, folder / "text.mp4", folder / "gone.mp4"]


def seen_by(videos: Sequence[Path], workers: int) -> list[Seen]:
    """In the list's order."""
    found = [seen for seen in feed(videos, VIEW, workers) if seen is not None]
    assert sorted(seen.place for seen in found) == list(range(len(videos)))
    return sorted(found, key=lambda seen: seen.place)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_comes_once_with_its_frames_or_its_fault(videos: list[Path], workers: int):
    *whole, text, gone = seen_by(videos, workers)
    for number, seen in enumerate(whole):
        assert seen.clip is not None
        assert seen.clip.frames_FYXC.shape == (4, 56, 56, 3)
        assert clips.numbers(seen.clip.frames_FYXC) == [number] * 4
        assert seen.content is not None
        assert seen.content.sha256 == hashlib.sha256(videos[number].read_bytes()).hexdigest()
        assert seen.content.size == videos[number].stat().st_size
    assert (text.clip, text.sheet) == (None, b"")
    assert text.content is not None
    assert "holds text" in str(text.fault)
    assert gone.content is None
    assert "gone.mp4: cannot be opened" in str(gone.fault)


def test_a_folder_is_no_content(tmp_path: Path):
    assert content_of(tmp_path) is None


def killed_by_two(place: int, video: Path, view: View) -> Seen:
    """Stands in for a decoder: dies over `2.mp4` as a fault in native code would."""
    if video.name == "2.mp4":
        os._exit(11)
    return look(place, video, view)


def test_a_file_that_kills_its_decoder_is_one_fault(videos: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "look", killed_by_two)
    found = seen_by(videos, 2)
    assert [seen.place for seen in found if seen.clip is None] == [2, 5, 6]
    assert "2.mp4: ends the process that decodes it" in str(found[2].fault)


def test_a_worker_that_dies_while_nobody_waits_for_it_costs_no_file(videos: list[Path]):
    others = multiprocessing.active_children()  # of tests before, which may not have ended yet
    files = feed([videos[0]] * 6, VIEW, 1)
    found = [next(seen for seen in files if seen is not None)]
    (worker,) = set(multiprocessing.active_children()) - set(others)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(1)  # as long as a device may be busy, and long enough for the pool to see it
    found += [seen for seen in files if seen is not None]
    assert sorted(seen.place for seen in found) == list(range(6))
    assert all(seen.clip is not None for seen in found)


def test_no_worker_is_started_for_files_that_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_pool", lambda workers: pytest.fail(f"{workers} workers were started"))
    found = seen_by([tmp_path / "a.mp4", tmp_path / "b.mp4"], 2)
    assert all("cannot be opened" in str(seen.fault) for seen in found)


def test_an_error_that_nobody_foresaw_is_a_fault_of_its_file(videos: list[Path], monkeypatch: pytest.MonkeyPatch):
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("by a frame rate of 0")

    monkeypatch.setattr(module, "read_clip", fail)
    found = seen_by(videos[:2], 0)
    assert all("ZeroDivisionError in reading it (by a frame rate of 0)" in str(seen.fault) for seen in found)


def test_a_sheet_holds_the_frames_in_rows():
    shades_FYXC = np.repeat(np.arange(8, dtype=np.uint8) * 30, 56 * 56 * 3).reshape(8, 56, 56, 3)
    sheet = Image.open(io.BytesIO(contact_sheet(shades_FYXC, side=16)))
    assert sheet.size == (6 * 16, 2 * 16)
    for frame in range(8):
        row, column = divmod(frame, 6)
        shade = sheet.getpixel((column * 16 + 8, row * 16 + 8))
        # WebP at quality 60 blurs flat squares by a few levels
        np.testing.assert_allclose(shade, frame * 30, atol=12)
