"""Procedural surfaces: a random generator and a side in pixels in, a square picture of that side out.

Each is sharp down to the pixel somewhere, so that blur shows on all of them, and none is grainy in the way noise is.
Sizes of what is drawn go with the side. Shapes are drawn at twice the side and averaged down, against jagged edges.
"""

from collections.abc import Callable
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Painter = Callable[[np.random.Generator, int], Image.Image]
Colour = tuple[int, ...]

INK = (25, 22, 28)
LETTERS = np.array(list("aaaabcdeeeeeefghiiiklmnnnooooprrrsssttttuuvwy"))


def colours(rng: np.random.Generator, count: int) -> list[Colour]:
    """Colours that go together: a few hues, any brightness."""
    hues = rng.random() + rng.choice([0.0, 0.08, 0.35, 0.55], count) + rng.normal(0, 0.02, count)
    triples = zip(hues % 1, rng.uniform(0.3, 0.8, count), rng.uniform(0.25, 1, count), strict=True)
    return [tuple(round(255 * part) for part in hsv_to_rgb(*triple)) for triple in triples]


def word(rng: np.random.Generator) -> str:
    """Letters that look like a word."""
    return "".join(rng.choice(LETTERS, rng.integers(2, 9)))


def fractal(rng: np.random.Generator, side: int, finest: int, fade: float = 0.62) -> np.ndarray:
    """Billows [Y,X], float32 in [0, 1]: random grids of ever more cells, up to `finest`, each fainter than the last."""
    sum_YX, share, cells = np.zeros((side, side), np.float32), 1.0, 3
    while cells <= finest:
        grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
        sum_YX += share * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
        share, cells = share * fade, 2 * cells
    return (sum_YX - sum_YX.min()) / np.ptp(sum_YX)


def clouds(rng: np.random.Generator, side: int) -> Image.Image:
    """Billows of every scale."""
    return _coloured(fractal(rng, side, finest=128), rng)


def marble(rng: np.random.Generator, side: int) -> Image.Image:
    """Veins, bent by billows."""
    return _coloured(np.abs(np.sin(rng.uniform(12, 20) * fractal(rng, side, finest=48))), rng)


def timber(rng: np.random.Generator, side: int) -> Image.Image:
    """Rings of a tree, cut off its middle."""
    y_Y1, x_1X = np.ogrid[: 1 : side * 1j, : 1 : side * 1j]
    from_middle_YX = np.hypot((y_Y1 - rng.random()) * rng.uniform(0.2, 0.6), x_1X - rng.uniform(-0.5, 0.2))
    rings_YX = (rng.uniform(18, 30) * (from_middle_YX + 0.15 * fractal(rng, side, finest=32))) % 1
    return _coloured(np.abs(2 * rings_YX - 1), rng)


def contours(rng: np.random.Generator, side: int) -> Image.Image:
    """A map: steps of height, each in a colour of its own, with a line between them."""
    height_YX = fractal(rng, 2 * side, finest=24) * rng.uniform(9, 14)
    step_YX = height_YX.astype(int)
    plain_YXC = np.array(colours(rng, 16), np.uint8)[step_YX]
    plain_YXC[(np.diff(step_YX, axis=0, append=0) != 0) | (np.diff(step_YX, axis=1, append=0) != 0)] = INK
    return Image.fromarray(plain_YXC).reduce(2)


