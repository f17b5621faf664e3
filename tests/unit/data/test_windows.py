"""Windows: the right frames of each, in one pass, whatever is missing."""

from pathlib import Path

import numpy as np
import pytest

from tests import clips
from vqathinker_jax.data import windows as module
from vqathinker_jax.data.windows import Span, read_windows
from vqathinker_jax.records import Clip, InputError, VideoError

RATE = 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 numbered frames, ten a second, with key frames now and then and B-frames between."""
    path = tmp_path_factory.mktemp("video") / "long.mkv"
    return clips.write(path, 50, rate=RATE, options=clips.OPEN_GOP)


def seen(video: Path, span: Span, frames: int = 4) -> list[tuple[float, list[int]]]:
    """When each window begins, and the numbers on its frames, which must be those it speaks of."""
    found = []
    for start_s, clip in read_windows(video, frames, 48, span):
        numbers = clips.numbers(clip.frames_FYXC)
        assert numbers == list(clip.indices)
        np.testing.assert_allclose(clip.times_s, np.array(numbers) / RATE, atol=1e-3)  # mkv keeps milliseconds
        found.append((round(start_s, 3), numbers))
    return found


def test_windows_follow_one_another_and_reach_the_end(video: Path):
    assert seen(video, Span(2.0)) == [
        (0.0, [2, 7, 12, 16]),
        (2.0, [22, 27, 32, 36]),
        (2.9, [31, 36, 41, 45]),
    ]


def test_windows_may_overlap(video: Path):
    found = seen(video, Span(2.0, 0.5))
    assert [start_s for start_s, _ in found] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 2.9]
    for start_s, numbers in found:
        assert all(start_s - 1e-3 <= number / RATE < start_s + 2.0 for number in numbers)


def test_a_window_longer_than_the_video_is_the_video(video: Path):
    assert [start_s for start_s, _ in seen(video, Span(60.0))] == [0.0]


def test_a_window_between_two_frames_has_one(video: Path):
    assert all(len(set(numbers)) == 1 for _, numbers in seen(video, Span(0.05, 1.0)))


def test_only_frames_that_are_wanted_are_ever_converted(video: Path, monkeypatch: pytest.MonkeyPatch):
    converted, upright_rgb = [], module.upright_rgb
    monkeypatch.setattr(module, "upright_rgb", lambda frame: converted.append(frame.pts) or upright_rgb(frame))
    found = seen(video, Span(2.0, 1.0))
    assert len(converted) == len(set(converted)) == len({number for _, numbers in found for number in numbers})


def test_windows_come_before_the_rest_is_decoded(video: Path):
    reader = read_windows(video, 4, 48, Span(1.0))
    start_s, clip = next(reader)
    assert (start_s, isinstance(clip, Clip)) == (0.0, True)
    reader.close()


def test_damage_is_said_by_the_window_that_has_it(tmp_path: Path):
    video = clips.write(tmp_path / "long.mp4", 50, rate=RATE, options=clips.OPEN_GOP)
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) // 2
    content[middle : middle + 400] = b"\0" * 400
    video.write_bytes(content)
    found = list(read_windows(video, 4, 48, Span(1.0)))
    assert [start_s for start_s, _ in found] == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.9])
    assert not found[0][1].health
    assert any("frames could not be decoded" in clip.health[0] for _, clip in found if clip.health)
    assert all(len(clip.frames_FYXC) == 4 for _, clip in found if clip.indices)


def test_damage_between_the_frames_of_a_window_is_said_too(tmp_path: Path):
    """Of 50 frames a second two are taken, and what is spoiled lies between them."""
    video = clips.write(tmp_path / "long.mp4", 100, rate=50, options=clips.OPEN_GOP)
    content = bytearray(video.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    middle = start + (end - start) * 5 // 8
    content[middle : middle + 200] = b"\0" * 200
    video.write_bytes(content)
    (_, first), (_, second) = read_windows(video, 2, 48, Span(1.0))
    assert not first.health
    assert any("parts of the file are missing or have errors" in sentence for sentence in second.health)


def test_a_file_cut_off_says_so_in_every_window(video: Path, tmp_path: Path):
    content = video.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    found = list(read_windows(tmp_path / "cut.mkv", 4, 48, Span(1.0)))
    assert found
    assert all("parts of the file are missing" in clip.health[-1] for _, clip in found)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("x.png", b"x", "a picture has no windows"),
        ("gone.mp4", None, "no such file"),
        ("empty.mp4", b"", "an empty file"),
        ("text.mp4", b"not a video", "holds text"),
    ],
)
def test_what_has_no_windows_is_refused(tmp_path: Path, name: str, content: bytes | None, fault: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=fault):
        list(read_windows(tmp_path / name, 4, 48, Span(1.0)))


@pytest.mark.parametrize(
    "span",
    [
        (0.0, 1.0),
        (-1.0, 1.0),
        (1.0, -1.0),
        (float("nan"), 1.0),
        (1.0, float("inf")),
        (float("inf"), 0.0),
        (10.0, 0.05),
        (1e-9, 0.0),
    ],
)
def test_spans_that_cannot_be_are_refused(span: tuple[float, float]):
    with pytest.raises(InputError, match=r"give finite seconds above 0|give 0\.1 or more|give 0\.01 or more"):
        Span(*span)
