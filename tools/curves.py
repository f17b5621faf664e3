"""Curves and measurements of the learning experiment go in; figures as SVG come out, drawn by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, MARGIN = 300, 190, 36
COLUMNS = 3
COLOURS = ("#2166ac", "#1b7837", "#b2182b", "#777777", "#762a83")
WINDOW = 12
"""Steps that a drawn point is the mean of."""
PANELS = {
    "reward": "reward",
    "reward_ranking": "ranking reward",
    "reward_regression": "regression reward",
    "reward_format": "format reward",
    "reward_temporal": "temporal bonus",
    "kl": "KL from the reference",
    "length": "tokens an answer",
}
DRAWN = ("step", "loss", *PANELS)
"""The metrics that the figures show."""
Runs = Mapping[str, Sequence[Mapping[str, float]]]


def write_figures(folder: Path, curves: Mapping[str, Runs], summary: Mapping[str, Any]) -> None:
    """Write `warm_start.svg` and `grpo.svg`, the metrics of every step, and `held_out.svg`, before and after."""
    _write(folder / "warm_start.svg", [_lines("loss of the warm start", "loss", curves["warm_start"])])
    _write(folder / "grpo.svg", [_lines(title, key, curves["grpo"]) for key, title in PANELS.items()])
    stages = summary["details"]["seeds"]
    panels = []
    for split in ("in_domain", "out_of_domain"):
        measured = {f"{stage} {i}": each[stage][split] for i, each in enumerate(stages) for stage in each}
        name = split.replace("_", " ")
        for figure in ("srcc", "plcc"):
            found = {run: each[figure] for run, each in measured.items()}
            panels.append(_intervals(f"{name} {figure.upper()}", found))
        expected = {run: each["expected"]["srcc"] for run, each in measured.items()}
        panels.append(_intervals(f"{name} SRCC, expected ratings", expected))
    _write(folder / "held_out.svg", panels)


@dataclass(frozen=True)
class Frame:
    """A panel's axes: where values stand in pixels."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return MARGIN + (WIDTH - MARGIN - 8) * (value - self.left) / ((self.right - self.left) or 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return 24 + (HEIGHT - 24 - 22) * (self.high - value) / ((self.high - self.low) or 1)

    def axes(self, title: str) -> list[str]:
        """The title, and lines at three heights with their values."""
        parts = [_text(MARGIN, 14, title, "start", bold=True)]
        for value in (self.low, (self.low + self.high) / 2, self.high):
            at = self.y(value)
            parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
            parts.append(_text(MARGIN - 4, at + 3, f"{value:.3g}", "end"))
        return parts


def _lines(title: str, key: str, runs: Runs) -> str:
    smooth = {name: _smoothed([row[key] for row in rows if key in row]) for name, rows in runs.items()}
    smooth = {name: values for name, values in smooth.items() if len(values)}
    if not smooth:
        return ""
    every = np.concatenate(list(smooth.values()))
    frame = Frame(0, max(map(len, smooth.values())), float(every.min()), float(every.max()))
    parts = frame.axes(title)
    for number, (name, values) in enumerate(smooth.items()):
        points = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in enumerate(values))
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(_text(MARGIN + 64 * number, HEIGHT - 5, name, "start", colour))
    return "".join(parts)


def _intervals(title: str, found: Mapping[str, Sequence[float]]) -> str:
    """A dot a model, its 95 % interval a line; warm starts grey, trained models blue."""
    frame = Frame(-0.5, len(found) - 0.5, min(0.0, *(low for _, low, _ in found.values())), 1.0)
    parts = frame.axes(title)
    for place, (name, (value, low, high)) in enumerate(found.items()):
        colour, at = COLOURS[3] if name.startswith("warm") else COLOURS[0], frame.x(place)
        ends = f'y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"'
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" {ends} stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{frame.y(value):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(_text(at, HEIGHT - 5, name.replace("warm_start", "warm"), "middle", colour))
    return "".join(parts)


def _smoothed(values: Sequence[float]) -> np.ndarray:
    """Means over the `WINDOW` values up to each."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333", *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'


def _write(path: Path, panels: Sequence[str]) -> None:
    """One picture of panels, `COLUMNS` a row."""
    panels = [panel for panel in panels if panel]
    columns, rows = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    size = f'width="{columns * WIDTH}" height="{rows * HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        parts.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT})">{panel}</g>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
