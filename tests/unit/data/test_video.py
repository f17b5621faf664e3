"""Reading clips: the right frames of every container by either decoder, pictures, and a plain word for bad input.

Every frame carries its number (tests/clips.py), so a test reads back which frame it was given.
"""

import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from tests import clips
from tests.clips import CONTAINERS, FAST, OPEN_GOP
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.video import READERS, read_clip
from vqathinker_jax.records import InputError, VideoError

FRAMES = 12
COUNT = 48


@pytest.mark.parametrize("name", CONTAINERS)
def test_right_frames_of_every_container(tmp_path: Path, name: str):
    clip = read_clip(clips.write(tmp_path / name, COUNT, **CONTAINERS[name]), FRAMES)
    assert clip.indices == sample_indices(COUNT - 1, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == list(clip.indices)
    assert clip.frames_FYXC.shape == (FRAMES, clips.HEIGHT, clips.WIDTH, 3)
    assert clip.frames_FYXC.dtype == np.uint8
    # Some containers keep times in whole milliseconds.
    assert clip.times_s == pytest.approx([index / 24 for index in clip.indices], abs=1.1e-3)
    assert clip.health == ()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_keeps_its_times(tmp_path: Path, suffix: str):
    times_ms = np.cumsum(np.random.default_rng(0).integers(10, 120, COUNT)).tolist()
    path = clips.write(tmp_path / f"clip.{suffix}", COUNT, options=OPEN_GOP, times_ms=times_ms)
    clip = read_clip(path, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == list(sample_indices(COUNT - 1, FRAMES))
    assert clip.times_s == pytest.approx([(times_ms[i] - times_ms[0]) / 1000 for i in clip.indices], abs=1.1e-3)
    assert clip.health == ()


@pytest.mark.parametrize(("first", "last"), [(7, 40), (20, 47), (0, 20), (13, 14), (5, 5)])
def test_frames_outside_the_edit_list_do_not_count(tmp_path: Path, first: int, last: int):
    path = clips.set_edit(clips.write(tmp_path / "clip.mp4", COUNT, options=OPEN_GOP), first, last)
    clip = read_clip(path, FRAMES)
    assert clip.indices == sample_indices(last - first, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == [first + index for index in clip.indices]
    assert clip.times_s == pytest.approx([index / 24 for index in clip.indices])
    assert clip.health == ()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("decoder", READERS)
def test_fewer_frames_than_asked_for_are_repeated(tmp_path: Path, count: int, decoder: str):
    if decoder == "decord":
        pytest.importorskip("decord")
    clip = read_clip(clips.write(tmp_path / "clip.mp4", count, options=FAST), FRAMES, decoder)
    assert clip.indices == sample_indices(count - 1, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == list(clip.indices)


MATRICES = {  # how a player shows the stored picture
    "quarter turn": ((0, -1, 1, 0), lambda shown: np.rot90(shown, -1)),
    "half turn": ((-1, 0, 0, -1), lambda shown: np.rot90(shown, 2)),
    "three quarters": ((0, 1, -1, 0), np.rot90),
    "mirror": ((-1, 0, 0, 1), np.fliplr),
    "mirrored turn": ((0, 1, 1, 0), lambda shown: shown.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", MATRICES)
def test_frames_are_upright(tmp_path: Path, turn: str):
    matrix, stored = MATRICES[turn]
    pictures = [stored(clips.picture(n, 48, 96)) for n in range(COUNT)]
    path = clips.set_matrix(clips.write(tmp_path / "clip.mp4", pictures, options=FAST), matrix)
    clip = read_clip(path, FRAMES)
    assert clip.frames_FYXC.shape == (FRAMES, 96, 48, 3)
    assert clips.numbers(clip.frames_FYXC) == list(clip.indices)


class TestPictures:
    @pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp", "tif", "TIFF"])
    @pytest.mark.parametrize("decoder", READERS)
    def test_a_picture_is_copies_of_itself(self, tmp_path: Path, suffix: str, decoder: str):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(clips.picture(77)).save(path)
        clip = read_clip(path, 6, decoder)
        assert clips.numbers(clip.frames_FYXC) == [77] * 6
        assert clip.indices == (0,) * 6
        assert clip.times_s == (0.0,) * 6
        assert clip.health == ()

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "lzw.tiff"])
    def test_a_picture_that_is_cut_off_is_refused_in_one_line(
        self, tmp_path: Path, suffix: str, recwarn: pytest.WarningsRecorder
    ):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(clips.picture(77)).save(path, compression="tiff_lzw" if "lzw" in suffix else None)
        whole = path.read_bytes()
        for length in (30, len(whole) // 3, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:length])
            with pytest.raises(
                VideoError, match=r"picture\..*: not a readable picture \(.*\); export it again$"
            ) as error:
                read_clip(path, 2)
            assert "\n" not in str(error.value)
        assert not recwarn.list

    def test_a_picture_is_upright(self, tmp_path: Path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned a quarter clockwise
        Image.fromarray(np.rot90(clips.picture(77, 48, 96))).save(tmp_path / "picture.jpg", exif=exif)
        assert clips.numbers(read_clip(tmp_path / "picture.jpg", 2).frames_FYXC) == [77, 77]


class TestDecord:
    @pytest.mark.parametrize(
        "made",
        [
            {"options": {"preset": "superfast"}},
            {"options": {"preset": "superfast"}, "audio": True},
            {"options": {"preset": "superfast", "colorspace": "bt709", "color_primaries": "bt709"}},
            {"options": FAST, "pixels": "yuvj420p"},
            {"options": FAST, "pixels": "yuv444p"},
        ],
        ids=["b frames", "audio", "bt709", "full range", "444"],
    )
    def test_equal_bytes_on_ordinary_mp4(self, tmp_path: Path, made: dict):
        pytest.importorskip("decord")
        noise = np.random.default_rng(0)
        pictures = [noise.integers(0, 256, (90, 134, 3), np.uint8) for _ in range(30)]
        path = clips.write(tmp_path / "clip.mp4", pictures, **made)
        ours, theirs = read_clip(path, FRAMES), read_clip(path, FRAMES, "decord")
        assert np.array_equal(ours.frames_FYXC, theirs.frames_FYXC)
        assert ours.indices == theirs.indices
        assert ours.times_s == pytest.approx(theirs.times_s, abs=1e-5)

    def test_what_it_cannot_read_names_the_other_decoder(self, tmp_path: Path):
        pytest.importorskip("decord")
        path = clips.write(tmp_path / "clip.mp4", COUNT, **CONTAINERS["av1.mp4"])
        with pytest.raises(VideoError, match=r"clip\.mp4: decord cannot decode it; use --decoder pyav"):
            read_clip(path, FRAMES, "decord")

    def test_missing_package_is_a_clear_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = clips.write(tmp_path / "clip.mp4", 1, options=FAST)
        monkeypatch.setitem(sys.modules, "decord", None)
        with pytest.raises(InputError, match="'decord' is not installed here"):
            read_clip(path, FRAMES, "decord")

    def test_is_not_imported_before_it_is_asked_for(self):
        code = "import sys, vqathinker_jax.data.video; sys.exit('decord' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_cover(path: Path) -> Path:
    """Write a song with a cover picture, which ffmpeg counts among the video streams."""
    song = clips.write_audio(path.with_suffix(".mp4"))
    with av.open(str(song)) as source, av.open(str(path), "w", format="mp4") as container:
        tone = container.add_stream_from_template(source.streams.audio[0])
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = clips.WIDTH, clips.HEIGHT, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(clips.picture(3))))
        container.mux(cover.encode(None))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = tone
                container.mux(packet)
    return path


def without_moov(path: Path) -> Path:
    whole = clips.write(path, 4, options=FAST).read_bytes()
    path.write_bytes(whole[: whole.index(b"moov") - 4])
    return path


BAD = {
    "missing.mp4": (lambda path: path, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "a folder"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "an empty file"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 9), "holds text"),
    "subtitles.mp4": (lambda path: path.write_text("1\n00:00:01,000 --> 00:00:02,000\n你好\n"), "holds text"),
    "playlist.mp4": (lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"), "holds text"),
    "audio.mp4": (clips.write_audio, "holds only audio"),
    "cover.m4a": (write_cover, "holds only audio"),
    "cut.mp4": (without_moov, "no moov atom"),
    "noise.mp4": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "in no video format"),
    "picture.jpg": (lambda path: path.write_bytes(bytes(range(256))), "not a readable picture"),
    "deep.png": (lambda path: Image.fromarray(np.full((4, 4), 999, np.uint16)).save(path), "more than 8 bits"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("decoder", READERS)
def test_bad_input_is_one_line_that_names_the_file(tmp_path: Path, name: str, decoder: str):
    make, found = BAD[name]
    make(tmp_path / name)
    if decoder == "decord":
        pytest.importorskip("decord")
    with pytest.raises(VideoError) as error:
        read_clip(tmp_path / name, FRAMES, decoder)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert found in message
    assert re.search("[;:] [^;:]+$", message), "no cure"
    assert "\n" not in message


def test_unknown_decoder_names_those_known(tmp_path: Path):
    with pytest.raises(InputError, match="'ffmpeg' is unknown; choose one of pyav, decord"):
        read_clip(tmp_path / "clip.mp4", FRAMES, "ffmpeg")


def test_any_file_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clips.write(tmp_path / "http:100%d é.mp4", 4, options=FAST)
    monkeypatch.chdir(tmp_path)
    assert clips.numbers(read_clip("http:100%d é.mp4", 4).frames_FYXC) == [0, 1, 2, 2]
