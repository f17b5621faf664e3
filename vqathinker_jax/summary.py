"""Sets and predictions go in; what a run shows comes out: per set and over sets, as JSON, as Markdown, and as a table.

A video counts where it was rated and has a label. What was left out is counted beside: absent, unreadable, answers
without a rating, and answers that were cut off.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqathinker_jax.data.labels import LETTERS, Item, VideoSet
from vqathinker_jax.data.paper import IN, OUT, published
from vqathinker_jax.metrics import Agreement, Logistic, agreement, weighted_mean
from vqathinker_jax.tables import FIGURES, markdown, tables

COLUMNS = (
    "set",
    "video",
    "mos",
    "score",
    "expected",
    "deviation",
    "status",
    "reason",
    "category",
    "right",
    "chosen",
    "correct",
)
TEXTS = ("thinking", "answer", "text")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """An item and its row; None where the file is absent or cannot be opened."""

    item: Item
    row: Row | None

    @property
    def status(self) -> str:
        """ok · unreadable · unparsable · absent."""
        if self.row is None:
            return "absent"
        if self.row["status"] == "ok":
            return "ok"
        return "unparsable" if "text" in self.row else "unreadable"

    @property
    def right(self) -> str | None:
        """The letter of the right option of a question."""
        return LETTERS[self.item.choice.right] if self.item.choice else None

    @property
    def correct(self) -> bool:
        """Whether the right option was chosen; no answer is not right."""
        return self.right is not None and self.row is not None and self.row.get("chosen") == self.right

    def fields(self) -> dict[str, Any]:
        """The entry as one row of a table."""
        row = {name: value for name, value in (self.row or {}).items() if name in (*COLUMNS, *TEXTS)}
        row |= {"video": self.item.name, "mos": self.item.mos, "status": self.status}
        if choice := self.item.choice:
            row |= {"category": choice.category, "right": self.right, "correct": self.correct}
        return {name: value for name, value in row.items() if value is not None}


@dataclass(frozen=True)
class SetResult:
    """One set: its entries in their order, and how ratings agree with labels, where there are both.

    expected: the same of the ratings' expectations, where there is one for every rating.
    """

    name: str
    entries: tuple[Entry, ...]
    agreement: Agreement | None
    expected: Agreement | None = None

    def count(self, *statuses: str) -> int:
        """Entries of these statuses."""
        return sum(entry.status in statuses for entry in self.entries)

    def numbers(self) -> dict[str, Any]:
        """Everything but the rows, as JSON values."""
        seen, cut = self.count("ok", "unparsable"), sum(bool(e.row and e.row.get("cut_off")) for e in self.entries)
        ok = self.count("ok")
        found: dict[str, Any] = {
            "videos": len(self.entries),
            "rated": ok,
            "coverage": f"{ok} of {len(self.entries)}",
            "absent": [entry.item.name for entry in self.entries if entry.status == "absent"],
            "unreadable": self.count("unreadable"),
            "unparsable": self.count("unparsable"),
            "cut_off": cut,
            "parse_failure_rate": self.count("unparsable") / seen if seen else None,
            "truncation_rate": cut / seen if seen else None,
        }
        ratings = [entry.row["score"] for entry in self.entries if entry.row and entry.row.get("score") is not None]
        if ratings:
            found["ratings"] = {"mean": float(np.mean(ratings)), "lowest": min(ratings), "highest": max(ratings)}
        if self.agreement is not None:
            found |= {name: asdict(getattr(self.agreement, name)) for name in FIGURES}
            found["logistic"] = _curve(self.agreement.fit)
        if self.expected is not None:
            found["expected"] = {name: asdict(getattr(self.expected, name)) for name in FIGURES}
        elif self.agreement is not None and ratings:
            known = sum(bool(entry.row) and entry.row.get("expected") is not None for entry in self.entries)
            found["expected_why"] = (
                f"only {known} of {ok} ratings have an expected value, so no figures are given for these"
            )
        if known := published(self.name):
            found["published"] = {"srcc": known.srcc, "plcc_raw": known.plcc, "videos": known.videos}
            found["difference"] = {
                name: None if found[name]["value"] is None else found[name]["value"] - found["published"][name]
                for name in ("srcc", "plcc_raw")
                if name in found
            }
        if any(entry.item.choice for entry in self.entries):
            found["accuracy"] = _accuracy(self.entries)
        return found


def join(
    sets: Sequence[VideoSet], rows: Mapping[tuple[str, str], Row], *, rated: bool = True, resamples: int = 1000
) -> list[SetResult]:
    """The sets with their rows and figures; the intervals come from `resamples` draws.

    rated: whether ratings were asked for; without, labels are kept and nothing is held against them.
    """
    return [_result(found, rows, rated, resamples) for found in sets]


def _result(found: VideoSet, rows: Mapping[tuple[str, str], Row], rated: bool, resamples: int) -> SetResult:
    entries = tuple(Entry(item, rows.get((found.name, item.name))) for item in found.items)
    if not rated or all(item.mos is None for item in found.items):
        return SetResult(found.name, entries, None)
    ratings = _labelled(entries, "score")
    expected = _labelled(entries, "expected")
    whole = 0 < len(expected) == len(ratings)
    return SetResult(
        found.name,
        entries,
        agreement(*ratings.T, resamples=resamples),
        agreement(*expected.T, resamples=resamples) if whole else None,
    )


def _labelled(entries: Iterable[Entry], name: str) -> np.ndarray:
    """This field of rows, with the labels, [B, 2]; those that have both."""
    both = [(e.row[name], e.item.mos) for e in entries if e.row and e.row.get(name) is not None]
    return np.array([pair for pair in both if pair[1] is not None], np.float64).reshape(-1, 2)


def summarise(results: Sequence[SetResult], run: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of a run as JSON values: what made it, its sets, and the averages weighted by numbers of videos."""
    sets = {result.name: result.numbers() for result in results}
    return {"run": dict(run), "sets": sets, "averages": _averages(sets)}


