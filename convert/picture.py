"""Errors by depth as a picture: a mark a stage from left to right, its relative error upwards in decades."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from convert.comparison import Comparison

_WIDTH, _HEIGHT = 1200, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 40, 90
_DECADES = range(-8, 2)
_INK, _PALE, _GOOD, _BAD, _BOUND = "#222222", "#dddddd", "#1f6fb2", "#c0262c", "#999999"


def draw(comparisons: Sequence[Comparison]) -> Image.Image:
    """The picture of the stages in their order; those out of tolerance are red, the first of them named."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for decade in _DECADES:
        y = _height(10.0**decade)
        pen.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_PALE)
        pen.text((_LEFT - 8, y), f"1e{decade}", fill=_INK, font=font, anchor="rm")
    pen.text((_LEFT, _TOP - 24), "relative error by depth; grey: what is allowed", fill=_INK, font=font)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(comparisons))
    part, named = "", False
    for number, each in enumerate(comparisons):
        x, y = _LEFT + (number + 0.5) * step, _height(each.relative)
        if each.bound:
            bound = _height(each.bound)
            pen.line([(x - step / 2, bound), (x + step / 2, bound)], fill=_BOUND, width=2)
        colour = _BAD if each.within is False else _GOOD
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], outline=colour, fill=None if "quiet" in each.stage else colour)
        if each.stage.split()[0] != part:
            part = each.stage.split()[0]
            pen.line([(x - step / 2, _TOP), (x - step / 2, _HEIGHT - _BOTTOM)], fill=_PALE)
            _upright(picture, part, (int(x), _HEIGHT - _BOTTOM + 6), font)
        if each.within is False and not named:
            named = True
            pen.text((x, y - 8), each.stage, fill=_BAD, font=font, anchor="rb" if x > _WIDTH / 2 else "lb")
    return picture


def _height(error: float) -> float:
    """Where an error stands, the ends of the scale for those beyond it."""
    low, high = _DECADES[0], _DECADES[-1]
    level = math.log10(error) if error > 0 and math.isfinite(error) else low if error == 0 else high
    return _TOP + (high - min(max(level, low), high)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _upright(
    picture: Image.Image, text: str, at: tuple[int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    right, bottom = map(int, font.getbbox(text)[2:])
    label = Image.new("RGB", (right + 2, bottom + 2), "white")
    ImageDraw.Draw(label).text((0, 0), text, fill=_INK, font=font)
    turned = label.rotate(-90, expand=True)
    picture.paste(turned, (at[0] - turned.width // 2, at[1]))
