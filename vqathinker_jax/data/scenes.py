"""A family of scenes and a random generator go in; a scene comes out, to be shown at any times.

A scene is a surface under a moving camera, with actors moving over it. Time counts in frames of the undamaged video
and need not be whole, so that a damage to the order or the pace of frames is nothing but other times to show: each
single frame stays one that an undamaged video could hold.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vqathinker_jax.data import textures
from vqathinker_jax.data.actors import Actor, ball, balloon, bird, car, face, fish, gear, kite, label, mask
from vqathinker_jax.data.textures import Painter, fractal

CANVAS = 2.3
"""Side of the surface in sides of the view: room for the camera."""
OVERTIME = 1.6
"""How far beyond a video's last frame a scene can be shown, in lengths of the video."""
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


class Family(NamedTuple):
    """Scenes of one kind: the surface, what moves over it, how many of them, and their size in sides of the view."""

    surface: Painter
    actor: Actor | None = None
    count: int = 0
    extent: float = 0.0


TRAINED = {
    "sky": Family(textures.clouds, kite, 3, 0.3),
    "meadow": Family(textures.grass, ball, 3, 0.28),
    "forest": Family(textures.foliage, bird, 3, 0.3),
    "shore": Family(textures.pebbles, fish, 3, 0.36),
    "workshop": Family(textures.timber, gear, 3, 0.34),
    "street": Family(textures.street, car, 3, 0.42),
    "portrait": Family(textures.marble, face, 1, 0.75),
    "gallery": Family(textures.mosaic, face, 2, 0.45),
    "print": Family(textures.page),
    "cloth": Family(textures.plaid, label, 2, 0.45),
    "ridge": Family(textures.peaks),
    "tangle": Family(textures.foliage),
}
"""Families that training sees."""

UNSEEN = {
    "wall": Family(textures.bricks, mask, 2, 0.45),
    "hive": Family(textures.honeycomb, balloon, 3, 0.36),
    "roof": Family(textures.scales),
    "map": Family(textures.contours, balloon, 2, 0.4),
    "party": Family(textures.confetti, mask, 2, 0.5),
    "poster": Family(textures.poster),
}
"""Families that only tests see; neither their surfaces nor their actors stand in any other."""

FAMILIES = TRAINED | UNSEEN


@dataclass(frozen=True)
class Path:
    """Where something is, in sides of the view, how large and how turned: functions of time in lengths of a video.

    It drifts from `start` and, where `room` is given, turns back at the borders; it swings about that by `swing`.
    """

    start: complex
    drift: complex = 0
    swing: float = 0.0
    swings: float = 1.0
    room: tuple[float, float] | None = None
    zoom: float = 1.0
    growth: float = 0.0
    angle: float = 0.0
    spin: float = 0.0

    def at(self, time: float) -> tuple[complex, float, float]:
        """Place (x + iy), zoom, and angle in radians."""
        place = self.start + time * self.drift + self.swing * np.exp(2j * np.pi * self.swings * time)
        if self.room:
            place = complex(_folded(place.real, *self.room), _folded(place.imag, *self.room))
        return place, self.zoom * float(np.exp(self.growth * time)), self.angle + self.spin * time


@dataclass(frozen=True)
class Scene:
    """A surface under the camera's path, and pictures with theirs; `length` is a video's, in frames."""

    surface: Image.Image
    camera: Path
    actors: tuple[tuple[Image.Image, Path], ...]
    size: int
    length: int

    def show(self, times_F: np.ndarray) -> np.ndarray:
        """Return uint8 RGB frames [F,Y,X,C] at these times, in frames, from 0 to `OVERTIME` lengths."""
        return np.stack([self._frame(time / self.length) for time in times_F.tolist()])

    def _frame(self, time: float) -> np.ndarray:
        view, middle = self.size, (1 + 1j) * self.size / 2
        place, zoom, angle = self.camera.at(time)
        frame = _moved(self.surface, view, place * view, middle, zoom, angle, Image.Resampling.BICUBIC)
        for picture, path in self.actors:
            place, zoom, angle = path.at(time)
            within = (1 + 1j) * picture.width / 2
            moved = _moved(picture, view, within, place * view, zoom, angle, Image.Resampling.BILINEAR)
            frame.paste(moved, mask=moved)
        return np.asarray(frame)