def plaid(rng: np.random.Generator, side: int) -> Image.Image:
    """Cloth of two sets of stripes, with its threads."""
    stripes = [np.repeat(colours(rng, 40), rng.integers(side // 40, side // 8, 40), axis=0)[:side] for _ in range(2)]
    warp_YXC, weft_YXC = stripes[0][:, None], stripes[1][None]
    over_YX1 = (np.add.outer(np.arange(side), np.arange(side)) // 2 % 2)[..., None]
    return Image.fromarray(np.where(over_YX1, 0.8 * warp_YXC + 0.2 * weft_YXC, weft_YXC).astype(np.uint8))


def grass(rng: np.random.Generator, side: int) -> Image.Image:
    """Blades that lean in the wind."""
    picture, draw, scale = _sheet(side, colours(rng, 1)[0])
    shades, lean = colours(rng, 8), rng.normal(0, 0.4)
    for x, y, height, bend, shade in _draws(
        rng, 1500, (0, 1), (0, 1.1), (0.03, 0.12), (lean - 0.3, lean + 0.3), (0, 8)
    ):
        tip = scale * (x + bend * height), scale * (y - height)
        draw.line((scale * x, scale * y, *tip), fill=shades[int(shade)], width=3)
    return picture.reduce(2)


def foliage(rng: np.random.Generator, side: int) -> Image.Image:
    """Leaves over leaves."""
    picture, draw, scale = _sheet(side, INK)
    shades = colours(rng, 12)
    for x, y, length, turn, shade in _draws(rng, 600, (0, 1), (0, 1), (0.03, 0.09), (0, 2 * np.pi), (0, 12)):
        along = length * np.exp(1j * turn)
        leaf_4 = x + 1j * y + along * np.array([-1, 0.35j, 1, -0.35j])
        draw.polygon([(scale * p.real, scale * p.imag) for p in leaf_4], fill=shades[int(shade)], outline=INK)
    return picture.reduce(2)


def pebbles(rng: np.random.Generator, side: int) -> Image.Image:
    """Round stones, lit from above."""
    picture, draw, scale = _sheet(side, INK)
    shades = colours(rng, 10)
    for x, y, radius, flat, shade in _draws(rng, 420, (0, 1), (0, 1), (0.02, 0.07), (0.6, 1), (0, 10)):
        low = shades[int(shade)]
        high = tuple(min(part + 45, 255) for part in low)
        for part, rise, colour in (1.0, 0.0, INK), (0.9, 0.0, low), (0.5, 0.3, high):
            w, h, up = scale * part * radius, scale * part * radius * flat, scale * rise * radius * flat
            draw.ellipse((scale * x - w, scale * y - h - up, scale * x + w, scale * y + h - up), fill=colour)
    return picture.reduce(2)


def mosaic(rng: np.random.Generator, side: int) -> Image.Image:
    """Crooked tiles."""
    count = int(rng.integers(12, 22))
    picture, draw, scale = _sheet(side, INK)
    shades = colours(rng, 14)
    corners = np.stack(np.meshgrid(*[np.arange(-1, count + 2)] * 2), -1) + rng.uniform(
        -0.3, 0.3, (count + 3, count + 3, 2)
    )
    for y in range(count + 2):
        for x in range(count + 2):
            quad = [corners[y, x], corners[y, x + 1], corners[y + 1, x + 1], corners[y + 1, x]]
            points = [tuple(scale * corner / count) for corner in quad]
            draw.polygon(points, fill=shades[rng.integers(14)], outline=INK, width=2)
    return picture.reduce(2)


def peaks(rng: np.random.Generator, side: int) -> Image.Image:
    """Ranges of mountains behind each other, under a sky of clouds, with trees."""
    picture = clouds(rng, side).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    draw, scale = ImageDraw.Draw(picture), 2 * side
    for base, colour in zip(np.arange(0.15, 1.05, 0.15), colours(rng, 7), strict=False):
        x_N = np.linspace(0, 1, 40)
        y_N = base + 0.06 * np.abs(rng.normal(0, 1, 40)) * rng.uniform(0.5, 1.5)
        ridge = [(scale * x, scale * y) for x, y in zip(x_N, y_N, strict=True)]
        draw.polygon([*ridge, (scale, scale), (0, scale)], fill=colour, outline=INK)
        for x, y in rng.permutation(ridge)[:25]:
            high, wide = scale * rng.uniform(0.03, 0.06), scale * 0.012
            draw.polygon([(x, y), (x - wide, y + high), (x + wide, y + high)], fill=INK)
    return picture.reduce(2)


def street(rng: np.random.Generator, side: int) -> Image.Image:
    """Fronts of houses, with windows lit and dark."""
    picture, draw, scale = _sheet(side, colours(rng, 1)[0])
    for row in 0.0, 0.33, 0.66:
        x = -rng.uniform(0, 0.1)
        while x < 1:
            wide, top, pane = rng.uniform(0.1, 0.25), row + rng.uniform(0, 0.12), rng.uniform(0.014, 0.026)
            wall, lit, dark = colours(rng, 3)
            draw.rectangle([scale * x, scale * top, scale * (x + wide), scale], fill=wall, outline=INK, width=2)
            for left in np.arange(x + pane, x + wide - pane, 2 * pane):
                for upper in np.arange(top + pane, row + 0.36, 2.4 * pane):
                    box = [scale * left, scale * upper, scale * (left + pane), scale * (upper + 1.5 * pane)]
                    draw.rectangle(box, fill=lit if rng.random() < 0.6 else dark)
            x += wide
    return picture.reduce(2)


def page(rng: np.random.Generator, side: int) -> Image.Image:
    """Print in columns, some of it in colour."""
    paper, *inks = colours(rng, 4)
    picture, draw, scale = _sheet(side, tuple((part + 2 * 255) // 3 for part in paper))
    y = 0.0
    while y < scale:
        height = round(scale * rng.choice([0.03, 0.035, 0.06]))
        font, ink = ImageFont.load_default(height), [INK, INK, *inks][rng.integers(5)]
        line = " ".join(word(rng) for _ in range(scale // height // 2))
        draw.text((-rng.uniform(0, height), y), line, font=font, fill=ink)
        y += 1.3 * height
    return picture.reduce(2)


def poster(rng: np.random.Generator, side: int) -> Image.Image:
    """Large words on blocks of colour."""
    picture, draw, scale = _sheet(side, INK)
    for y in np.arange(0, 1, 0.125):
        x = -rng.uniform(0, 0.2)
        while x < 1:
            wide, (block, ink) = rng.uniform(0.2, 0.5), colours(rng, 2)
            draw.rectangle([scale * x, scale * y, scale * (x + wide), scale * (y + 0.125)], fill=block)
            font = ImageFont.load_default(round(scale * rng.uniform(0.07, 0.11)))
            ink = INK if sum(block) > 330 else ink
            draw.text((scale * (x + 0.01), scale * y), word(rng).upper(), font=font, fill=ink)
            x += wide
    return picture.reduce(2)


def bricks(rng: np.random.Generator, side: int) -> Image.Image:
    """A wall, each brick a little different."""
    stone, mortar = colours(rng, 2)
    picture, draw, scale = _sheet(side, mortar)
    high, wide = rng.uniform(0.03, 0.05), rng.uniform(0.08, 0.13)
    for number, y in enumerate(np.arange(0, 1, high)):
        for x in np.arange(-wide * (number % 2) / 2, 1, wide):
            colour = tuple(int(part) for part in np.clip(np.array(stone) * rng.uniform(0.5, 1.4), 0, 255))
            draw.rectangle([scale * x, scale * y, scale * (x + wide) - 6, scale * (y + high) - 6], fill=colour)
    return picture.reduce(2)


def honeycomb(rng: np.random.Generator, side: int) -> Image.Image:
    """Six-sided cells."""
    picture, draw, scale = _sheet(side, INK)
    shades, radius = colours(rng, 8), scale * rng.uniform(0.025, 0.045)
    corner_6 = radius * np.exp(1j * np.pi * (np.arange(6) / 3 + 1 / 6))
    for number, y in enumerate(np.arange(0, scale + radius, 1.5 * radius)):
        for x in np.arange(np.sqrt(0.75) * radius * (number % 2), scale + radius, np.sqrt(3) * radius):
            cell = [(x + corner.real, y + corner.imag) for corner in corner_6]
            draw.polygon(cell, fill=shades[rng.integers(8)], outline=INK, width=3)
    return picture.reduce(2)


def scales(rng: np.random.Generator, side: int) -> Image.Image:
    """Rows of overlapping discs, as on a fish or a roof."""
    picture, draw, scale = _sheet(side, INK)
    shades, radius = colours(rng, 8), scale * rng.uniform(0.03, 0.06)
    for number, y in enumerate(np.arange(scale + radius, -radius, -0.7 * radius)):
        for x in np.arange(radius * (number % 2), scale + radius, 2 * radius):
            disc = [x - radius, y - radius, x + radius, y + radius]
            draw.ellipse(disc, fill=shades[rng.integers(8)], outline=INK, width=3)
    return picture.reduce(2)


def confetti(rng: np.random.Generator, side: int) -> Image.Image:
    """Scraps of paper on a plain ground."""
    ground, *shades = colours(rng, 10)
    picture, draw, scale = _sheet(side, ground)
    for x, y, radius, turn, shade in _draws(rng, 500, (0, 1), (0, 1), (0.01, 0.03), (0, 2 * np.pi), (0, 9)):
        scrap_4 = x + 1j * y + radius * np.exp(1j * (turn + np.array([0, 0.9, np.pi, np.pi + 0.9])))
        draw.polygon([(scale * p.real, scale * p.imag) for p in scrap_4], fill=shades[int(shade)])
    return picture.reduce(2)


def _sheet(side: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A plain picture of twice the side to draw on, its pen, and its side."""
    picture = Image.new("RGB", (2 * side, 2 * side), colour)
    return picture, ImageDraw.Draw(picture), 2 * side


def _draws(rng: np.random.Generator, count: int, *ranges: tuple[float, float]) -> list[list[float]]:
    """`count` rows of one uniform draw from each range."""
    low, high = np.array(ranges).T
    return rng.uniform(low, high, (count, len(ranges))).tolist()


def _coloured(values_YX: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Values in [0, 1] in the colours of a random ramp from dark to light."""
    steps_KC = np.array(sorted(colours(rng, 5), key=sum))
    ramp_NC = np.stack([np.interp(np.linspace(0, 4, 256), range(5), steps_K) for steps_K in steps_KC.T], -1)
    return Image.fromarray(ramp_NC.astype(np.uint8)[(255 * values_YX).astype(np.uint8)])
