"""Decoding with PyAV: seeking gives what decoding all gives, and a damaged file is read as far as it goes.

Every frame carries its number (tests/clips.py), so a test reads back which frame it was given.
"""

import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import InvalidDataError

from tests import clips
from tests.clips import CONTAINERS, FAST, MOOV_IN_FRONT, OPEN_GOP
from vqathinker_jax.data import decoder, packets
from vqathinker_jax.data.decoder import decode
from vqathinker_jax.data.frames import sample_indices

FRAMES = 12
COUNT = 48
HDR = {"colorspace": "bt2020nc", "color_primaries": "bt2020"}


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


def test_only_frames_asked_for_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    upright_rgb, converted = decoder.upright_rgb, []
    monkeypatch.setattr(decoder, "upright_rgb", lambda frame: converted.append(frame.pts) or upright_rgb(frame))
    decode(clips.write(tmp_path / "clip.mp4", COUNT, options=OPEN_GOP), FRAMES)
    assert len(converted) == FRAMES


class TestSeeking:
    """A long video is read by seeking, to the very frames that decoding all of it gives."""

    COUNT = 600

    @pytest.fixture(params=["open_gop.mp4", "open_gop.mkv", "hevc.mp4", "vp9.webm", "mjpeg.mkv", "wmv2.wmv"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        pictures = [clips.picture(n % 256) for n in range(self.COUNT)]
        made = CONTAINERS[request.param]
        return clips.write(
            tmp_path / request.param, pictures, **made | {"options": made.get("options", {}) | {"g": "12"}}
        )

    def test_gives_the_frames_that_decoding_all_gives(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(decoder, "_read_to_the_end", lambda *_: pytest.fail("decoded to the end"))
        sought = decode(path, FRAMES)
        monkeypatch.undo()
        monkeypatch.setattr(decoder, "_read_by_seeking", lambda *_: None)
        decoded = decode(path, FRAMES)
        assert clips.numbers(sought.frames_FYXC) == [index % 256 for index in sample_indices(self.COUNT - 1, FRAMES)]
        assert np.array_equal(sought.frames_FYXC, decoded.frames_FYXC)
        assert (sought.indices, sought.times_s, sought.health) == (decoded.indices, decoded.times_s, decoded.health)

    def test_times_that_arrive_are_checked(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        def survey(path: Path) -> packets.Survey:
            told = packets.survey(path)
            return replace(told, pts=[pts + 1 for pts in told.pts])

        monkeypatch.setattr(decoder, "survey", survey)
        clip = decode(path, FRAMES)
        assert clips.numbers(clip.frames_FYXC) == [index % 256 for index in sample_indices(self.COUNT - 1, FRAMES)]

    def test_key_frames_are_checked(self, tmp_path: Path):
        pictures = [clips.picture(n % 256) for n in range(self.COUNT)]
        honest = clips.write(tmp_path / "honest.mp4", pictures, codec="mpeg4", options={"g": "12"})
        with av.open(str(honest)) as source, av.open(str(tmp_path / "lying.mp4"), "w") as lying:
            copy = lying.add_stream_from_template(source.streams.video[0])
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream, packet.is_keyframe = copy, True
                    lying.mux(packet)
        clip = decode(tmp_path / "lying.mp4", FRAMES)
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

    def test_overwritten_behind_an_edit_list(self, tmp_path: Path):
        path = clips.set_edit(clips.write(tmp_path / "clip.mp4", COUNT, options=OPEN_GOP | {"crf": "1"}), 7, 40)
        data = bytearray(path.read_bytes())
        middle = (data.index(b"mdat") + data.index(b"moov")) // 2
        data[middle : middle + 400] = bytes(400)
        path.write_bytes(data)
        (sentence,) = decode(path, FRAMES).health
        assert "48" not in sentence

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
        clip = decode(path, FRAMES)
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
        assert decode(path, FRAMES).health
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
    assert decode(tmp_path / "longer.mkv", FRAMES).health == ()


def test_pictures_of_two_sizes_are_shown_at_the_first(tmp_path: Path):
    small = clips.write(tmp_path / "small.ts", 24, options=OPEN_GOP)
    large = clips.write(tmp_path / "large.ts", [clips.picture(24 + n, 96, 64) for n in range(24)], options=OPEN_GOP)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    clip = decode(both, FRAMES)
    assert clips.numbers(clip.frames_FYXC) == list(sample_indices(COUNT - 1, FRAMES))
    assert "the picture's size changes; all frames are shown at 64x48" in clip.health


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_named(tmp_path: Path, transfer: str):
    path = clips.write(tmp_path / "clip.mp4", 4, options=FAST | HDR | {"color_trc": transfer}, pixels="yuv420p10le")
    assert decode(path, FRAMES).health == (f"HDR ({transfer}) shown without tone mapping",)


def test_interlaced_is_named(tmp_path: Path):
    options = {"preset": "superfast", "flags": "+ildct+ilme", "x264-params": "interlaced=1"}
    clip = decode(clips.write(tmp_path / "clip.mp4", COUNT, options=options), FRAMES)
    assert clip.health == ("interlaced, shown without deinterlacing",)
    assert clips.numbers(clip.frames_FYXC) == list(clip.indices)
