"""Small videos whose frames carry their own number, so that a test can read back which frame it was given.

In: how many frames, and the codec and container to keep them in. Out: a file. Eight bars across the upper half
spell the number in black and white, most significant bit first; the lower half holds the complement.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

BITS = 8
WIDTH, HEIGHT = 64, 48

OPEN_GOP = {"preset": "superfast", "bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
HEVC = {"preset": "ultrafast", "x265-params": "bframes=3:keyint=12:open-gop=1:log-level=none"}
MPEG = {"bf": "2", "g": "12"}
VPX = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
FAST = {"preset": "ultrafast"}
MOOV_IN_FRONT: dict[str, Any] = {"container_options": {"movflags": "faststart"}}

# What `write` needs for each codec and container, by file name.
CONTAINERS: dict[str, dict[str, Any]] = {
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
    "mjpeg.mkv": {"codec": "mjpeg", "pixels": "yuvj420p"},
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


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return the uint8 RGB picture [Y,X,C] of frame `number` (0..255)."""
    bits = np.array([number >> (BITS - 1 - bit) & 1 for bit in range(BITS)], bool)
    bars_YX = np.where(np.stack([bits, ~bits]), 224, 32).astype(np.uint8)
    grey_YX = bars_YX[np.arange(height) * 2 // height][:, np.arange(width) * BITS // width]
    return np.repeat(grey_YX[..., None], 3, axis=2)


def number(frame_YXC: np.ndarray) -> int:
    """Return the number that a frame carries.

    Raises:
        AssertionError: the halves disagree: the picture is damaged, turned or blended from two.
    """
    height, width = frame_YXC.shape[:2]
    luma_YX = frame_YXC.mean(axis=2).reshape(2, height // 2, BITS, width // BITS)
    upper, lower = luma_YX.mean(axis=(1, 3)) > 128
    assert (upper != lower).all(), "not a whole barcode"
    return int(sum(int(bit) << (BITS - 1 - place) for place, bit in enumerate(upper)))


def numbers(frames_FYXC: np.ndarray) -> list[int]:
    """Return the numbers that frames carry, in their order."""
    return [number(frame_YXC) for frame_YXC in frames_FYXC]


def write(
    path: Path,
    frames: int | Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    rate: int = 24,
    times_ms: Sequence[int] | None = None,
    colour: dict[str, int] | None = None,
    audio: bool = False,
) -> Path:
    """Write a video of `frames` numbered pictures, or of the RGB pictures given, and return its path.

    times_ms gives each frame its own presentation time; colour holds attributes to tag every frame with; audio
    interleaves a tone as long as the video.
    """
    pictures = [picture(n) for n in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(video, VideoStream)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = pixels
        if times_ms is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        tone = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for position, picture_YXC in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_YXC)).reformat(format=pixels)
            for name, value in (colour or {}).items():
                setattr(frame, name, value)
            frame.pts = position if times_ms is None else times_ms[position]
            frame.time_base = Fraction(1, rate if times_ms is None else 1000)
            container.mux(video.encode(frame))
            if tone is not None:
                container.mux(tone.encode(_tone(position, rate)))
        container.mux(video.encode(None))
        if tone is not None:
            container.mux(tone.encode(None))
    return path


def write_audio(path: Path, seconds: int = 1) -> Path:
    """Write a file that holds a tone and no picture, and return its path."""
    with av.open(str(path), "w") as container:
        tone = container.add_stream("aac", rate=16000, layout="mono")
        for second in range(seconds):
            container.mux(tone.encode(_tone(second, 1)))
        container.mux(tone.encode(None))
    return path


def _tone(position: int, rate: int) -> av.AudioFrame:
    """Return the piece of a 440 Hz tone that sounds while frame `position` is shown."""
    samples = np.arange(position * 16000 // rate, (position + 1) * 16000 // rate)
    wave = (0.3 * np.sin(2 * np.pi * 440 * samples / 16000)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16000, int(samples[0]), Fraction(1, 16000)
    return frame


def set_edit(path: Path, first: int, last: int, rate: int = 24) -> Path:
    """Rewrite an mp4's edit list so that only frames `first` up to and including `last` are shown."""
    data = bytearray(path.read_bytes())
    movie_scale, track_scale = (_u32(data, data.index(box) + 16) for box in (b"mvhd", b"mdhd"))
    entry = data.index(b"elst") + 4
    version, count = data[entry], _u32(data, entry + 4)
    assert (version, count) == (0, 1), "an edit list of another shape than this writer's"
    delay = struct.unpack_from(">i", data, entry + 12)[0]
    struct.pack_into(">I", data, entry + 8, (last + 1 - first) * movie_scale // rate)
    struct.pack_into(">i", data, entry + 12, delay + first * track_scale // rate)
    path.write_bytes(data)
    return path


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Rewrite an mp4's display matrix (a, b, c, d): a player shows pixel (x, y) at (a·x + c·y, b·x + d·y)."""
    a, b, c, d = (65536 * value for value in matrix)
    data = bytearray(path.read_bytes())
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def _u32(data: bytearray, offset: int) -> int:
    return struct.unpack_from(">I", data, offset)[0]