def draw_scene(family: str, rng: np.random.Generator, size: int, length: int) -> Scene:
    """Return a scene of this family for videos of `length` frames of `size` pixels a side."""
    surface, actor, count, extent = FAMILIES[family]
    actors = []
    for _ in range(count):
        picture = actor(rng, round(size * extent)) if actor else None
        actors.append((picture, _actor_path(rng, extent)))
    return Scene(_graded(surface(rng, round(CANVAS * size)), rng), _camera_path(rng), tuple(actors), size, length)


def _folded(place: float, low: float, high: float) -> float:
    """Where a thing on its way to `place` is if it turns back at both borders."""
    way = (place - low) % (2 * (high - low))
    return low + min(way, 2 * (high - low) - way)


def _camera_path(rng: np.random.Generator) -> Path:
    """A pan, a zoom, a turn or a handheld sway; each stays on the surface for `OVERTIME`."""
    heading = np.exp(2j * np.pi * rng.random())
    middle = (1 + 1j) * CANVAS / 2
    kind = rng.choice(["pan", "zoom", "turn", "sway"], p=[0.4, 0.2, 0.2, 0.2])
    if kind == "pan":
        drift = heading * rng.uniform(0.15, 0.35)
        return Path(middle - OVERTIME / 2 * drift, drift)
    slow = heading * rng.uniform(0.05, 0.12)
    start = middle - OVERTIME / 2 * slow
    if kind == "zoom":
        growth = rng.uniform(0.15, 0.35) * rng.choice([-1, 1])
        return Path(start, slow, zoom=1.1 if growth > 0 else 1.1 * float(np.exp(-growth * OVERTIME)), growth=growth)
    if kind == "turn":
        spin = rng.uniform(0.2, 0.4) * rng.choice([-1, 1])
        return Path(start, slow, angle=-OVERTIME / 2 * spin + rng.normal(0, 0.1), spin=spin)
    return Path(start, slow, swing=rng.uniform(0.05, 0.1), swings=rng.uniform(0.6, 1))


def _actor_path(rng: np.random.Generator, extent: float) -> Path:
    """Across the view and back from its borders, upright or slowly turning."""
    room = (extent / 4, 1 - extent / 4)
    drift = rng.uniform(0.3, 0.8) * np.exp(2j * np.pi * rng.random())
    return Path(complex(*rng.uniform(*room, 2)), drift, room=room, angle=rng.normal(0, 0.15), spin=rng.normal(0, 0.4))


def _moved(
    picture: Image.Image, size: int, source: complex, target: complex, zoom: float, angle: float, resampling: Any
) -> Image.Image:
    """A view of `size` in which the picture's point `source` stands at `target`, enlarged and turned about it."""
    turn = np.exp(-1j * angle) / zoom
    corner = source - turn * target
    matrix = (turn.real, -turn.imag, corner.real, turn.imag, turn.real, corner.imag)
    return picture.transform((size, size), Image.Transform.AFFINE, matrix, resampling)


def _graded(surface: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The surface with the exposure, contrast and saturation of a good video, so that damage to each can be told."""
    rgb_YXC = np.asarray(surface, np.float32) / 255
    # Light that falls off smoothly, without which banding would not show on plain things.
    rgb_YXC *= (0.6 + 0.8 * fractal(rng, surface.width, finest=3))[..., None]
    luma_YX1 = (rgb_YXC @ LUMA)[..., None]
    colour_YXC = rgb_YXC - luma_YX1
    luma_YX1 = rng.uniform(0.42, 0.5) + (luma_YX1 - luma_YX1.mean()) * rng.uniform(0.17, 0.21) / (luma_YX1.std() + 1e-3)
    colour_YXC *= rng.uniform(0.09, 0.13) / (np.sqrt(np.square(colour_YXC).mean()) + 1e-3)
    return Image.fromarray((255 * np.clip(luma_YX1 + colour_YXC, 0, 1)).round().astype(np.uint8))
