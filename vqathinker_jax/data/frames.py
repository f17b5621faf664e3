"""Frames as decoded go in; the frames' places in the video, and the square uint8 pictures the model sees, come out.

The sampling rule and the resize are the reference's. Normalising is the model's, on the device. A perturbed copy, for
the temporal reward, is told by which frame stands where and which places are blank: nothing is copied until it is used.
"""

from typing import NamedTuple

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


class Perturbation(NamedTuple):
    """A video of F frames put out of order: its place i shows frame `order_F[i]`, or nothing where `blank_F[i]`.

    order_F: int32. blank_F: bool; what stands there is zeros *after* normalising, which is no uint8 colour, so that
    zeroing falls to whoever normalises.
    """

    order_F: np.ndarray
    blank_F: np.ndarray


def perturb(frames: int, rng: np.random.Generator) -> Perturbation:
    """Draw one of the six perturbations of a video of `frames` frames, each as likely as the others.

    Source: the reference's `apply_temporal_perturbation`; it draws one for each completion, here it is one a video.
    """
    kind = PERTURBATIONS[rng.integers(len(PERTURBATIONS))]
    return kind(frames, rng)


def shuffle(frames: int, rng: np.random.Generator) -> Perturbation:
    """Any order."""
    return _reordered(rng.permutation(frames))


def shuffle_windows(frames: int, rng: np.random.Generator) -> Perturbation:
    """Any order within each four consecutive frames."""
    window = np.arange(frames) // 4
    return _reordered(np.lexsort([rng.random(frames), window]))


def reverse(frames: int, _: np.random.Generator) -> Perturbation:
    """The last frame first."""
    return _reordered(np.arange(frames)[::-1])


def jitter(frames: int, rng: np.random.Generator) -> Perturbation:
    """Each frame, or the one before or after it in its place."""
    return _reordered(np.clip(np.arange(frames) + rng.integers(-1, 2, frames), 0, frames - 1))


def duplicate(frames: int, rng: np.random.Generator) -> Perturbation:
    """One frame put in one to three times at any place, and as many of the video's own dropped, the rest in order."""
    times = rng.integers(1, _up_to_three(frames - 1), endpoint=True)
    kept = np.sort(rng.choice(frames, frames - times, replace=False))
    frame, place = rng.integers(frames), rng.integers(frames, endpoint=True)
    return _reordered(np.insert(kept, np.searchsorted(kept, place), [frame] * times))


def drop(frames: int, rng: np.random.Generator) -> Perturbation:
    """One to three frames blank."""
    dropped = rng.choice(frames, rng.integers(1, _up_to_three(frames), endpoint=True), replace=False)
    return Perturbation(np.arange(frames, dtype=np.int32), np.isin(np.arange(frames), dropped))


PERTURBATIONS = (shuffle, shuffle_windows, reverse, jitter, duplicate, drop)


def _reordered(order_F: np.ndarray) -> Perturbation:
    return Perturbation(order_F.astype(np.int32), np.zeros(len(order_F), bool))


def _up_to_three(frames: int) -> int:
    return max(1, min(3, frames))
