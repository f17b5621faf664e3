"""The predictions of one run on disk: a row a video, added as it is made, whole whatever ends the program.

    run.json                     what made the rows: checkpoint, settings, task, and the names of the sets
    predictions.jsonl            one row a video, failures included, as ASCII JSON; a torn one is taken out on opening
    predictions-2-of-4.jsonl     the rows of one host of several, until a run of the whole takes them in
    .lock                        held by the process at work; hosts hold it together, each with one of its own

A row counts for a video as long as `run.json`'s run and the file's content are the same.
"""

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from vqathinker_jax.records import InputError

Row = dict[str, Any]
T = TypeVar("T")
RUN, LOCK = "run.json", ".lock"


@dataclass(frozen=True)
class Share:
    """Which part of the videos is this process's: number `number` (from 1) of `of`, all of them by default."""

    number: int = 1
    of: int = 1

    @staticmethod
    def parse(text: str) -> "Share":
        """A share as written, "2/4".

        Raises: InputError where it is not written so.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"share is {text!r}: write which of how many, as in 2/4")
        return Share(int(match[1]), int(match[2]))

    def take(self, everything: Sequence[T]) -> Sequence[T]:
        """This share of a list that is the same for all."""
        return everything[self.number - 1 :: self.of]

    @property
    def suffix(self) -> str:
        """Of the names of this share's files."""
        return "" if self.of == 1 else f"-{self.number}-of-{self.of}"

    @property
    def file(self) -> str:
        """The name of its file of rows."""
        return f"predictions{self.suffix}.jsonl"


ALL = Share()


class Predictions:
    """The rows of one run in a folder, held by this process until it is closed.

    rows: the latest row of each (set, video), other hosts' included.
    """

    def __init__(
        self, folder: Path, run: Mapping[str, Any], sets: set[str], *, resume: bool = True, share: Share = ALL
    ):
        """Open the folder, or make it; without `resume` what an earlier run predicted is deleted.

        run: what a row depends on besides the video's content, as JSON values.

        Raises: InputError where the folder holds something else or another run, another process is at work in it, or
        one share of several is to start over, which would take the others' rows away.
        """
        check_folder(folder)
        if share.of > 1 and not resume:
            raise InputError(f"{folder}: a share cannot start over, other hosts' rows are there too; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / share.file
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(folder / LOCK, shared=share.of > 1))
            if share.of > 1:
                stack.enter_context(_locked(folder / f"{LOCK}{share.suffix}", shared=False))
            if not resume and (folder / RUN).is_file():
                _forget(folder)
            _record_run(folder, dict(run), sets)
            self.rows = _open_rows(folder, share)
            self._file = stack.enter_context(self._path.open("ab", buffering=0))
            self._replaced = False
            self._held = stack.pop_all()

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave one row a video in the file, and the folder to others."""
        if self._replaced:
            _write(self._path, "".join(map(_line, read_rows(self._path).values())))
        self._held.close()

    def add(self, row: Row) -> None:
        """Put a row, with its `set` and `video`, on disk; it takes the place of an earlier one of that video."""
        place = row["set"], row["video"]
        self._replaced |= place in self.rows
        self.rows[place] = row
        self._file.write(_line(row).encode())  # one call, so that all of it or nothing is there after a kill
        os.fsync(self._file.fileno())


def check_folder(folder: Path) -> None:
    """Check that `folder` may take an evaluation: it is new, empty, or holds one.

    Raises: InputError where it is a file, or a folder of other things.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder to write to")
    strange = not (folder / RUN).is_file() and folder.is_dir() and any(map(_strange, folder.iterdir()))
    if strange:
        raise InputError(f"{folder}: holds other things than an evaluation; name a new or an empty folder")


def _strange(path: Path) -> bool:
    """Whether neither a lock nor what a killed process had begun to write."""
    return not path.name.startswith((LOCK, f".{RUN}."))


def _open_rows(folder: Path, share: Share) -> dict[tuple[str, str], Row]:
    """All rows in the folder; this share's file holds its own from here on, whole, one a video, or all of the whole."""
    own, whole = folder / share.file, folder / ALL.file
    others = [path for path in sorted(folder.glob("predictions*.jsonl")) if path != own]
    rows: dict[tuple[str, str], Row] = {}
    # A share's rows are later than those of the whole, which takes them in and away; and a share's own are the latest.
    for path in sorted([*others, own], key=lambda path: (path != whole, path == own)):
        rows |= read_rows(path)
    _write(own, "".join(map(_line, (rows if share.of == 1 else read_rows(own)).values())))
    if share.of == 1:
        for path in [*others, *folder.glob(f".{RUN}.*"), *folder.glob(".predictions*")]:
            path.unlink()
    return rows


def read_run(folder: Path) -> dict[tuple[str, str], Row]:
    """The rows of a whole run in another folder.

    Raises: InputError where it holds none.
    """
    if not (folder / ALL.file).is_file():
        raise InputError(f"{folder}: holds no {ALL.file}; name the output folder of an evaluation")
    return read_rows(folder / ALL.file)


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """The last whole row of each (set, video) in a file of rows; none where there is no file."""
    if not path.is_file():
        return {}
    rows: dict[tuple[str, str], Row] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is torn, or nothing
        try:
            row = json.loads(line)
            rows[row["set"], row["video"]] = row
        except (ValueError, KeyError, TypeError):  # a disk's torn block
            continue
    return rows


@contextlib.contextmanager
def _locked(path: Path, *, shared: bool) -> Iterator[TextIO]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path.parent}: another process is writing there; wait for it or end it") from None
        yield file


def _forget(folder: Path) -> None:
    _recorded(folder)  # so that only an evaluation's files are ever deleted
    for path in [*folder.glob("predictions*.jsonl"), folder / RUN]:
        path.unlink(missing_ok=True)


def check_run(folder: Path, settings: Mapping[str, Any], sets: set[str]) -> None:
    """Check that predictions made by these settings (of a run, some or all) may stand beside those in `folder`.

    Raises: InputError where the folder holds another run, or predictions for other sets too.
    """
    if not (folder / RUN).is_file():
        return
    former = _recorded(folder)
    changes = [
        f"{key} was {former['run'].get(key)!r} and is {value!r}"
        for key, value in sorted(settings.items())
        if former["run"].get(key) != value
    ]
    if changes:
        changed = "; ".join(changes)
        raise InputError(f"{folder}: holds another run ({changed}); name another folder, or give --no-resume")
    if gone := sorted(set(former["sets"]) - sets):
        names = ", ".join(gone)
        raise InputError(f"{folder}: holds predictions for {names} too; name another folder, or give --no-resume")


def _record_run(folder: Path, run: Row, sets: set[str]) -> None:
    """Write what this run is, once it is held against what is written."""
    before = _recorded(folder)["run"] if (folder / RUN).is_file() else {}
    check_run(folder, dict.fromkeys(before) | run, sets)
    _write(folder / RUN, json.dumps({"run": run, "sets": sorted(sets)}, indent=1) + "\n")


def _recorded(folder: Path) -> Row:
    try:
        former = json.loads((folder / RUN).read_bytes())
        return {"run": dict(former["run"]), "sets": list(former["sets"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: its {RUN} is not an evaluation's; name another folder") from None


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Replace a file at once, on disk before the former one is gone."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # hosts that share the folder may share process ids
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
