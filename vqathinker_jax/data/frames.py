"""Frames as decoded go in; the frames' places in the video, and the square uint8 pictures the model sees, come out.

The sampling rule and the resize are the reference's. Normalising is the model's, on the device.
"""

import numpy as np
from PIL import Image


def sample_indices(last_frame: int, frames: int) -> tuple[int, ...]:
    """Return the places (0..last_frame) of `frames` frames, one near the middle of each equal stretch of the video.

    Source: VQAThinker's get_index: int(seg/2 + round(seg·i)), where round takes a half to the even neighbour.

    Raises:
        ValueError: the video has no frame, or none is asked for.
    """
    if last_frame < 0 or frames < 1:
        raise ValueError(f"cannot take {frames} frames from {last_frame + 1}: both must be at least 1")
    segment = last_frame / frames
    return tuple(int(segment / 2 + round(segment * i)) for i in range(frames))


def resize(frames_FYXC: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 RGB frames [F,Y,X,C] resized bicubically to size × size pixels, whatever shape they had.

    Source: VQAThinker's dynamic_preprocess with one tile: the aspect ratio is not kept.
    """
    resized_FYXC = np.empty((len(frames_FYXC), size, size, 3), np.uint8)
    for resized_YXC, frame_YXC in zip(resized_FYXC, frames_FYXC, strict=True):
        resized_YXC[:] = np.asarray(Image.fromarray(frame_YXC).resize((size, size), Image.Resampling.BICUBIC))
    return resized_FYXC
