"""What people see in a terminal: verdicts in, lines out, with progress on standard error while they wait.

Names, reasons and completions come from files and models, so nothing of them is printed before `printable` has made it
unable to steer a terminal.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unicodedata import category

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from vqathinker_jax.judge import Reply, Verdict


def printable(text: str) -> str:
    """The text without the characters that could steer a terminal, each of which becomes a replacement character.

    Spaces of every width stay, and what joins parts of an emoji: both are in names that people paste.
    """
    return "".join(c if _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _harmless(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs" or character == "\N{ZERO WIDTH JOINER}"


SILENCE_S = 30.0
"""Seconds after which a log hears of progress again."""


def print_lines(text: str, indent: str = "") -> None:
    """Print text of any origin, line by line."""
    for line in text.splitlines():
        print(f"{indent}{printable(line)}")


def print_error(error: Exception) -> None:
    """Print an error on standard error, one line for each that its message has."""
    for line in str(error).splitlines():
        print(f"error: {printable(line)}", file=sys.stderr)


def print_row(row: object) -> None:
    """Print JSON values as one line.

    In ASCII: whatever is in names and texts, a row stays one line that any terminal and encoding can take.
    """
    print(json.dumps(row, allow_nan=False), flush=True)


def print_verdict(verdict: "Verdict") -> None:
    """Print a rating with its reasoning, or why there is none with what the model wrote, and the file's health."""
    name = printable(verdict.video)
    if verdict.score is None:
        # A reason that lies in the file begins with its name.
        print(f"{name}: failed: {printable((verdict.reason or '').removeprefix(f'{verdict.video}: '))}")
    else:
        likely = "" if verdict.expected is None else f", expected {verdict.expected:.2f} ± {verdict.deviation:.2f}"
        about = f"{len(verdict.frame_indices)} frames, {verdict.seconds:.1f} s"
        print(f"{name}: {verdict.score:.2f} of 5{likely}  ({about})")
    print_lines(verdict.thinking or (verdict.text if verdict.score is None else ""), indent="    ")
    for sentence in verdict.health:
        print(f"    note: {printable(sentence)}")
    print(flush=True)


def print_reply(reply: "Reply") -> None:
    """Print an answer; why there is none, and what is to be noted about it, go to standard error."""
    print_lines(reply.text)
    if reply.reason:
        print(f"error: {printable(reply.reason)}", file=sys.stderr)
    notes = ["the answer was cut off; raise --max-new-tokens"] if reply.cut_off else []
    for sentence in [*notes, *reply.health]:
        print(f"note: {printable(sentence)}", file=sys.stderr)


def print_table(verdicts: Sequence["Verdict"]) -> None:
    """Print one line a video, the best rated first, of those rated alike the one of which more was expected, and the
    failed last."""
    for verdict in sorted(verdicts, key=lambda v: (v.score is None, -(v.score or 0), -(v.expected or 0))):
        rating = "failed" if verdict.score is None else f"{verdict.score:6.2f}"
        print(f"{rating:>6}  {printable(verdict.video)}")


@contextmanager
def progress(name: str, tokens: int) -> Iterator[Callable[[int], None]]:
    """A line in the terminal while a video is looked at; yields what to call with the number of tokens so far."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{printable(name)}: looking", total=None)
        yield lambda written: bar.update(task, description=f"{printable(name)}: {written} of {tokens} tokens at most")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar on standard error over things that are worked off; yields what to call with done, of how many (None where
    that is not known), and a note.

    Where standard error is no terminal, a line every so often.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, told_s = bar.add_task(printable(what), total=None), time.monotonic()

        def show(done: int, total: int | None, note: str) -> None:
            nonlocal told_s
            bar.update(task, description=f"{printable(what)}: {printable(note)}", completed=done, total=total)
            due = done % 100 == 0 or done == total or time.monotonic() - told_s > SILENCE_S
            if not console.is_terminal and due:
                told_s = time.monotonic()
                count = f"{done}" if total is None else f"{done} of {total},"
                print(f"{printable(what)}: {count} {printable(note)}", file=sys.stderr, flush=True)

        yield show


@contextmanager
def training(name: str, *, shown: bool = True) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A bar on standard error over the steps of a run; yields what to call with steps done, steps, and metrics.

    Where standard error is no terminal, a line a step. shown: without, nothing.
    """
    console = Console(stderr=True, quiet=not shown)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{printable(name)}: first step", total=None)

        def show(done: int, steps: int, metrics: dict[str, float]) -> None:
            seconds = sum(value for key, value in metrics.items() if key.startswith("seconds_"))
            headline = "reward" if "reward" in metrics else "loss"
            parts = [f"{headline} {metrics[headline]:.3f}"]
            parts += [f"kl {metrics['kl']:.4f}"] if "kl" in metrics else []
            parts += [f"{metrics['tokens'] / seconds:.0f} tokens/s"]
            bar.update(task, description=f"{printable(name)}: {', '.join(parts)}", completed=done, total=steps)
            if shown and not console.is_terminal:
                print(f"step {done} of {steps}: {', '.join(parts)}, {seconds:.1f} s", file=sys.stderr, flush=True)

        yield show
