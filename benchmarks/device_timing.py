"""The clock of the benchmarks of a device: cells such as `decode@16` in, one row of times, limit and memory each out.

Ours (`device.py`) and PyTorch's (`device_torch.py`) are two of its sides. Each cell runs in a process of its own, so
that one which does not fit the memory leaves the others as they are, and peak memory is its own.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from benchmarks.device_minimum import least
from benchmarks.device_sizes import SIZES, Sizes


@dataclass(frozen=True)
class Machine:
    """What the device does: operations of a large bfloat16 product, and bytes of a large copy, in a second."""

    flops: float
    bandwidth: float
    name: str = ""


@dataclass(frozen=True)
class Row:
    """What was measured of a cell. seconds: of each call after the first; of decoding, a token's share of it.

    first: seconds of the first call, compilation included. limit: the least seconds, of what must be done and what the
    machine does. peak: bytes of the device's memory, or, where its backend does not say, of the process's.
    """

    cell: str
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    limit: float = 0.0
    peak: int = 0
    error: str = ""

    @property
    def median(self) -> float:
        """The middle one of the seconds."""
        return statistics.median(self.seconds)


class Side(Protocol):
    """One implementation on this machine's device."""

    def machine(self) -> Machine:
        """Measures the device."""
        ...

    def open(self, cell: str) -> Callable[[], object]:
        """Makes what a cell needs; the function runs it once and returns when the device is done."""
        ...

    def peak(self) -> int:
        """Bytes that were in use at most, so far."""
        ...


OpenSide = Callable[[Sizes], Side]


def measure(side: Side, sizes: Sizes, cell: str, machine: Machine, repeats: int) -> Row:
    """The row of one cell; a failure is a row that says so."""
    share = sizes.slice if cell.startswith("decode") else 1
    try:
        run = side.open(cell)
        first, *seconds = (_seconds(run) for _ in range(repeats + 1))
        limit = least(sizes, cell).seconds(machine.flops, machine.bandwidth)
        return Row(cell, [taken / share for taken in seconds], first, limit, side.peak())
    except Exception as error:  # whatever happens in one cell, the next goes on
        traceback.print_exc()
        said = " ".join(str(error).split()) or type(error).__name__
        full = "RESOURCE_EXHAUSTED" in said or "out of memory" in said.lower()
        return Row(cell, error=f"out of memory: {said[:150]}" if full else f"{type(error).__name__}: {said[:200]}")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rate(sizes: Sizes, row: Row) -> str:
    """What the cell makes in a second: tokens where it writes some, else videos."""
    phase, _, batch = row.cell.partition("@")
    tokens = {"decode": 1, "rollout": sizes.drawn * sizes.completion}.get(phase)
    return f"{int(batch) * (tokens or 1) / row.median:.4g} {'tokens' if tokens else 'videos'}/s"


def table_row(sizes: Sizes, row: Row) -> str:
    """One line of the table whose head is `HEAD`."""
    if row.error:
        return f"| {row.cell} | {row.error} | | | | |"
    took = f"{row.median:.4g} ({min(row.seconds):.4g}–{max(row.seconds):.4g})"
    share = f"{row.limit / row.median:.0%}"
    return f"| {row.cell} | {took} | {row.limit:.3g} | {share} | {rate(sizes, row)} | {row.peak / 2**30:.2f} |"


HEAD = (
    "| cell | seconds, median (fastest–slowest) | limit | share of it | | peak memory, GiB |\n|---|---|---|---|---|---|"
)


def arguments(description: str | None, phases: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments that both sides and their comparison take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8B", help="dimensions (default 8B)")
    every = ",".join(phases)
    parser.add_argument("--phases", default=every, help=f"phases, or cells as decode@16 (default {every})")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls after the first (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser


def side_arguments(description: str | None, phases: Sequence[str]) -> argparse.ArgumentParser:
    """Those, and the ones that only a side takes."""
    parser = arguments(description, phases)
    parser.add_argument("--together", action="store_true", help="all cells in this process; peak memory adds up")
    parser.add_argument("--machine", type=float, nargs=2, metavar=("FLOPS", "BANDWIDTH"), help="rates, not to measure")
    return parser


def run(args: argparse.Namespace, module: str, open_side: OpenSide, passed: Sequence[str] = ()) -> None:
    """Prints the rows of one side, which is run as `python -m module` and takes `passed` as its own options."""
    sizes = SIZES[args.model]
    rows = here(open_side, sizes, args) if args.together else apart(module, sizes, args, passed)
    if args.machine and not args.json:
        print(HEAD)
    for row in rows:
        if args.json:
            print(json.dumps(asdict(row)), flush=True)
        elif isinstance(row, Machine):
            rates = f"{row.flops / 1e12:.4g} TFLOP/s, {row.bandwidth / 1e9:.4g} GB/s"
            print(f"{row.name} · {args.model} · {rates}\n\n{HEAD}", flush=True)
        else:
            print(table_row(sizes, row), flush=True)


def here(open_side: OpenSide, sizes: Sizes, args: argparse.Namespace) -> Iterator[Machine | Row]:
    """The machine, where it is not given, and the row of each cell, in this process."""
    side = open_side(sizes)
    if args.machine:
        machine = Machine(*args.machine)
    else:
        machine = side.machine()
        yield machine
    for cell in sizes.cells(args.phases.split(",")) if args.phases != "machine" else []:
        yield measure(side, sizes, cell, machine, args.repeats)
        gc.collect()


def apart(module: str, sizes: Sizes, args: argparse.Namespace, passed: Sequence[str]) -> Iterator[Machine | Row]:
    """The machine and the row of each cell, in a process each."""
    machine = Machine(*args.machine) if args.machine else ask_machine(module, args.model)
    if not args.machine:
        yield machine
    for cell in sizes.cells(args.phases.split(",")):
        yield ask(module, args.model, cell, args.repeats, machine, passed)


def ask_machine(module: str, model: str) -> Machine:
    """What a side says of the machine, measured in a process of its own."""
    return Machine(**_lines(module, "--model", model, "--phases", "machine")[0])


def ask(module: str, model: str, cell: str, repeats: int, machine: Machine, passed: Sequence[str] = ()) -> Row:
    """What a side says of one cell, measured in a process of its own."""
    rates = "--machine", str(machine.flops), str(machine.bandwidth)
    try:
        lines = _lines(module, "--model", model, "--phases", cell, "--repeats", str(repeats), *rates, *passed)
    except subprocess.CalledProcessError as error:
        return Row(cell, error=f"its process ended with status {error.returncode}")
    return Row(**lines[0])


def _lines(module: str, *options: str) -> list[dict]:
    # All of the memory is the cell's: JAX would keep a quarter back.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"} | os.environ
    command = [sys.executable, "-m", module, "--together", "--json", *options]
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in made.stdout.splitlines() if line.startswith(b"{")]
