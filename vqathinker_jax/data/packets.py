"""A video file goes in; what its packets tell without being decoded comes out.

That is how many frames there are, when each is shown, where decoding can begin, and whether the file is whole.
A container's own count is never taken for the number of frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from vqathinker_jax.records import VideoError

PLAYLISTS = {"concat", "dash", "hls", "imf"}  # they name other files, which need not be the user's to read
TS_PACKET_SIZES = (188, 192, 204)  # a transport stream is whole packets; it has no header to tell its length


@dataclass(frozen=True)
class Survey:
    """What the packets of a video tell.

    codec:    ffmpeg's name for it.
    pts:      presentation times of the frames to be shown, ascending, in units of time_base.
    keys:     places in pts from which decoding can begin: key frames, and the very first.
    count:    packets that should give a frame to be shown.
    promised: how many frames there should be by the header as well.
    rate:     frames a second, for packets that carry no times.
    seekable: times are unique and packets in order, so that a frame can be known by its time alone.
    at_fault: packets are cut or missing.
    """

    codec: str
    pts: list[int]
    keys: list[int]
    count: int
    promised: int
    time_base: Fraction
    rate: Fraction
    seekable: bool
    at_fault: bool

    def times_s(self, pts: list[int | None]) -> list[float]:
        """Return seconds from the first frame of decoded frames' times; by the frame rate if the file keeps none."""
        known = [stamp for stamp in pts if stamp is not None]
        if len(known) < len(pts) or not _grows(known):
            return [float(place / self.rate) for place in range(len(pts))]
        return [float((stamp - known[0]) * self.time_base) for stamp in known]


class _Stamp(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool
    shown: bool


def survey(path: Path) -> Survey:
    """Read all packets of a file and decode none.

    Raises:
        VideoError: the file is no video, or its video holds no packet.
    """
    stamps: list[_Stamp] = []
    begin_s, end_s = float("inf"), 0.0
    with opened(path) as (container, stream):
        at_fault = container.format.name == "mpegts" and all(container.size % size for size in TS_PACKET_SIZES)
        time_base, rate = stream.time_base or Fraction(1), stream.guessed_rate or Fraction(25)
        codec, declared, length = stream.codec_context.name, stream.frames, stream.duration
        # A container's length is that of its longest stream, so it can only be held against all of them.
        header_s = float(length * time_base) if length else (container.duration or 0) / av.time_base
        timed = {stream.index} if length else {s.index for s in (*container.streams.video, *container.streams.audio)}
        try:
            for packet in container.demux():
                if not packet.size:  # only PyAV's mark for the end
                    continue
                shown = not packet.is_discard  # by the edit list
                if packet.stream_index == stream.index:
                    stamps.append(_Stamp(packet.pts, packet.dts, packet.is_keyframe, shown))
                    at_fault |= packet.is_corrupt
                if packet.stream_index in timed and packet.pts is not None and shown:
                    begin_s = min(begin_s, float(packet.pts * packet.time_base))
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except FFmpegError:
            at_fault = True
    count = sum(stamp.shown for stamp in stamps)
    if not count:
        raise VideoError(f"{path}: its video stream is empty; export or download it again")
    # Headers count from the first frame or from zero, and are a few frames off in sound files too.
    missing_s = header_s - max(end_s, end_s - begin_s)
    cut_off = missing_s > 4 * (end_s - begin_s) / count > 0
    dropped = len(stamps) - count
    total = declared - dropped if declared else round((header_s - max(begin_s, 0)) * rate) if cut_off else 0
    in_order = sorted((stamp.pts, stamp.key) for stamp in stamps if stamp.shown and stamp.pts is not None)
    pts = [pts for pts, _ in in_order]
    dts = [stamp.dts for stamp in stamps if stamp.dts is not None]
    return Survey(
        codec=codec,
        pts=pts,
        keys=[place for place, (_, key) in enumerate(in_order) if key or place == 0],
        count=count,
        promised=max(count, total),
        time_base=time_base,
        rate=rate,
        seekable=len(pts) == count and _grows(pts) and _grows(dts),
        at_fault=at_fault or cut_off,
    )


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream.

    Raises:
        VideoError: it is no video, or holds none that can be decoded.
    """
    try:
        # "file:" keeps a colon in the name from being taken for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError:
        with path.open("rb") as file:
            box = file.read(8)[4:]
        if box in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
            raise VideoError(
                f"{path}: no moov atom (an mp4's index) can be read: it was cut off; fetch it again"
            ) from None
        raise VideoError(f"{path}: in no video format known to ffmpeg; check what the file is") from None
    with container:
        if container.format.name in PLAYLISTS:
            raise VideoError(f"{path}: a playlist ({container.format.name}), not a video; name the video itself")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = sorted({s.type for s in container.streams} - {"video"}) or ["a cover picture"]
            raise VideoError(f"{path}: holds only {' and '.join(kinds)}, no video; name a file with video")
        best = container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
        if stream.codec_context is None:
            raise VideoError(f"{path}: ffmpeg has no decoder for its codec; convert it to H.264")
        yield container, stream


def _grows(stamps: list[int]) -> bool:
    return all(before < after for before, after in pairwise(stamps))
