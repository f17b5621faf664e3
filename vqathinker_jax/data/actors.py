"""Procedural things that move: a random generator and a side in pixels in, a picture with transparency out.

What surrounds a thing is transparent and of its own colour, so that no dark rim appears when it is moved. Drawn at four
times the side and averaged down.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqathinker_jax.data.textures import INK, Colour, colours, word

Actor = Callable[[np.random.Generator, int], Image.Image]


def ball(rng: np.random.Generator, side: int) -> Image.Image:
    """A ball with a cross of stripes."""
    body, stripe, spot = colours(rng, 3)
    picture, draw, scale = _sheet(side, body)
    draw.ellipse(_box(scale, 0.5, 0.5, 0.48, 0.48), fill=body, outline=INK, width=scale // 24)
    draw.pieslice(_box(scale, 0.5, 0.5, 0.46, 0.46), 20, 70, fill=stripe)
    draw.pieslice(_box(scale, 0.5, 0.5, 0.46, 0.46), 200, 250, fill=stripe)
    draw.ellipse(_box(scale, 0.5, 0.5, 0.15, 0.15), fill=spot, outline=INK)
    return picture.reduce(4)


def kite(rng: np.random.Generator, side: int) -> Image.Image:
    """Four triangles of two colours."""
    one, other = colours(rng, 2)
    picture, draw, scale = _sheet(side, one)
    tips = [(0.5, 0.02), (0.85, 0.4), (0.5, 0.98), (0.15, 0.4)]
    for number, colour in enumerate((one, other, one, other)):
        corners = (0.5, 0.4), tips[number], tips[(number + 1) % 4]
        draw.polygon([(scale * x, scale * y) for x, y in corners], fill=colour, outline=INK, width=scale // 32)
    return picture.reduce(4)


def bird(rng: np.random.Generator, side: int) -> Image.Image:
    """Two wings and a beak."""
    body, wing = colours(rng, 2)
    picture, draw, scale = _sheet(side, body)
    for mirror in 1, -1:
        corners = (0.5, 0.45), (0.5 + 0.48 * mirror, 0.15), (0.5 + 0.2 * mirror, 0.7)
        draw.polygon([(scale * x, scale * y) for x, y in corners], fill=wing, outline=INK, width=scale // 40)
    draw.ellipse(_box(scale, 0.5, 0.5, 0.12, 0.35), fill=body, outline=INK)
    draw.polygon([(scale * x, scale * y) for x, y in ((0.44, 0.2), (0.56, 0.2), (0.5, 0.02))], fill=INK)
    return picture.reduce(4)


def face(rng: np.random.Generator, side: int) -> Image.Image:
    """A head with hair, eyes, nose and mouth."""
    light = rng.uniform(0.45, 1)
    skin = tuple(int(light * part) for part in (238, 196, 164))
    hair, iris = colours(rng, 2)
    picture, draw, scale = _sheet(side, skin)
    draw.ellipse(_box(scale, 0.5, 0.46, 0.44, 0.45), fill=hair)
    draw.ellipse(_box(scale, 0.5, 0.54, 0.36, 0.43), fill=skin, outline=INK, width=scale // 64)
    for mirror in 1, -1:
        x = 0.5 + 0.15 * mirror
        draw.ellipse(_box(scale, x, 0.47, 0.085, 0.05), fill=(245, 245, 240), outline=INK)
        draw.ellipse(_box(scale, x, 0.47, 0.045, 0.045), fill=iris)
        draw.ellipse(_box(scale, x, 0.47, 0.02, 0.02), fill=INK)
        draw.line([scale * (x - 0.09), scale * 0.39, scale * (x + 0.09), scale * 0.38], fill=hair, width=scale // 36)
    draw.line(
        [scale * 0.5, scale * 0.48, scale * 0.46, scale * 0.64, scale * 0.52, scale * 0.65], fill=INK, width=scale // 64
    )
    draw.chord(_box(scale, 0.5, 0.74, 0.15, 0.09), 0, 180, fill=(168, 58, 62), outline=INK)
    return picture.reduce(4)


def car(rng: np.random.Generator, side: int) -> Image.Image:
    """A car from its side."""
    paint, glass = colours(rng, 2)
    picture, draw, scale = _sheet(side, paint)
    draw.polygon([(scale * x, scale * y) for x, y in ((0.2, 0.5), (0.34, 0.28), (0.68, 0.28), (0.82, 0.5))], fill=paint)
    draw.rectangle([scale * 0.02, scale * 0.48, scale * 0.98, scale * 0.68], fill=paint, outline=INK, width=scale // 48)
    for left in 0.3, 0.52:
        draw.rectangle([scale * left, scale * 0.33, scale * (left + 0.17), scale * 0.48], fill=glass, outline=INK)
    for x in 0.25, 0.75:
        draw.ellipse(_box(scale, x, 0.7, 0.12, 0.12), fill=INK)
        draw.ellipse(_box(scale, x, 0.7, 0.05, 0.05), fill=(200, 200, 205))
    return picture.reduce(4)


def gear(rng: np.random.Generator, side: int) -> Image.Image:
    """A cogwheel."""
    body, hub = colours(rng, 2)
    picture, draw, scale = _sheet(side, body)
    teeth = int(rng.integers(6, 12))
    turn_N = np.arange(4 * teeth) * np.pi / 2 / teeth
    rim_N = np.where(np.arange(4 * teeth) % 4 < 2, 0.48, 0.37) * np.exp(1j * turn_N) + 0.5 + 0.5j
    draw.polygon([(scale * p.real, scale * p.imag) for p in rim_N], fill=body, outline=INK, width=scale // 32)
    draw.ellipse(_box(scale, 0.5, 0.5, 0.16, 0.16), fill=hub, outline=INK)
    return picture.reduce(4)


def fish(rng: np.random.Generator, side: int) -> Image.Image:
    """A striped fish."""
    body, stripe = colours(rng, 2)
    picture, draw, scale = _sheet(side, body)
    draw.polygon(
        [(scale * x, scale * y) for x, y in ((0.25, 0.5), (0.02, 0.25), (0.02, 0.75))], fill=stripe, outline=INK
    )
    draw.ellipse(_box(scale, 0.57, 0.5, 0.4, 0.26), fill=body, outline=INK, width=scale // 40)
    for x in 0.4, 0.55, 0.7:
        draw.line([scale * x, scale * 0.3, scale * x, scale * 0.7], fill=stripe, width=scale // 16)
    draw.ellipse(_box(scale, 0.84, 0.44, 0.03, 0.03), fill=INK)
    return picture.reduce(4)


def label(rng: np.random.Generator, side: int) -> Image.Image:
    """A word on a card."""
    card, frame = colours(rng, 2)
    picture, draw, scale = _sheet(side, card)
    pale = tuple((part + 255) // 2 for part in card)
    draw.rectangle([0, scale * 0.25, scale - 1, scale * 0.75], fill=pale, outline=frame, width=scale // 24)
    font = ImageFont.load_default(scale // 3)
    draw.text((scale // 2, scale // 2), word(rng)[:5], font=font, fill=INK, anchor="mm")
    return picture.reduce(4)


def balloon(rng: np.random.Generator, side: int) -> Image.Image:
    """A balloon in stripes, with its basket."""
    one, other = colours(rng, 2)
    picture, draw, scale = _sheet(side, one)
    for part, colour in (0.4, one), (0.27, other), (0.12, one):
        draw.ellipse(_box(scale, 0.5, 0.4, part, 0.39), fill=colour, outline=INK, width=scale // 64)
    draw.rectangle([scale * 0.42, scale * 0.82, scale * 0.58, scale * 0.97], fill=INK)
    return picture.reduce(4)


def mask(rng: np.random.Generator, side: int) -> Image.Image:
    """A square, painted face."""
    wood, paint, mouth = colours(rng, 3)
    picture, draw, scale = _sheet(side, wood)
    draw.rounded_rectangle([scale * 0.1, scale * 0.03, scale * 0.9, scale * 0.97], scale // 8, wood, INK, scale // 40)
    for x in 0.32, 0.68:
        draw.rectangle(_box(scale, x, 0.36, 0.13, 0.1), fill=paint, outline=INK, width=scale // 48)
        draw.ellipse(_box(scale, x, 0.36, 0.05, 0.07), fill=INK)
    draw.polygon([(scale * x, scale * y) for x, y in ((0.5, 0.4), (0.4, 0.62), (0.6, 0.62))], fill=paint, outline=INK)
    draw.rectangle(_box(scale, 0.5, 0.78, 0.24, 0.08), fill=mouth, outline=INK, width=scale // 48)
    return picture.reduce(4)


def _sheet(side: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A transparent picture of four times the side to draw on, its pen, and its side."""
    picture = Image.new("RGBA", (4 * side, 4 * side), (*colour, 0))
    return picture, ImageDraw.Draw(picture), 4 * side


def _box(scale: int, x: float, y: float, wide: float, high: float) -> list[float]:
    """The box around an ellipse of these half axes."""
    return [scale * (x - wide), scale * (y - high), scale * (x + wide), scale * (y + high)]
