"""What a planned step takes of each chip: memory, work, traffic and time, a row a program; as JSON, and for people."""

from dataclasses import asdict, dataclass
from typing import Any

from vqathinker_jax.hardware import GIB
from vqathinker_jax.hlo import Sent
from vqathinker_jax.sharding import Attention


@dataclass(frozen=True)
class Row:
    """A program of a step on one chip; memory and traffic in bytes, times in seconds.

    peak: what is in memory at most, `resident` included: what the step keeps there and this program does not take.
    passed: what leaves the chip. useful_flops: without what is computed again. compute, memory, network: the least time
    each of these takes a run; the roofline is the longest. largest: the biggest arrays.
    """

    phase: str
    times: int
    argument: int
    temporary: int
    resident: int
    peak: int
    capacity: int
    flops: float
    useful_flops: float
    bytes: int
    collectives: dict[str, Sent]
    compute: float
    memory: float
    network: float
    largest: list[tuple[int, str]]

    @property
    def roofline(self) -> float:
        """Seconds a run takes at the least."""
        return max(self.compute, self.memory, self.network)

    @property
    def fits(self) -> bool:
        """Whether the chip holds it."""
        return self.peak <= self.capacity


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a target. refused: the compiler's own words where it found no room. quick: it was
    compiled with the least effort, so that programs with convolutions move more than they would. attention: what it
    has for that, where that takes the model's heads."""

    target: str
    devices: int
    mesh: dict[str, int]
    batch_size: int
    estimate: bool
    rows: list[Row]
    step_seconds: float
    mfu: float
    refused: str = ""
    quick: bool = False
    largest_batch: int | None = None
    attention: Attention = "blocks"

    @property
    def fits(self) -> bool:
        """Whether all of it does."""
        return not self.refused and all(row.fits for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        collectives = [{kind: sent._asdict() for kind, sent in row.collectives.items()} for row in self.rows]
        rows = [
            asdict(row) | {"roofline": row.roofline, "fits": row.fits, "collectives": each}
            for row, each in zip(self.rows, collectives, strict=True)
        ]
        return asdict(self) | {"rows": rows, "fits": self.fits}


def table(found: Plan) -> list[str]:
    """The plan as lines for people."""
    kind = ", an estimate: pip install -e '.[cuda]' brings a GPU's own compiler" if found.estimate else ""
    sizes = " × ".join(f"{name} {size}" for name, size in found.mesh.items())
    batch = f"{found.batch_size} videos a step, attention by {found.attention}"
    lines = [f"{found.target}: {found.devices} chips, {sizes}, {batch}{kind}", ""]
    head = (
        "phase",
        "runs",
        "arguments",
        "temporary",
        "peak",
        "of",
        "TFLOP",
        "GB moved",
        "sent GB",
        "s a run",
        "bound by",
    )
    cells = [head, *(_cells(row) for row in found.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.append("")
    for row in found.rows:
        kinds = [
            f"{kind} {sent.count} × {sent.moved / max(sent.count, 1) / 2**20:.1f} MiB"
            for kind, sent in row.collectives.items()
        ]
        lines += [f"{row.phase} sends: {', '.join(kinds)}"] if kinds else []
        if not row.fits:
            arrays = ", ".join(f"{name} {size / GIB:.2f}" for size, name in row.largest)
            lines.append(
                f"{row.phase} does not fit: {row.peak / GIB:.2f} of {row.capacity / GIB:.2f} GiB; largest: {arrays}"
            )
    if found.refused:
        lines.append(f"does not fit: {found.refused}")
    lines.append(f"step by roofline {found.step_seconds:.1f} s, at {100 * found.mfu:.0f}% MFU")
    if found.largest_batch is not None:
        lines.append(f"largest batch that fits, to within an eighth, in as many micro-batches: {found.largest_batch}")
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    bounds = {"compute": row.compute, "memory": row.memory, "network": row.network}
    gib = [f"{size / GIB:.2f}" for size in (row.argument, row.temporary, row.peak, row.capacity)]
    work = [
        f"{row.flops / 1e12:.1f}",
        f"{row.bytes / 1e9:.1f}",
        f"{sum(s.passed for s in row.collectives.values()) / 1e9:.2f}",
    ]
    return row.phase, str(row.times), *gib, *work, f"{row.roofline:.3f}", max(bounds, key=lambda name: bounds[name])
