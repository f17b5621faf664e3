"""A video file goes in; the right frames by presentation time come out, whatever the container and the damage.

A long video is read by seeking, provided that every frame that arrives is the one expected by its time. Any other is
decoded from end to end, and again if not as many frames come out as its packets promised, so that the frames are drawn
from those that exist. Only the frames asked for are ever kept.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image

from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.packets import Survey, opened, survey
from vqathinker_jax.records import Clip, VideoError

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
INTERLACED = "interlaced, shown without deinterlacing"

# Fewer frames than packets are damage in these only: VP8 and MPEG-4 have packets that show nothing, as fields have.
FRAME_A_PACKET = {"h264", "hevc", "av1", "libdav1d", "mjpeg", "mpeg2video"}

# A seek costs about as much as decoding SEEK_COST frames. What is jumped over is never decoded, so damage there goes
# unseen: seek only where that spares at least WORTH_SEEKING frames.
SEEK_COST = 32
WORTH_SEEKING = 256


def decode(path: Path, frames: int) -> Clip:
    """Return `frames` frames, drawn by the sampling rule from all that can be decoded; uint8 RGB [F,Y,X,C], upright.

    Raises:
        VideoError: nothing can be decoded.
    """
    packets = survey(path)
    try:
        reading = _read_by_seeking(path, packets, frames) or _read_to_the_end(path, packets, frames)
    except FFmpegError as error:  # of the conversion to RGB; what decoding raises is counted
        raise VideoError(f"{path}: its pictures cannot be shown ({error.strerror}); convert it to H.264") from None
    times_s = packets.times_s(reading.pts)
    return Clip(
        reading.frames_FYXC,
        reading.indices,
        tuple(times_s[index] for index in reading.indices),
        (*_damage(packets, reading), *reading.notes),
    )


@dataclass
class _Reading:
    """The frames asked for, gathered as they come, with the time of every frame seen and what was noted on the way."""

    indices: tuple[int, ...]
    frames_FYXC: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    pts: list[int | None] = field(default_factory=list)
    faults: int = 0
    notes: dict[str, None] = field(default_factory=dict)  # an ordered set

    def take(self, frame: av.VideoFrame) -> None:
        """Count a frame as the next, and keep it if it was asked for; only then is it converted."""
        slots = [slot for slot, index in enumerate(self.indices) if index == len(self.pts)]
        self.pts.append(frame.pts)
        if not slots:
            return
        frame_YXC = upright_rgb(frame)
        if not len(self.frames_FYXC):
            self.frames_FYXC = np.empty((len(self.indices), *frame_YXC.shape), np.uint8)
        height, width = self.frames_FYXC.shape[1:3]
        if frame_YXC.shape[:2] != (height, width):
            self.notes[f"the picture's size changes; all frames are shown at {width}x{height}"] = None
            frame_YXC = np.asarray(Image.fromarray(frame_YXC).resize((width, height), Image.Resampling.BICUBIC))
        if frame.color_trc in HDR_TRANSFERS:
            self.notes[f"HDR ({HDR_TRANSFERS[frame.color_trc]}) shown without tone mapping"] = None
        if frame.interlaced_frame:
            self.notes[INTERLACED] = None
        self.frames_FYXC[slots] = frame_YXC


def _read_by_seeking(path: Path, packets: Survey, frames: int) -> _Reading | None:
    """Decode only what leads up to the frames asked for; None if that spares little or anything is not as expected."""
    if not packets.seekable or packets.at_fault:
        return None
    reading = _Reading(sample_indices(packets.count - 1, frames))
    stretches = _stretches(packets.keys, reading.indices)
    if packets.count - sum(last + 1 - first for first, last in stretches) < WORTH_SEEKING:
        return None
    with opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for first, last in stretches:
            if first > 0:
                with suppress(FFmpegError):
                    container.seek(packets.pts[first], stream=stream)
            # What lies between is known by its packets alone.
            reading.pts += packets.pts[len(reading.pts) : first]
            if not _take_stretch(reading, decoded(container, stream), packets.pts[: last + 1]):
                return None
    reading.pts += packets.pts[len(reading.pts) :]
    return reading


def _take_stretch(reading: _Reading, arriving: Iterator[av.VideoFrame | None], pts: list[int]) -> bool:
    """Take frames up to the last of pts, the times of all frames so far; False once another than the next arrives."""
    first = len(reading.pts)
    for frame in arriving:
        if frame is not None and frame.pts is not None and frame.pts < pts[first]:
            continue  # the seek went further back, or this leads the key frame and refers to what lies before it
        if frame is None or frame.is_corrupt or frame.pts != pts[len(reading.pts)]:
            return False
        if len(reading.pts) == first > 0 and not frame.key_frame:
            return False
        reading.take(frame)
        if len(reading.pts) == len(pts):
            return True
    return False


def _stretches(keys: list[int], places: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the first and last place of each run of frames to decode, the first a key frame's, to reach all places."""
    stretches: list[tuple[int, int]] = []
    for place in places:
        key = keys[bisect_right(keys, place) - 1]
        if stretches and key <= stretches[-1][1] + SEEK_COST:
            stretches[-1] = (stretches[-1][0], place)
        else:
            stretches.append((key, place))
    return stretches


