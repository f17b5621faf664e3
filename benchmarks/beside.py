"""Ours beside Transformers on this machine's device: one table of ratios, the two taking turns.

    python -m benchmarks.beside --model 8B

Every turn of every cell is a process of its own (`device.py`, `device_torch.py`), and the one that begins changes from
turn to turn, so that whatever else the machine does falls on both. A ratio is Transformers' median over ours: above 1
means that ours is faster. Its spread goes from its fastest call over our slowest to its slowest over our fastest.
"""

import json
from dataclasses import asdict, replace

from benchmarks.device_sizes import SIZES
from benchmarks.device_timing import Machine, Row, arguments, ask, ask_machine

SIDES = {"ours": "benchmarks.device", "transformers": "benchmarks.device_torch"}
PHASES = ("vision", "prefill", "decode", "score", "rollout", "log-probs", "update")
"""Those that both have, in the order of the table."""


def together(before: Row | None, row: Row) -> Row:
    """All of one side's calls of a cell; a turn that failed is what the row says."""
    if before is None or before.error:
        return before or row
    if row.error:
        return row
    return replace(before, seconds=before.seconds + row.seconds, peak=max(before.peak, row.peak))


def take_turns(model: str, cell: str, repeats: int, turns: int, machines: dict[str, Machine]) -> dict[str, Row]:
    """The rows of both sides for one cell."""
    rows: dict[str, Row] = {}
    for turn in range(turns):
        for side in sorted(SIDES, reverse=bool(turn % 2)):
            rows[side] = together(rows.get(side), ask(SIDES[side], model, cell, repeats, machines[side]))
    return rows


def line(cell: str, rows: dict[str, Row]) -> str:
    """The table's line of one cell."""
    ours, theirs = (rows[side] for side in SIDES)
    if ours.error or theirs.error:
        said = " · ".join(f"{side}: {row.error}" for side, row in rows.items() if row.error)
        return f"| {cell} | {_took(ours)} | {_took(theirs)} | {said} | | {_peak(ours)} | {_peak(theirs)} |"
    low, high = min(theirs.seconds) / max(ours.seconds), max(theirs.seconds) / min(ours.seconds)
    ratio = f"{theirs.median / ours.median:.2f} ({low:.2f}–{high:.2f})"
    share = f"{ours.limit / ours.median:.0%}"
    return f"| {cell} | {_took(ours)} | {_took(theirs)} | {ratio} | {share} | {_peak(ours)} | {_peak(theirs)} |"


def _took(row: Row) -> str:
    return "" if row.error else f"{row.median:.4g} ({min(row.seconds):.4g}–{max(row.seconds):.4g})"


def _peak(row: Row) -> str:
    return "" if row.error else f"{row.peak / 2**30:.2f}"


HEAD = """| cell | ours, s (fastest–slowest) | Transformers, s | ratio (spread) | share of limit | peak, GiB | theirs |
|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = arguments(__doc__, PHASES)
    parser.add_argument("--turns", type=int, default=2, help="processes of each side for a cell (default 2)")
    args = parser.parse_args()
    sizes = SIZES[args.model]
    machines = {side: ask_machine(module, args.model) for side, module in SIDES.items()}
    if args.json:
        print(json.dumps({side: asdict(machine) for side, machine in machines.items()}))
    else:
        for machine in machines.values():
            rates = f"{machine.flops / 1e12:.4g} TFLOP/s, {machine.bandwidth / 1e9:.4g} GB/s"
            print(f"{machine.name} · {args.model} · {rates}")
        print(f"\n{HEAD}", flush=True)
    for cell in sizes.cells(args.phases.split(",")):
        rows = take_turns(args.model, cell, args.repeats, args.turns, machines)
        print(
            json.dumps({side: asdict(row) for side, row in rows.items()}) if args.json else line(cell, rows), flush=True
        )


if __name__ == "__main__":
    main()
