"""A run's directory: what was asked for, what came of every step, and what the model said, on disk as it happens.

    config.json        the configuration, with every default written out
    metrics.jsonl      one row a step; rows of steps that a resume takes again are cut off first
    samples.jsonl      completions with their readings and rewards, of every so-manieth step
    unreadable.jsonl   videos that could not be read and were replaced, each with its step
    tensorboard/       the numbers of metrics.jsonl
    savepoints/        what a resume goes on from (`savepoint.py`)
    model/             the trained model, once the run has ended

One process at a time writes a run.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tensorboardX import SummaryWriter

from vqathinker_jax.records import InputError

METRICS, SAMPLES, UNREADABLE = FILES = "metrics.jsonl", "samples.jsonl", "unreadable.jsonl"

_EMPTY = {".lock", "savepoints", "config.json.partial"}
"""What a run that failed, or was killed, before its first step leaves behind."""


class Journal:
    """The directory of one run, held by one process until it is closed."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        free: Iterable[str] = (),
        wandb: str = "",
        *,
        writes: bool = True,
    ):
        """Make the directory, or take up the run that is in it.

        config: as JSON values. free: keys of the top level, or dotted ones below, that may differ from the run's.
        wandb: a project of Weights & Biases that gets the metrics too. writes: without, as in all but one of a run's
        processes, the directory is held against the configuration and nothing else is done.

        Raises: InputError where it holds a run of another configuration, something else, or is in use, or wandb is
        asked for and not installed.
        """
        self.directory = directory
        recorded = directory / "config.json"
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: is a file; name a folder for the run")
        if directory.is_dir() and not recorded.is_file() and {path.name for path in directory.iterdir()} - _EMPTY:
            raise InputError(f"{directory}: holds other things than a run; name an empty or a new folder")
        self._lock = _hold(directory) if writes else None
        try:
            if recorded.is_file():
                _refuse_changes(recorded, _flat(config), set(free))
            self._wandb = _open_wandb(wandb, directory, config) if wandb and writes else None
        except BaseException:
            self._let_go()
            raise
        self._config = config
        self._tensorboard: SummaryWriter | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(error is not None))
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def begin(self, step: int) -> None:
        """Make ready to write from `step` (counted from 0) on: cut off rows of that step and later, and torn ones.

        From here on the directory is that of this configuration.
        """
        if self._lock is None:
            return
        _write(self.directory / "config.json", json.dumps(self._config, indent=1) + "\n")
        for name in FILES:
            (self.directory / name).touch()
            _keep(self.directory / name, lambda row: row["step"] < step)
        self._tensorboard = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step, write_to_disk=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the row of one step."""
        self._append(METRICS, [{"step": step, **metrics}])
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def write_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, each with its `step`, about completions."""
        self._append(SAMPLES, rows)

    def write_unreadable(self, step: int, faults: Iterable[str]) -> None:
        """Add a row for each video that could not be read."""
        self._append(UNREADABLE, [{"step": step, "fault": fault} for fault in faults])

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if self._lock is not None:
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))


def _hold(directory: Path) -> TextIO:
    """The lock of a directory, which is made; it holds until it is closed.

    Raises: InputError where another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"{directory}: another process is at work on this run; wait for it or end it") from None
    return lock


def _open_wandb(project: str, directory: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"wandb is {project!r}, but the package is missing: pip install wandb, or leave it out"
        ) from None
    # The same run again where the directory is the same, and no other.
    number = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=directory.name, id=number, resume="allow", config=dict(config))


def _refuse_changes(recorded: Path, config: dict[str, Any], free: set[str]) -> None:
    """Raises: InputError where a setting that both know has another value than in the run."""
    try:
        former = _flat(json.loads(recorded.read_text()))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{recorded}: no configuration of a run ({error}); name another folder") from error
    changed = sorted(
        f"{key} was {former[key]!r} and is {config[key]!r}"
        for key in former.keys() & config.keys() - free
        if former[key] != config[key]
    )
    if changed:
        raise InputError(
            f"{recorded}: the run has another configuration ({'; '.join(changed)}): name another --run-dir"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return json.loads(json.dumps(flat))


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines with those that are wanted, up to the first that a crash tore."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if wanted(row) and line.endswith("\n"):
            kept.append(line)
    _write(path, "".join(kept))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
