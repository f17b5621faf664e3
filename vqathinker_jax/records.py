"""The frozen records that one stage hands to the next, and the key to dimension names.

Arrays that cross a function boundary carry their dimensions in their names:

    P videos (prompts)   G completions a video   B rows             T query tokens   S key tokens
    D width              N heads                 K key/value heads  H head size      M MLP width
    V vocabulary         F frames                L visual tokens a frame             E vision width
    Y X C pixels         Z motion features       C (in a cache) completion slots     R layers
"""

from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 1.0, 5.0
"""The scale of ratings and of mean opinion scores in training."""


class InputError(ValueError):
    """Something a user handed in cannot be used; the message names it, what was found, and the cure, in one line."""


class VideoError(InputError):
    """A video from which no frame can be read."""


class CheckpointError(InputError):
    """A checkpoint folder that cannot be loaded; the message holds every fault found, one a line."""


@dataclass(frozen=True)
class Clip:
    """The frames of one video that the model will see.

    frames_FYXC: uint8 RGB at the video's own size (upright) or, after `frames.resize`, at the model's.
    indices:     number of each frame in presentation order, as the sampling rule asked for it.
    times_s:     presentation time of each frame in seconds from the first frame.
    health:      what was wrong with the file, in plain sentences; empty for a sound one.
    """

    frames_FYXC: np.ndarray
    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    health: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A parsed completion: the rating, as a float, with the texts it was read from."""

    score: float
    thinking: str
    answer: str


@dataclass(frozen=True)
class Unparsable:
    """A completion from which no rating can be read, and why; it is a failure, never a made-up score."""

    reason: str
    thinking: str
    answer: str


def check_divides(name: str, part: int, videos: int) -> None:
    """Check that a batch of so many videos divides into parts, or groups, of this number.

    Raises: InputError with the numbers that would do.
    """
    if videos % part:
        *others, last = (str(number) for number in range(1, videos + 1) if videos % number == 0)
        fitting = " or ".join(filter(None, [", ".join(others), last]))
        raise InputError(f"{name} is {part}, which does not divide a batch of {videos} videos: use {fitting}")
