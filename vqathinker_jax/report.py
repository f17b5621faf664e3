"""What a run shows goes in; one HTML file comes out that needs nothing else, neither network nor files beside it.

Names, reasons and completions are data in it, never markup: they stand in one JSON block with `<` escaped, and its
script writes them as text. Frames are kept small enough that 10,000 videos still make a file that opens.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vqathinker_jax.data.feed import SHEET_COLUMNS, SHEET_SIDE
from vqathinker_jax.metrics import Logistic
from vqathinker_jax.summary import Entry, SetResult, summarise
from vqathinker_jax.tables import tables

TEMPLATE = Path(__file__).parent / "assets" / "report"
BUDGET = 48 << 20
"""Bytes of pictures in a report, about; where there are more, all are made smaller."""
SAMPLE, LEAST_SIDE = 32, 32
CURVE_POINTS = 80


class Beside(NamedTuple):
    """Another run over the same sets, to stand beside the one reported."""

    name: str
    results: Sequence[SetResult]


def write(
    path: Path,
    results: Sequence[SetResult],
    summary: Mapping[str, Any],
    sheet_of: Callable[[Mapping[str, Any]], Path],
    beside: Beside | None = None,
) -> None:
    """Write the report of sets and their summary, with another run's if any.

    sheet_of: from a row, the picture of the frames that the model saw (`feed.contact_sheet`), which may not exist.
    """
    sheets = _Sheets(sheet_of)
    others = {result.name: result for result in beside.results} if beside else {}
    rows = [row for result in results for row in _rows(result, others.get(result.name), sheets)]
    figures = tables(summary, summarise(beside.results, {}), beside.name) if beside else tables(summary)
    data = {
        "run": " · ".join(f"{name} {value}" for name, value in summary["run"].items() if value not in ([], None)),
        "task": summary["run"].get("task", "score"),
        "labelled": any(result.agreement is not None for result in results),
        "columns": SHEET_COLUMNS,
        "other": beside.name if beside else None,
        "tables": [table._asdict() for table in figures],
        "sets": [_set(result, others.get(result.name)) for result in results],
        "rows": rows,
    }
    path.write_text(_page(_embedded(data), "\n".join(sheets.encoded())), encoding="utf-8")


def _page(data: str, sheets: str) -> str:
    """The template with style, script, data and pictures in their places."""
    texts = {file: (TEMPLATE / file).read_text(encoding="utf-8") for file in ("page.html", "style.css", "report.js")}
    parts = {"style": texts["style.css"], "script": texts["report.js"], "data": data, "sheets": sheets}
    before, *rest = texts["page.html"].split("{{")
    pieces = [before]
    for piece in rest:  # in one pass, so that nothing within a part is taken for a place
        name, after = piece.split("}}", 1)
        pieces += [parts[name], after]
    return "".join(pieces)


def _embedded(data: Any) -> str:
    """JSON that can end no script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _set(result: SetResult, other: SetResult | None) -> dict[str, Any]:
    return {
        "name": result.name,
        "labelled": result.agreement is not None,
        "curve": _curve(result),
        "other_curve": _curve(other) if other else [],
    }


def _curve(result: SetResult) -> list[list[float | None]]:
    """Points of the fitted curve over the ratings given, with half the width of its band."""
    fit = result.agreement.fit if result.agreement else None
    if not isinstance(fit, Logistic):
        return []
    ratings = [entry.row["score"] for entry in result.entries if entry.row and entry.row.get("score") is not None]
    x_B = np.linspace(min(ratings), max(ratings), CURVE_POINTS)
    band_B = fit.band(x_B)
    halves = [None] * CURVE_POINTS if band_B is None else band_B.tolist()
    return [list(point) for point in zip(x_B.tolist(), fit(x_B).tolist(), halves, strict=True)]


def _rows(result: SetResult, other: SetResult | None, sheets: "_Sheets") -> list[dict[str, Any]]:
    theirs = {entry.item.name: entry for entry in other.entries} if other else {}
    agreement = result.agreement
    fit = agreement.fit if agreement and isinstance(agreement.fit, Logistic) else None
    spread = agreement.rmse_fitted.value if agreement else None
    return [_row(result.name, entry, theirs.get(entry.item.name), fit, spread, sheets) for entry in result.entries]


def _row(
    name: str, entry: Entry, other: Entry | None, fit: Logistic | None, spread: float | None, sheets: "_Sheets"
) -> dict[str, Any]:
    row, mos = entry.row or {}, entry.item.mos
    score = row.get("score")
    residual = _residual(fit, score, mos)
    theirs = (other.row if other else None) or {}
    choice = entry.item.choice
    return {
        "set": name,
        "video": entry.item.name,
        "status": entry.status,
        "score": score,
        "expected": row.get("expected"),
        "deviation": row.get("deviation"),
        "mos": mos,
        "residual": residual,
        "off": abs(residual) / spread if residual is not None and spread else None,
        "reason": "no such file, or it cannot be opened" if entry.row is None else row.get("reason"),
        "said": row.get("thinking") or row.get("text", ""),
        "question": choice and choice.question,
        "chosen": row.get("chosen"),
        "right": entry.right,
        "health": row.get("health", []),
        "times": row.get("frame_times_s", []),
        "frames": row.get("frame_indices", []),
        "sheet": sheets.number(row),
        "other": theirs.get("score"),
        "change": None if None in (score, theirs.get("score")) else score - theirs["score"],
        "other_said": theirs.get("thinking") or theirs.get("text") or theirs.get("reason") or "",
    }


def _residual(fit: Logistic | None, score: float | None, mos: float | None) -> float | None:
    if fit is None or score is None or mos is None:
        return None
    return float(fit(np.array([score]))[0]) - mos


class _Sheets:
    """The pictures of a report, each once however many rows show it."""

    def __init__(self, sheet_of: Callable[[Mapping[str, Any]], Path]):
        self._sheet_of = sheet_of
        self._numbers: dict[Path, int] = {}

    def number(self, row: Mapping[str, Any]) -> int | None:
        """Where a row's picture stands among all; None where it has none."""
        if "frame_times_s" not in row or not (path := self._sheet_of(row)).is_file():
            return None
        return self._numbers.setdefault(path, len(self._numbers))

    def encoded(self) -> list[str]:
        """All pictures in base64, made smaller where together they exceed the budget."""
        paths = list(self._numbers)
        side = _side(paths)
        with ThreadPoolExecutor() as pool:
            return [base64.b64encode(picture).decode() for picture in pool.map(lambda path: _shrunk(path, side), paths)]


def _side(paths: Sequence[Path]) -> int:
    """The largest side of a frame with which all pictures fit the budget, judged by some of them."""
    if sum(path.stat().st_size for path in paths) <= BUDGET:
        return SHEET_SIDE
    some = paths[:: max(len(paths) // SAMPLE, 1)]
    sides = range(SHEET_SIDE - 8, LEAST_SIDE, -8)
    fits = (side for side in sides if np.mean([len(_shrunk(path, side)) for path in some]) * len(paths) <= BUDGET)
    return next(fits, LEAST_SIDE)


def _shrunk(path: Path, side: int) -> bytes:
    if side == SHEET_SIDE:
        return path.read_bytes()
    with Image.open(path) as sheet:
        rows = sheet.height // SHEET_SIDE
        small = sheet.convert("RGB").resize((SHEET_COLUMNS * side, rows * side), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=50)
    return file.getvalue()
