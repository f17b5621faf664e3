"""The figures of a run go in, as `summary.summarise` gives them; tables for people come out, and Markdown of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

FIGURES = ("srcc", "krcc", "plcc_raw", "plcc_fitted", "rmse_fitted")
TITLES = ("SRCC", "KRCC", "PLCC (raw)", "PLCC (fitted)", "RMSE (fitted)")
EXPECTED = "Expected: not the rating as written, but the mean of those that the model held likely at its digits."
LISTED = 10
"""Names of absent videos that a note holds; all stand in the report and the table of predictions."""
Found = Mapping[str, Any]


class Table(NamedTuple):
    """Texts, the first column of which names the row; notes stand below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(summary: Found, other: Found | None = None, other_name: str = "") -> list[Table]:
    """Agreement with labels, the published figures beside ours, accuracy by category, and what was counted.

    Rows of an `other` run's figures stand below this run's, under its name.
    """
    sets = summary["sets"]
    found = [_agreement(summary, other, other_name), _published(summary), _ratings(sets)]
    found += [_accuracy(name, numbers["accuracy"]) for name, numbers in sets.items() if "accuracy" in numbers]
    return [table for table in [*found, _counts(sets)] if table.rows]


def markdown(all_tables: Iterable[Table]) -> str:
    """Tables as Markdown, in which nothing of a name is markup."""
    lines = ["# Evaluation", ""]
    for table in all_tables:
        rows = [[_plain(cell) for cell in row] for row in table.rows]
        lines += [f"## {_plain(table.title)}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (table.header, ["---"] * len(table.header), *rows)]
        lines += ["", *(f"- {_plain(note)}" for note in table.notes), *[""] * bool(table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _agreement(summary: Found, other: Found | None, other_name: str) -> Table:
    rows, notes = [], []
    for name, numbers in summary["sets"].items():
        if "srcc" not in numbers:
            continue
        rows.append([name, numbers["coverage"], *(_figure(numbers[figure]) for figure in FIGURES)])
        notes += [f"{name}: {numbers[figure]['why']}" for figure in FIGURES if numbers[figure]["why"]]
        if expected := numbers.get("expected"):
            rows.append([f"{name}, expected", numbers["coverage"], *(_figure(expected[figure]) for figure in FIGURES)])
            notes.append(EXPECTED)
        if why := numbers.get("expected_why"):
            notes.append(f"{name}: {why}")
        if other and "srcc" in other["sets"].get(name, {}):
            theirs = other["sets"][name]
            label = f"{name}, {other_name}"
            rows.append([label, theirs["coverage"], *(_figure(theirs[figure]) for figure in FIGURES)])
    for name, means in summary["averages"].items():
        values = (_number(means.get(figure)) for figure in FIGURES)
        rows.append([f"{name}, weighted mean", f"{len(means['sets'])} set{'s' * (len(means['sets']) > 1)}", *values])
    if any(None in means.values() for means in summary["averages"].values()):
        notes.append("A mean is undefined (–) where that of one of its sets is.")
    notes.append("In brackets: bootstrap 95 % intervals. Fitted: after the 4-parameter logistic fit.")
    return Table("Agreement with labels", ["Set", "Rated", *TITLES], rows, list(dict.fromkeys(notes)))


def _published(summary: Found) -> Table:
    header = ["Set", "SRCC", "published", "difference", "PLCC (raw)", "published", "difference"]
    known = [(name, numbers) for name, numbers in summary["sets"].items() if "published" in numbers]
    means = [(f"{name}, weighted mean", m) for name, m in summary["averages"].items() if "published" in m]
    rows = [_beside(name, numbers) for name, numbers in [*known, *means]]
    notes = [
        f"{name}: {numbers['videos']} videos here, {numbers['published']['videos']} in the paper"
        for name, numbers in known
        if numbers["videos"] != numbers["published"]["videos"]
    ]
    return Table("Beside the published figures", header, rows, notes)


def _beside(name: str, numbers: Found) -> list[str]:
    cells = [name]
    for figure in "srcc", "plcc_raw":
        ours, difference = numbers.get(figure), numbers["difference"].get(figure)
        value = ours["value"] if isinstance(ours, Mapping) else ours
        cells += [_number(value), _number(numbers["published"][figure])]
        cells.append("–" if difference is None else f"{difference:+.3f}")
    return cells


def _ratings(sets: Mapping[str, Found]) -> Table:
    """Of sets without labels, for which there is no other figure."""
    rows = [
        [name, *(f"{numbers['ratings'][figure]:.2f}" for figure in ("mean", "lowest", "highest"))]
        for name, numbers in sets.items()
        if "ratings" in numbers and "srcc" not in numbers
    ]
    return Table("Ratings", ["Set", "Mean", "Lowest", "Highest"], rows)


def _accuracy(name: str, accuracy: Found) -> Table:
    counts = [("overall", accuracy["overall"]), *accuracy["categories"].items()]
    rows = [
        [category, f"{counted['right']} of {counted['questions']}", f"{counted['share']:.1%}"]
        for category, counted in counts
    ]
    return Table(f"{name}: accuracy", ["Category", "Right", "Share"], rows)


def _counts(sets: Mapping[str, Found]) -> Table:
    header = ["Set", "Videos", "Answered", "Unreadable", "Unparsable", "Cut off", "Absent"]
    rows = [
        [
            name,
            *(str(numbers[key]) for key in ("videos", "rated", "unreadable")),
            _share(numbers["unparsable"], numbers["parse_failure_rate"]),
            _share(numbers["cut_off"], numbers["truncation_rate"]),
            str(len(numbers["absent"])),
        ]
        for name, numbers in sets.items()
    ]
    notes = [_absent(name, numbers) for name, numbers in sets.items() if numbers["absent"]]
    return Table("Counts", header, rows, ["In brackets: of the videos that the model saw.", *notes])


def _share(count: int, share: float | None) -> str:
    return str(count) if share is None else f"{count} ({share:.1%})"


def _absent(name: str, numbers: Found) -> str:
    absent = numbers["absent"]
    more = f" and {len(absent) - LISTED} more, in predictions.csv" if len(absent) > LISTED else ""
    which = f"all {len(absent)} are absent: check the folder; " if len(absent) == numbers["videos"] else "absent: "
    return f"{name}: {which}{', '.join(absent[:LISTED])}{more}"


def _figure(figure: Found) -> str:
    interval = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{_number(figure['value'])}{interval}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """Text that can neither break a table nor become markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return text
