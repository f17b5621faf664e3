"""What to evaluate on, in any of its forms, goes in; named sets of videos, labelled or not, come out.

A meta is one of the reference's JSON files, a CSV with columns `video` and `mos`, training JSON lines, JSON lines of
multiple-choice questions, a YAML list of several of these with their folders, or simply a folder of videos. Videos may
be absent; whatever else is wrong is told at once, with its file and line, before anything runs.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqathinker_jax.data.manifest import (
    Report,
    bytes_of,
    finite,
    inside,
    lines_of,
    parsed,
    read_evaluation,
    training_rows,
)
from vqathinker_jax.data.paths import expand
from vqathinker_jax.records import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question: its text, its options in order, and which of them (from 0) is right."""

    question: str
    options: tuple[str, ...]
    right: int
    category: str


@dataclass(frozen=True)
class Item:
    """One thing to look at.

    name: names it within its set: the video's path below the set's folder; of questions, with its line.
    mos:  the label on the set's own scale; None where there is none.
    """

    name: str
    video: Path
    mos: float | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class VideoSet:
    """The items of one data set, in the order of its file, no two of one name."""

    name: str
    items: tuple[Item, ...]


def read_sets(meta: Path, folder: Path | None = None) -> tuple[VideoSet, ...]:
    """The rated or unrated sets of a meta, whose videos lie below `folder`; by default below the meta's own.

    A YAML list holds `meta`, `videos` (below `folder`) and, where the file's name will not do, `name`.

    Raises:
        InputError: the list of all faults, one a line.
    """
    if meta.is_dir() and folder is not None:
        raise InputError(f"{meta}: is itself a folder of videos; leave --videos out, or name a list of what is in it")
    if meta.suffix.lower() not in {".yaml", ".yml"}:
        return (_read_set(meta, folder),)
    report = Report()
    sets = []
    for number, entry in enumerate(report.attempt(f"{meta}", _entries, meta) or [], 1):
        where = f"{meta}: set {number}"
        paths = report.attempt(where, _paths, entry, meta.parent, folder or meta.parent)
        found = paths and report.attempt(where, _read_set, *paths)
        if found:
            sets.append(VideoSet(str(entry.get("name", found.name)), found.items))
    for name, times in Counter(found.name for found in sets).items():
        if times > 1:
            report.add(f"{meta}", f'{times} sets are called {name!r}: give each its own "name"')
    report.close()
    return tuple(sets)


def read_choices(questions: Path, folder: Path | None = None) -> tuple[VideoSet, ...]:
    """The questions of JSON lines `{"video", "question", "options", "answer", "category"}`, as one set.

    Options are a list, or an object by letter; the answer is a letter or the option's own text; a category may be
    missing.

    Raises:
        InputError: the list of all faults, one a line.
    """
    if questions.is_dir() or questions.suffix.lower() in {".csv", ".yaml", ".yml"}:
        raise InputError(f"{questions}: holds no questions; name JSON lines with video, question, options and answer")
    report, items = Report(), []
    root = (folder or questions.parent).resolve()
    for number, line in report.attempt(f"{questions}", lines_of, questions) or []:
        if item := _question(questions, number, line, root, report):
            items.append(item)
    report.close()
    return (VideoSet(questions.stem, tuple(items)),)


def _question(questions: Path, number: int, line: bytes, root: Path, report: Report) -> Item | None:
    where = f"{questions}:{number}"
    entry = report.attempt(where, parsed, line)
    if entry is None:
        return None
    name = report.attempt(where, _text, entry, "video")
    video = None if name is None else report.attempt(where, inside, root, name)
    choice = report.attempt(where, _choice, entry)
    if video is None or choice is None:
        return None
    return Item(f"{name}#{number}", video, choice=choice)


def _read_set(meta: Path, folder: Path | None) -> VideoSet:
    if meta.is_dir():
        videos = expand([str(meta)])
        return VideoSet(meta.resolve().name, tuple(Item(path.relative_to(meta).as_posix(), path) for path in videos))
    readers = {".json": _json, ".csv": _csv, ".jsonl": _json_lines}
    if meta.suffix.lower() not in readers:
        kinds = ", ".join([*readers, ".yaml"])
        raise InputError(f"{meta}: not a kind of list that is known; name a folder of videos or one of {kinds}")
    return VideoSet(meta.stem, tuple(readers[meta.suffix.lower()](meta, folder or meta.parent)))


