"""Reading videos: the right frames by presentation time from every container, and a plain word where a file is bad.

Every frame carries its number (tests/clips.py), so a test reads back which frame it was given.
"""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import InvalidDataError
from av.stream import Disposition
from PIL import Image

from tests import clips
from vqathinker_jax.data import decoder, packets
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.video import READERS, read_clip
from vqathinker_jax.records import InputError, VideoError

FRAMES = 12
COUNT = 48
OPEN_GOP = {"preset": "superfast", "bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
HEVC = {"preset": "ultrafast", "x265-params": "bframes=3:keyint=12:open-gop=1:log-level=none"}
MPEG = {"bf": "2", "g": "12"}
VPX = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
FAST = {"preset": "ultrafast"}
MOOV_IN_FRONT = {"container_options": {"movflags": "faststart"}}
HDR = {"colorspace": "bt2020nc", "color_primaries": "bt2020"}

CONTAINERS = {
    "plain.mp4": {"options": FAST},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "open_gop.mov": {"options": OPEN_GOP},
    "open_gop.flv": {"options": OPEN_GOP},
    "h264.avi": {"options": OPEN_GOP},
    "raw.h264": {"options": OPEN_GOP},
    "fragmented.mp4": {"options": OPEN_GOP, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "intra_refresh.mp4": {"options": {"preset": "superfast", "x264-params": "intra-refresh=1:keyint=15"}},
    "audio.mp4": {"options": OPEN_GOP, "audio": True},
    "audio.mkv": {"options": OPEN_GOP, "audio": True},
    "audio.ts": {"options": OPEN_GOP, "audio": True},
    "mpeg4.avi": {"codec": "mpeg4", "options": MPEG},
    "mpeg4.mp4": {"codec": "mpeg4", "options": MPEG},
    "mpeg2.ts": {"codec": "mpeg2video", "options": MPEG},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": MPEG},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp8.webm": {"codec": "libvpx", "options": VPX},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VPX},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "av1.webm": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "hevc.ts": {"codec": "libx265", "options": HEVC},
    "hevc_10_bit.mp4": {"codec": "libx265", "options": HEVC, "pixels": "yuv420p10le"},
    "h264_10_bit.mp4": {"options": FAST, "pixels": "yuv422p10le"},
}


def decoded(path: Path) -> list[np.ndarray]:
    """Return every frame that one thread can decode, packet by packet."""
    found = []
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        for packet in container.demux(container.streams.video[0]):
            try:
                found += [frame.to_ndarray(format="rgb24") for frame in context.decode(packet)]
            except InvalidDataError:
                continue
    return found


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


def test_only_frames_asked_for_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    upright_rgb, converted = decoder._upright_rgb, []
    monkeypatch.setattr(decoder, "_upright_rgb", lambda frame: converted.append(frame.pts) or upright_rgb(frame))
    read_clip(clips.write(tmp_path / "clip.mp4", COUNT, options=OPEN_GOP), FRAMES)
    assert len(converted) == FRAMES


class TestSeeking:
    """A long video is read by seeking, to the very frames that decoding all of it gives."""

    COUNT = 600

    @pytest.fixture(params=["open_gop.mp4", "open_gop.mkv", "hevc.mp4", "vp9.webm"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        pictures = [clips.picture(n % 256) for n in range(self.COUNT)]
        made = CONTAINERS[request.param]
        return clips.write(tmp_path / request.param, pictures, **made | {"options": made["options"] | {"g": "12"}})

    def test_gives_the_frames_that_decoding_all_gives(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(decoder, "_read_to_the_end", lambda *_: pytest.fail("decoded to the end"))
        sought = read_clip(path, FRAMES)
        monkeypatch.undo()
        monkeypatch.setattr(decoder, "_read_by_seeking", lambda *_: None)
        decoded = read_clip(path, FRAMES)
        assert clips.numbers(sought.frames_FYXC) == [index % 256 for index in sample_indices(self.COUNT - 1, FRAMES)]
        assert np.array_equal(sought.frames_FYXC, decoded.frames_FYXC)
        assert (sought.indices, sought.times_s, sought.health) == (decoded.indices, decoded.times_s, decoded.health)

    @pytest.mark.parametrize("lie", ["keys", "times"])
    def test_what_arrives_is_checked(self, path: Path, lie: str, monkeypatch: pytest.MonkeyPatch):
        def survey(path: Path) -> packets.Survey:
            told = packets.survey(path)
            if lie == "keys":
                return replace(told, keys=list(range(self.COUNT)))
            return replace(told, pts=[pts + 1 for pts in told.pts])

        monkeypatch.setattr(decoder, "survey", survey)
        clip = read_clip(path, FRAMES)
        assert clips.numbers(clip.frames_FYXC) == [index % 256 for index in sample_indices(self.COUNT - 1, FRAMES)]


class TestDamage:
    """A damaged file is read as far as it goes, and the frames are drawn from those that exist."""

    CUT = ("plain.mp4", "hevc.mp4", "av1.mp4", "open_gop.mkv", "vp9.webm", "mjpeg.avi", "open_gop.ts", "mpeg2.ts")

    @pytest.mark.parametrize("name", CUT)
    def test_cut_off(self, tmp_path: Path, name: str):
        made = CONTAINERS[name] | (MOOV_IN_FRONT if name.endswith("mp4") else {})
        whole = clips.write(tmp_path / name, COUNT, **made).read_bytes()
        path = tmp_path / f"cut_{name}"
        path.write_bytes(whole[: len(whole) * 7 // 10 | 1])  # odd, so within a transport packet
        self.check(path)

    @pytest.mark.parametrize("name", ["plain.mp4", "open_gop.mp4", "hevc.mp4", "av1.mp4", "mpeg4.mp4"])
    @pytest.mark.parametrize("fill", ["zeros", "noise"])
    def test_overwritten(self, tmp_path: Path, name: str, fill: str):
        noise = np.random.default_rng(0)
        pictures = [clips.picture(n, 160, 96) + noise.integers(0, 24, (96, 160, 3), np.uint8) for n in range(COUNT)]
        path = clips.write(tmp_path / name, pictures, **CONTAINERS[name] | MOOV_IN_FRONT)
        data = bytearray(path.read_bytes())
        frames = len(data) - data.index(b"mdat")
        start, size = len(data) - frames // 2, frames // 12
        data[start : start + size] = bytes(size) if fill == "zeros" else noise.bytes(size)
        path.write_bytes(data)
        self.check(path)

    @pytest.mark.parametrize("name", ["open_gop.ts", "hevc.ts"])
    def test_begun_between_key_frames(self, tmp_path: Path, name: str):
        whole = clips.write(tmp_path / name, COUNT, **CONTAINERS[name]).read_bytes()
        path = tmp_path / f"late_{name}"
        # The programme's tables in front, then whole packets of 188 bytes from a third of the way on.
        path.write_bytes(whole[: 4 * 188] + whole[len(whole) // 188 // 3 * 188 :])
        self.check(path)

    def check(self, path: Path) -> None:
        exist = decoded(path)
        assert 1 < len(exist) <= COUNT
        clip = read_clip(path, FRAMES)
        assert clip.indices == sample_indices(len(exist) - 1, FRAMES)
        assert np.array_equal(clip.frames_FYXC, [exist[index] for index in clip.indices])
        (sentence,) = clip.health
        found = re.fullmatch(r"damaged: (\d+) (?:of (\d+) )?frames could be decoded(, others are .*)?", sentence)
        assert found, sentence
        assert int(found[1]) == len(exist)
        assert found[2] or found[3]
        if path.name.startswith("cut") and path.suffix != ".ts":
            assert found[2] == str(COUNT)

    def test_nothing_is_printed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
        path = clips.write(tmp_path / "clip.ts", COUNT, options=OPEN_GOP)
        path.write_bytes(path.read_bytes()[188 * 8 : -500])
        assert read_clip(path, FRAMES).health
        assert capfd.readouterr() == ("", "")


def test_audio_that_outlasts_the_video_is_no_damage(tmp_path: Path):
    path = tmp_path / "clip.mkv"
    whole = clips.write(path, COUNT, options=FAST, audio=True)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "longer.mkv"), "w") as longer:
        copies = {stream.index: longer.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            video = packet.stream.type == "video"
            if packet.dts is not None and not (video and (packet.pts or 0) > 1000):
                packet.stream = copies[packet.stream.index]
                longer.mux(packet)
    assert read_clip(tmp_path / "longer.mkv", FRAMES).health == ()


def test_pictures_of_two_sizes_are_shown_at_the_first(tmp_path: Path):
    small = clips.write(tmp_path / "small.ts", 24, options=OPEN_GOP)
    large = clips.write(tmp_path / "large.ts", [clips.picture(24 + n, 96, 64) for n in range(24)], options=OPEN_GOP)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    clip = read_clip(both, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == list(sample_indices(COUNT - 1, FRAMES))
    assert "the picture's size changes; all frames are shown at 64x48" in clip.health


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_named(tmp_path: Path, transfer: str):
    path = clips.write(tmp_path / "clip.mp4", 4, options=FAST | HDR | {"color_trc": transfer}, pixels="yuv420p10le")
    assert read_clip(path, FRAMES).health == (f"HDR ({transfer}) shown without tone mapping",)


def test_interlaced_is_named(tmp_path: Path):
    options = {"preset": "superfast", "flags": "+ildct+ilme", "x264-params": "interlaced=1"}
    clip = read_clip(clips.write(tmp_path / "clip.mp4", COUNT, options=options), FRAMES)
    assert clip.health == ("interlaced, shown without deinterlacing",)
    assert clips.numbers(clip.frames_FYXC) == list(clip.indices)


class TestPictures:
    @pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp"])
    @pytest.mark.parametrize("decoder", READERS)
    def test_a_picture_is_copies_of_itself(self, tmp_path: Path, suffix: str, decoder: str):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(clips.picture(77)).save(path)
        clip = read_clip(path, 6, decoder)
        assert clips.numbers(clip.frames_FYXC) == [77] * 6
        assert clip.indices == (0,) * 6
        assert clip.times_s == (0.0,) * 6
        assert clip.health == ()

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


def test_any_file_name_will_do(tmp_path: Path):
    path = clips.write(tmp_path / "http:100%d é.mp4", 4, options=FAST)
    assert clips.numbers(read_clip(str(path), 4).frames_FYXC) == [0, 1, 2, 2]