def _read_to_the_end(path: Path, packets: Survey, frames: int) -> _Reading:
    """Decode the whole file, until the frames asked for are drawn from exactly those that come out.

    Raises:
        VideoError: none comes out.
    """
    # Frame threads swallow sound frames next to a fault, so a file at fault is read by one thread.
    count, threads = packets.count, not packets.at_fault
    while True:
        reading = _Reading(sample_indices(count - 1, frames))
        with opened(path) as (container, stream):
            if threads:
                stream.thread_type = "AUTO"
            else:
                stream.codec_context.thread_count = 1
            for frame in decoded(container, stream):
                reading.faults += frame is None or frame.is_corrupt
                if frame is not None:
                    reading.take(frame)
        if len(reading.pts) == count and not (threads and reading.faults):
            return reading
        if not threads and not reading.pts:
            raise VideoError(f"{path}: no frame could be decoded; export or download it again")
        count, threads = max(len(reading.pts), 1), False


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """Yield the frames from here on in the order of presentation, and None for each packet that cannot be decoded."""
    for packet in _packets(container, stream):
        try:
            frames = stream.codec_context.decode(packet)
        except FFmpegError:
            yield None
        else:
            yield from frames


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """Yield the packets that can be read, then None, at which the decoder hands out what it still holds."""
    with suppress(FFmpegError):
        # An empty packet would end the decoding there and then.
        yield from (packet for packet in container.demux(stream) if packet.size)
    yield None


def upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame as uint8 RGB [Y,X,C], turned and flipped as its display matrix says.

    By the scale filter, not `frame.reformat`, which differs from decord for odd heights and from decord2 above 8 bit.
    """
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("scale"), graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    frame_YXC = graph.vpull().to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return frame_YXC
    x_to_x, x_to_y, _, y_to_x, y_to_y, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(x_to_y) > abs(x_to_x):
        frame_YXC = frame_YXC.swapaxes(0, 1)
        x_to_x, y_to_y = y_to_x, x_to_y
    return frame_YXC[:: -1 if y_to_y < 0 else 1, :: -1 if x_to_x < 0 else 1]


def _damage(packets: Survey, reading: _Reading) -> tuple[str, ...]:
    """Return what is wrong with the file in a sentence, if anything is."""
    count = len(reading.pts)
    whole = INTERLACED in reading.notes or packets.codec not in FRAME_A_PACKET or count >= packets.count
    if whole and not packets.at_fault and not reading.faults:
        return ()
    if count < packets.promised:
        return (f"damaged: {count} of {packets.promised} frames could be decoded",)
    return (f"damaged: {count} frames could be decoded, others are missing or have errors",)