def _json(meta: Path, folder: Path) -> Iterator[Item]:
    return (Item(row.name, row.video, row.mos) for row in read_evaluation(meta, folder))


def _json_lines(meta: Path, folder: Path) -> list[Item]:
    report = Report()
    _, rows = training_rows(meta, folder, report)
    found = [(f"{meta}:{row.line}", Item(row.name, row.video, row.mos)) for row in rows]
    return _closed(report, found)


def _csv(meta: Path, folder: Path) -> list[Item]:
    report, found = Report(), []
    root = folder.resolve()
    for line, row in report.attempt(f"{meta}", _table, meta) or []:
        where = f"{meta}:{line}"
        name = report.attempt(where, _text, row, "video")
        video = name and report.attempt(where, inside, root, name)
        mos = report.attempt(where, finite, row.get("mos"), "mos")
        if name and video and mos is not None:
            found.append((where, Item(name, video, mos)))
    return _closed(report, found)


def _closed(report: Report, found: list[tuple[str, Item]]) -> list[Item]:
    """The items, no two of one name; raises what the report holds."""
    first: dict[str, str] = {}
    for where, item in found:
        if first.setdefault(item.name, where) != where:
            report.add(where, f"{item.name!r} stands at {first[item.name]} too: keep one of them")
    report.close()
    return [item for _, item in found]


def _table(meta: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a CSV by its header, in small letters, with their lines; semicolons or tabs may stand for commas."""
    try:
        text = bytes_of(meta).decode("utf-8-sig")
        if not text.strip():
            raise InputError("is empty: write rows separated by commas, below the header video,mos")
        header = text.partition("\n")[0]
        between = max(",;\t", key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=between)
        columns = [name.strip() for name in reader.fieldnames or []]
        columns = [name if name.lower() in columns else name.lower() for name in columns]
        if twice := [name for name in ("video", "mos") if columns.count(name) > 1]:
            raise InputError(f"more than one column {' and '.join(twice)}: rename all but one in the first line")
        reader.fieldnames = columns
        missing = [name for name in ("video", "mos") if name not in columns]
        if missing:
            raise InputError(
                f"no column {' or '.join(missing)} (found: {', '.join(columns)}): name it in the first line"
            )
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not valid CSV ({error}): write rows separated by commas, in UTF-8") from None
    if not rows:
        raise InputError("holds no rows: write one video a line, below the header video,mos")
    return rows


def _entries(meta: Path) -> list[dict[str, Any]]:
    import yaml  # comes with flax; needed for this one form of list

    text = bytes_of(meta)
    try:
        entries = yaml.safe_load(text)
    except Exception as error:  # not only its own: impossible dates, odd tags and deep nesting come as Python's
        raise InputError(f"not valid YAML ({' '.join(str(error).split()):.120}): write a list of sets") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("holds no list of sets: write one '- meta: FILE' with 'videos: FOLDER' for each")
    return entries


def _paths(entry: dict[str, Any], metas: Path, videos: Path) -> tuple[Path, Path]:
    return metas / _text(entry, "meta"), videos / _text(entry, "videos")


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'no "{key}": write it as text')
    return value.strip()


def _choice(entry: dict[str, Any]) -> Choice:
    options, answer = _options(entry.get("options")), _text(entry, "answer")
    letters = list(LETTERS[: len(options)])
    if options.count(answer) == 1:
        right = options.index(answer)
    elif answer.rstrip(".") in letters:
        right = letters.index(answer.rstrip("."))
    else:
        raise InputError(f'"answer" is {answer!r:.80}: give the letter or the text of one of the options')
    return Choice(_text(entry, "question"), options, right, str(entry.get("category") or "all"))


def _options(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        value = [value.get(letter) for letter in LETTERS[: len(value)]]
    texts = [text for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []
    if not 2 <= len(texts) <= len(LETTERS) or len(texts) < len(value):
        raise InputError('"options" is no list of 2 to 26 texts, nor an object of them by letter: write ["Yes", "No"]')
    return tuple(texts)
