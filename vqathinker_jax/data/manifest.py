"""Lists of rated videos go in, training lines or an evaluation meta; a checked row a video comes out.

A list is read whole before anything runs, and every fault in it stands in one report, with its file and line.

Deviations from the reference, which takes what it is given: a name may not leave its folder, an id stands once in a
data set, and an answer is a finite number.
Source: the reference's `grpo_jsonl.py` for training; its evaluation metas.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vqathinker_jax.records import InputError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_TAGS = re.compile(r"</?answer>")
_SLOT = "<image>"

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One rated video of a list.

    id:      names the row within its data set; where a training line has none, its file and line do.
    dataset: the data set's name; where the list has none, its file's.
    name:    the video's path below the folder, as the list gives it.
    video:   the file itself.
    problem: the question that training asks about the video; empty in evaluation, where it is always the same.
    mos:     mean opinion score: 1..5 in training, on the set's own scale in evaluation.
    line:    where the row stands in its file, from 1: which line in training, which annotation in evaluation.
    response: the text that supervised training is to teach, where the training line has one.
    """

    id: str
    dataset: str
    name: str
    video: Path
    problem: str
    mos: float
    line: int
    response: str | None = None


def read_training(manifests: str, folders: str, require_files: bool = True) -> list[tuple[Row, ...]]:
    """Return the rows of JSON-lines manifests, one tuple a manifest; manifests and their folders are joined by `:`.

    `require_files` makes a video that does not exist a fault; without it the rows come as they are.

    Raises:
        InputError: the list of all faults, one a line: files that cannot be read, lines that are no JSON or lack a
            part, videos outside their folder or absent, answers that are no finite number, ids used twice.
    """
    report = Report()
    sets = [training_rows(manifest, folder, report) for manifest, folder in _pairs(manifests, folders)]
    first_use: dict[tuple[str, str], str] = {}
    for manifest, rows in sets:
        for row in rows:
            where = f"{manifest}:{row.line}"
            earlier = first_use.setdefault((row.dataset, row.id), where)
            if earlier != where:
                report.add(where, f"id {row.id!r} of {row.dataset} stands at {earlier} too: give each row its own")
        if require_files:
            _report_absent(manifest, rows, report)
    report.close()
    return [rows for _, rows in sets]


def read_evaluation(meta: Path, folder: Path) -> tuple[Row, ...]:
    """Return the rows of an evaluation meta, `{"annotations": [{"image_id", "ann_type", "score"}, …]}`, in its order.

    Videos may be absent (see `split_absent`); scores keep the set's own scale.

    Raises:
        InputError: the list of all faults, one a line, each with the number of its annotation, from 1.
    """
    report = Report()
    annotations = report.attempt(f"{meta}", _annotations, meta) or []
    root = folder.resolve()
    rows: dict[str, Row] = {}
    for number, annotation in enumerate(annotations, 1):
        where = f"{meta}: annotation {number}"
        entry = report.attempt(where, _object, annotation)
        if entry is None:
            continue
        name = report.attempt(where, _image_id, entry)
        video = None if name is None else report.attempt(where, inside, root, name)
        mos = report.attempt(where, finite, entry.get("score"), "score")
        if name is None or video is None or mos is None:
            continue
        row = Row(name, meta.stem, name, video, "", mos, number)
        if rows.setdefault(name, row) is not row:
            report.add(where, f"{name!r} is annotation {rows[name].line} too: keep one of them")
    report.close()
    return tuple(rows.values())


