"""Damages to a video by known amounts, how much each harms, and what one says of it.

Enters: times to show, or uint8 RGB frames at the size that the model will see, and a strength from 0 (hardly there) to
1 (severe). Leaves: other times, or other frames. Damages in time never touch a frame: they are other times to show it
at. Blur and noise count in pixels, so a clip is made at the size it will be seen at.

The true MOS is 1 + 4·∏(1 − harm·strength) over a clip's damages: 5 without any, and falling with every strength. What
is hard to see at the default size and number of frames has the smaller harm: banding, which flat pictures hide,
compression, and times that are wrong by little.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import uniform_filter1d

from vqathinker_jax.data.encoder import compressed
from vqathinker_jax.data.scenes import LUMA

Effect = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


class Kind(NamedTuple):
    """A kind of damage.

    look:    the word for it.
    harm:    the share of quality that it takes at full strength.
    aspects: what it spoils; two damages of one clip share none, for one would hide the other.
    effect:  frames [F,Y,X,C], or for the aspect "time" times [F] in frames, its strength and a generator, to the same.
    trained: whether training sees it; what it does not see is for the out-of-domain test.
    """

    look: str
    harm: float
    aspects: frozenset[str]
    effect: Effect
    trained: bool


@dataclass(frozen=True)
class Distortion:
    """A kind of `KINDS` and its strength in [0, 1]."""

    kind: str
    strength: float

    @property
    def description(self) -> str:
        """How much, and what, as in "slightly blurred"."""
        degree = ("slightly", "clearly", "severely")[min(int(3 * self.strength), 2)]
        return f"{degree} {KINDS[self.kind].look}"


def true_mos(distortions: Iterable[Distortion]) -> float:
    """The mean opinion, 1 to 5, that raters without noise have of a clip with these damages."""
    return float(1 + 4 * np.prod([1 - KINDS[damage.kind].harm * damage.strength for damage in distortions]))


def retimed(times_F: np.ndarray, distortions: Iterable[Distortion], rng: np.random.Generator) -> np.ndarray:
    """The times [F] to show, given those of the undamaged video and the damages among these that concern time."""
    for damage in _in_order(distortions):
        if "time" in KINDS[damage.kind].aspects:
            times_F = KINDS[damage.kind].effect(times_F, damage.strength, rng)
    return times_F


def spoiled(frames_FYXC: np.ndarray, distortions: Iterable[Distortion], rng: np.random.Generator) -> np.ndarray:
    """The uint8 RGB frames with the damages among these that concern pictures."""
    for damage in _in_order(distortions):
        if "time" not in KINDS[damage.kind].aspects:
            frames_FYXC = KINDS[damage.kind].effect(frames_FYXC, damage.strength, rng)
    return frames_FYXC


def _in_order(distortions: Iterable[Distortion]) -> list[Distortion]:
    """As a camera and a codec would do them: lens, light, sensor, storage; so says the order of `KINDS`."""
    return sorted(distortions, key=lambda damage: list(KINDS).index(damage.kind))


def _blur(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Gaussian, of 0.5 to 3 pixels."""
    blur = ImageFilter.GaussianBlur(0.5 + 2.5 * strength)
    return np.stack([np.asarray(Image.fromarray(frame_YXC).filter(blur)) for frame_YXC in frames_FYXC])