def _averages(sets: Mapping[str, Row]) -> dict[str, Any]:
    """Over the paper's two groups of sets, as far as they are here; and over all labelled sets where there are more."""
    labelled = [name for name, found in sets.items() if "srcc" in found]
    groups = {name: [s for s in labelled if (known := published(s)) and known.domain == name] for name in (IN, OUT)}
    groups["all"] = labelled if len(labelled) > 1 and labelled not in groups.values() else []
    return {name: _average([sets[s] for s in members], members) for name, members in groups.items() if members}


def _average(found: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    means: dict[str, Any] = {"sets": list(names), "videos": sum(s["videos"] for s in found)}
    means |= {
        name: weighted_mean((s[name]["value"], s["videos"]) for s in found) for name in FIGURES if name != "rmse_fitted"
    }
    if all("published" in s for s in found):
        known = {
            name: weighted_mean((s["published"][name], s["published"]["videos"]) for s in found)
            for name in ("srcc", "plcc_raw")
        }
        means["published"] = known
        means["difference"] = {name: None if means[name] is None else means[name] - known[name] for name in known}
    return means


def _curve(fit: Logistic | str) -> dict[str, Any]:
    if isinstance(fit, str):
        return {"why": fit}
    return {"high": fit.high, "low": fit.low, "middle": fit.middle, "width": fit.width}


def _accuracy(entries: Iterable[Entry]) -> dict[str, Any]:
    """Right answers, of all questions and by category; a question without an answer counts as wrong."""
    outcomes: dict[str, list[bool]] = {}
    for entry in entries:
        if entry.item.choice:
            outcomes.setdefault(entry.item.choice.category, []).append(entry.correct)
    every = [right for rights in outcomes.values() for right in rights]
    return {"overall": _share(every), "categories": {name: _share(outcomes[name]) for name in sorted(outcomes)}}


def _share(rights: Sequence[bool]) -> dict[str, Any]:
    return {"right": sum(rights), "questions": len(rights), "share": sum(rights) / len(rights)}


def write(folder: Path, results: Sequence[SetResult], summary: Mapping[str, Any]) -> None:
    """Write summary.json, summary.md and predictions.csv; bytes of a file's name that are no UTF-8 as escapes."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(markdown(tables(summary)), encoding="utf-8", errors="backslashreplace")
    with (folder / "predictions.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, [*COLUMNS, *TEXTS], restval="")
        table.writeheader()
        for result in results:
            for entry in result.entries:
                table.writerow({"set": result.name, **entry.fields()})
