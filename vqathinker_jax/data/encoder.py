"""uint8 RGB frames go in; H.264 comes out, as a file or as what a player would show of it."""

from io import BytesIO
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

RATE = 12
"""Frames a second of every file."""


def write(target: Path | BytesIO, frames_FYXC: np.ndarray, crf: float, preset: str = "ultrafast") -> None:
    """Write uint8 RGB frames [F,Y,X,C] of even height and width as mp4, by x264 at a constant rate factor (0..51)."""
    options = {"crf": f"{crf:.2f}", "preset": preset}
    with av.open(target if isinstance(target, BytesIO) else str(target), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames_FYXC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_YXC in frames_FYXC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YXC)))
        container.mux(stream.encode(None))


def compressed(frames_FYXC: np.ndarray, crf: float) -> np.ndarray:
    """Return uint8 RGB frames [F,Y,X,C] as they look after x264 at this constant rate factor."""
    file = BytesIO()
    # Slower presets do not give the same stream every time: they look ahead over memory that nothing has filled.
    write(file, frames_FYXC, crf, preset="superfast")
    file.seek(0)
    with av.open(file) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])  # pyright: ignore[reportAttributeAccessIssue]