def _smear(frames_FYXC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Means over 2 to 12 pixels along one axis, as of a camera that moves while the shutter is open."""
    length, axis = 2 + 10 * strength, int(rng.integers(1, 3))
    whole = int(length)
    shorter, longer = (uniform_filter1d(frames_FYXC.astype(np.float32), n, axis) for n in (whole, whole + 1))
    return _to_uint8(shorter + (length - whole) * (longer - shorter))


def _darken(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """By 0.3 to 2.3 stops."""
    return _to_uint8(frames_FYXC * np.float32(2 ** -(0.3 + 2 * strength)))


def _brighten(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """By 0.2 to 1.4 stops, and clipped."""
    return _to_uint8(frames_FYXC * np.float32(2 ** (0.2 + 1.2 * strength)))


def _desaturate(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Down to 80 % of the colour, or to none."""
    return _saturated(frames_FYXC, 0.8 - 0.8 * strength)


def _oversaturate(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Up to 1.3 to 4 times the colour."""
    return _saturated(frames_FYXC, 1.3 + 2.7 * strength)


def _add_noise(frames_FYXC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian, of 1.5 to 14 % of the range, new in each frame."""
    grain_FYXC = rng.standard_normal(frames_FYXC.shape, np.float32)
    return _to_uint8(frames_FYXC + np.float32(255 * (0.015 + 0.125 * strength)) * grain_FYXC)


def _speckle(frames_FYXC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """0.5 to 10 % of the pixels black or white, others in each frame."""
    draw_FYX1 = rng.random((*frames_FYXC.shape[:3], 1), np.float32)
    share = (0.005 + 0.095 * strength) / 2
    return np.where(draw_FYX1 < share, 0, np.where(draw_FYX1 > 1 - share, 255, frames_FYXC)).astype(np.uint8)


def _posterise(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """6 to 2 steps a channel."""
    step = 255 / (6 - 4 * strength)
    return _to_uint8(np.round(frames_FYXC / np.float32(step)) * np.float32(step))


def _shrink(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """x264 at 1 / 1.3 to 1 / 4 of the size, enlarged again."""
    size = frames_FYXC.shape[1]
    small = 2 * round(size / (1.3 + 2.7 * strength) / 2)
    return _resized(compressed(_resized(frames_FYXC, small), crf=24), size)


def _compress(frames_FYXC: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """x264 at constant rate factors from 34 to 51."""
    return compressed(frames_FYXC, crf=34 + 17 * strength)


def _stutter(times_F: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Each picture stands for 1.6 to 5 frames, then the video catches up."""
    hold = 1.6 + 3.4 * strength
    return times_F[np.floor(np.floor(np.arange(len(times_F)) / hold) * hold).astype(int)]


def _jitter(times_F: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Frames early or late at random, by 0.5 to 3 frames in the quadratic mean, so that motion runs back and forth."""
    early_F = rng.standard_normal(len(times_F))
    moved_F = times_F + (0.5 + 2.5 * strength) * early_F / np.sqrt(np.square(early_F).mean())
    return np.clip(moved_F, times_F[0], times_F[-1])


def _shuffle(times_F: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A quarter to all of the frames, chosen at random, in each other's places."""
    chosen = rng.permutation(len(times_F))[: max(2, round((0.25 + 0.75 * strength) * len(times_F)))]
    shuffled_F = times_F.copy()
    shuffled_F[chosen] = times_F[np.roll(chosen, 1)]
    return shuffled_F


def _drop(times_F: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Frames for 10 to 55 % of the length are missing, in one to three places, and the video goes on."""
    missing = (0.1 + 0.45 * strength) * len(times_F)
    places = rng.choice(np.arange(1, len(times_F)), 1 + round(2 * strength), replace=False)
    return times_F + missing / len(places) * (np.arange(len(times_F))[:, None] >= places).sum(1)


def _repeat(times_F: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """10 to 60 % of the frames are their predecessor once more, and what follows comes later."""
    steps_F = np.ones(len(times_F), int)
    steps_F[rng.permutation(np.arange(1, len(times_F)))[: max(1, round((0.1 + 0.5 * strength) * len(times_F)))]] = 0
    return times_F[np.cumsum(steps_F) - 1]


def _saturated(frames_FYXC: np.ndarray, colour: float) -> np.ndarray:
    grey_FYX1 = (frames_FYXC.astype(np.float32) @ LUMA)[..., None]
    return _to_uint8(grey_FYX1 + np.float32(colour) * (frames_FYXC - grey_FYX1))


def _resized(frames_FYXC: np.ndarray, size: int) -> np.ndarray:
    pictures = [Image.fromarray(frame_YXC) for frame_YXC in frames_FYXC]
    return np.stack([np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures])


def _to_uint8(frames_FYXC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames_FYXC), 0, 255).astype(np.uint8)


def _kind(look: str, harm: float, aspects: str, effect: Effect, trained: bool = True) -> Kind:
    return Kind(look, harm, frozenset(aspects.split()), effect, trained)


KINDS = {
    "blur": _kind("blurred", 0.9, "detail", _blur),
    "smear": _kind("smeared", 0.85, "detail", _smear, trained=False),
    "underexposure": _kind("too dark", 0.8, "light", _darken),
    "overexposure": _kind("too bright", 0.8, "light", _brighten),
    "desaturation": _kind("pale", 0.6, "colour", _desaturate),
    "oversaturation": _kind("gaudy", 0.6, "colour", _oversaturate, trained=False),
    "noise": _kind("noisy", 0.9, "grain", _add_noise),
    "speckle": _kind("speckled", 0.9, "grain", _speckle, trained=False),
    "banding": _kind("banded", 0.4, "colour light", _posterise),
    "low_resolution": _kind("coarse", 0.85, "detail grain", _shrink, trained=False),
    "compression": _kind("blocky", 0.7, "detail grain", _compress),
    "stutter": _kind("stuttering", 0.7, "time", _stutter),
    "jitter": _kind("jerky", 0.6, "time", _jitter),
    "shuffle": _kind("out of order", 0.7, "time", _shuffle),
    "dropped": _kind("jumping", 0.6, "time", _drop, trained=False),
    "repeated": _kind("halting", 0.6, "time", _repeat, trained=False),
}
"""Every kind of damage, in the order in which several are done to one clip."""