def split_absent(rows: Iterable[Row]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the rows whose video exists and those whose video does not, each in the order given."""
    present, absent = [], []
    for row in rows:
        (present if row.video.is_file() else absent).append(row)
    return tuple(present), tuple(absent)


@dataclass
class Report:
    """Collects faults instead of stopping at the first."""

    faults: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, fault: object) -> None:
        """A fault, and the file or the line of it that it is in."""
        self.faults.append((where, str(fault)))

    def attempt(self, where: str, step: Callable[..., T], *arguments: object) -> T | None:
        """What `step` returns; None where it raises an InputError, which is kept with the place it speaks of."""
        try:
            return step(*arguments)
        except InputError as fault:
            self.add(where, fault)
            return None

    def close(self) -> None:
        """Raise InputError with everything found, if anything was, by file and line."""
        if self.faults:
            count = len(self.faults)
            lines = (f"{where}: {fault}" for where, fault in sorted(self.faults, key=lambda found: _numbered(found[0])))
            raise InputError("\n".join([f"{count} {'fault' if count == 1 else 'faults'} in the data:", *lines]))


def _numbered(where: str) -> list[tuple[int, str]]:
    """A key that sorts line 9 before line 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", where)]


def _pairs(manifests: str, folders: str) -> list[tuple[Path, Path]]:
    files, roots = manifests.split(":"), folders.split(":")
    if len(files) != len(roots):
        raise InputError(
            f"{len(files)} manifests ({manifests}) but {len(roots)} folders ({folders}): join one for each by ':'"
        )
    if "" in files + roots:
        raise InputError(f"{manifests} or {folders} has an empty name between its ':': take it out")
    if len(set(files)) < len(files):
        raise InputError(f"{manifests} names a file twice: name each once and give it more weight instead")
    return [(Path(file), Path(root)) for file, root in zip(files, roots, strict=True)]


def training_rows(manifest: Path, folder: Path, report: Report) -> tuple[Path, tuple[Row, ...]]:
    """The manifest and its sound rows; the faults of the others go to the report."""
    root = folder.resolve()
    lines = report.attempt(f"{manifest}", lines_of, manifest) or []
    rows = (_training_row(manifest, number, line, root, report) for number, line in lines)
    return manifest, tuple(row for row in rows if row)


def _training_row(manifest: Path, number: int, line: bytes, root: Path, report: Report) -> Row | None:
    where = f"{manifest}:{number}"
    entry = report.attempt(where, parsed, line)
    if entry is None:
        return None
    name = report.attempt(where, _image, entry)
    video = None if name is None else report.attempt(where, inside, root, name)
    problem = report.attempt(where, _problem, entry)
    mos = report.attempt(where, _answer, entry)
    response = report.attempt(where, _response, entry)
    if name is None or video is None or problem is None or mos is None or response is None:
        return None
    id_, dataset = entry.get("id"), entry.get("dataset_name")
    return Row(
        id=where if id_ is None else str(id_),
        dataset=manifest.stem if dataset is None else str(dataset),
        name=name,
        video=video,
        problem=problem,
        mos=mos,
        line=number,
        response=response or None,
    )


def _report_absent(manifest: Path, rows: tuple[Row, ...], report: Report) -> None:
    present, absent = split_absent(rows)
    if len(absent) > 1 and not present:  # one cause, not thousands
        report.add(f"{manifest}", f"none of its {len(absent)} videos exists, as {absent[0].video}: check the folder")
        return
    for row in absent:
        report.add(f"{manifest}:{row.line}", f"video {row.video} does not exist: add it or drop the row")


def bytes_of(path: Path) -> bytes:
    """The file; raises InputError, without its name, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}): check the path") from None


def lines_of(manifest: Path) -> list[tuple[int, bytes]]:
    """The lines that hold anything, with their numbers."""
    lines = [(number, line) for number, line in enumerate(bytes_of(manifest).split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InputError("holds no rows: write one JSON object a line")
    return lines


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object, in which Python takes NaN and Infinity for numbers."""
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, numbers of thousands of digits; deep nesting
        raise InputError(f"not valid JSON ({error}): write one object in UTF-8") from None
    return _object(value)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object {{…}}, found a {type(value).__name__}")
    return value


def _annotations(meta: Path) -> list[Any]:
    annotations = parsed(bytes_of(meta)).get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise InputError('no list "annotations": write {"annotations": [{"image_id": …, "score": …}]}')
    return annotations


def _image(entry: dict[str, Any]) -> str:
    image = entry.get("image")
    if isinstance(image, list) and len(image) > 1:
        raise InputError(f'"image" names {len(image)} files: name one video')
    name = image[0] if isinstance(image, list) and image else image
    if not isinstance(name, str) or not name.strip():
        asked = ", or evaluate questions by --task choice" if "options" in entry else ""
        raise InputError(f'no video: name its file as "image"{asked}')
    return name


def _image_id(annotation: dict[str, Any]) -> str:
    name = annotation.get("image_id")
    if not isinstance(name, str) or not name.strip():
        raise InputError('no video: name its file as "image_id"')
    if annotation.get("ann_type", "score") != "score":
        raise InputError(f'"ann_type" is {annotation["ann_type"]!r}: only "score" is known')
    return name


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`, a resolved folder; a name that leads elsewhere, be it by a link, is refused."""
    try:
        leaves = Path(name).is_absolute() or ".." in Path(name).parts
        leaves = leaves or not (root / name).resolve().is_relative_to(root)
        (root / name).exists()  # raises for what is no path at all, which resolving lets pass
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a NUL
        raise InputError(f"video {name!r:.80} cannot be reached ({error!s:.80}): correct its name") from None
    if leaves:
        raise InputError(f"video {name!r} leaves the folder {root}: move the file into it")
    return root / name


def _said_by(speaker: str, entry: dict[str, Any]) -> Any:
    turns = entry.get("conversations")
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == speaker and "value" in turn:
            return turn["value"]
    raise InputError(f'no turn of "{speaker}" in "conversations": add {{"from": "{speaker}", "value": …}}')


def _problem(entry: dict[str, Any]) -> str:
    """The question as written, without the slots that the prompt sets itself."""
    problem = _said_by("human", entry)
    if not isinstance(problem, str) or not problem.replace(_SLOT, "").strip():
        raise InputError('the question of "human" is empty or no text: write what is asked of the video')
    return problem.replace(_SLOT, "")


def _response(entry: dict[str, Any]) -> str:
    """What supervised training is to teach; empty where nothing is."""
    response = entry.get("response", "")
    if not isinstance(response, str):
        raise InputError(f'"response" is a {type(response).__name__}: write the text that training is to teach')
    return response


def _answer(entry: dict[str, Any]) -> float:
    return finite(_said_by("gpt", entry), "answer")


def finite(value: object, label: str) -> float:
    """A finite number out of a JSON number, or out of text, with answer tags or without; InputError by its `label`."""
    text = _TAGS.sub("", str(value)).strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise InputError(f"{label} {value!r:.80} is no finite number: write one such as 3.42")
    return number
