"""One stage of ours against the same stage of the reference's: the errors, and whether they are rounding.

A stage is judged by its relative error, the error's root mean square over the values'. Sums in another order leave
rounding there that grows with depth, by a factor of a few from a stage to the next; a fault makes it leap. So a stage
may have `GROWTH` times the error of the worst before it, and some to begin with, up to a limit that no sound model
reaches: `BOUNDS`. The motion projector's gradient magnifies rounding some 250 times, hence the wide start there. In
bfloat16 both sides round at every step, and which token is the most probable is often a matter of that: greedy tokens
that differ are told, and not judged.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from convert.recording import Recording

GROWTH = 10.0


class Bounds(NamedTuple):
    """Of relative errors: what a stage may have whatever came before, and what it may never have."""

    start: float
    limit: float


BOUNDS = {
    ("float32", "stage"): Bounds(2e-5, 1e-3),
    ("float32", "gradient"): Bounds(1e-2, 1e-1),
    ("bfloat16", "stage"): Bounds(2e-2, 3e-1),
    ("bfloat16", "gradient"): Bounds(5e-1, 1.0),
}

TOKENS = "greedy tokens"

_IDLE = ".attention.k_proj.bias"
"""The vision tower's key bias: what is added to every key changes no softmax, so its gradient is rounding alone."""


@dataclass(frozen=True)
class Comparison:
    """One stage: the largest error as it is and in standard deviations, the relative error and its bound, the cosine of
    the two, and whether the error is within the bound (None where it is not judged)."""

    stage: str
    largest: float = np.inf
    in_deviations: float = np.inf
    relative: float = np.inf
    cosine: float = 0.0
    bound: float = 0.0
    within: bool | None = False
    note: str = ""


def compare(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    """The errors of one of our stages, not judged yet; out of tolerance where there is nothing to judge."""
    if ours.shape != theirs.shape:
        return Comparison(stage, note=f"shapes {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        whose = "ours" if np.isfinite(theirs).all() else "the reference's"
        return Comparison(stage, note=f"{whose} has values that are no numbers")
    tiny = float(np.finfo(np.float32).tiny)
    error = np.abs(ours - theirs, dtype=np.float64)
    size, our_size = (float(np.sqrt(np.square(x, dtype=np.float64).sum())) for x in (theirs, ours))
    deviation = max(float(theirs.std(dtype=np.float64)), size / np.sqrt(theirs.size), tiny)
    largest = float(error.max(initial=0.0))
    relative = float(np.sqrt(np.square(error).sum()) / max(size, tiny))
    cosine = float(np.vdot(ours.astype(np.float64), theirs) / max(size * our_size, tiny))
    return Comparison(stage, largest, largest / deviation, relative, cosine, within=None)


def compare_tokens(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> Comparison:
    """Greedy tokens up to where the answers part; a share of tokens stands for the errors."""
    both = min(len(ours), len(theirs))
    parted = np.flatnonzero(ours[:both] != theirs[:both])
    same = int(parted[0]) if parted.size else both
    equal = same == len(ours) == len(theirs)
    share = 1 - same / max(1, len(ours), len(theirs))
    within = None if dtype == "bfloat16" and not equal else equal
    return Comparison(TOKENS, share, share, share, 1 - share, 0.0, within, f"{same} of {len(theirs)} equal")


def compare_all(ours: Iterable[tuple[str, np.ndarray]], theirs: Recording) -> Iterator[Comparison]:
    """Every stage as it comes about, judged; one that only one side has is out of tolerance."""
    seen: set[str] = set()
    worst = {"stage": 0.0, "gradient": 0.0}
    for stage, found in ours:
        seen.add(stage)
        if stage not in theirs:
            yield Comparison(stage, note="the reference has no such stage")
        elif stage == TOKENS:
            yield compare_tokens(found, theirs.read(stage), theirs.task.dtype)
        else:
            kind = "gradient" if stage.startswith("gradient") else "stage"
            bounds = BOUNDS[theirs.task.dtype, kind]
            judged = judge(compare(stage, found, theirs.read(stage)), bounds, worst[kind])
            if judged.within:
                worst[kind] = max(worst[kind], judged.relative)
            yield judged
    for stage in theirs:
        if stage not in seen:
            yield Comparison(stage, note="ours has no such stage")


def judge(each: Comparison, bounds: Bounds, worst: float) -> Comparison:
    """The comparison with its verdict; `worst` is the largest relative error of the sound stages before it."""
    if each.within is False:
        return each
    bound = min(bounds.limit, max(bounds.start, GROWTH * worst))
    if each.stage.startswith("gradient") and each.stage.endswith(_IDLE):
        return replace(each, bound=bound, note="zero but for rounding")
    return replace(each, bound=bound, within=each.relative <= bound)


def first_out(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The first stage out of tolerance, where the fault is."""
    return next((each for each in comparisons if each.within is False), None)


HEADER = f"{'largest':>9} {'in std':>9} {'relative':>9} {'bound':>9} {'cosine':>11}  stage"


def line(each: Comparison) -> str:
    """A row of the table under `HEADER`."""
    mark = {True: "", False: "  OUT", None: "  not judged"}[each.within]
    note = f"  {each.note}" if each.note else ""
    errors = (each.largest, each.in_deviations, each.relative, each.bound)
    return f"{' '.join(f'{x:9.2e}' for x in errors)} {each.cosine:11.8f}  {each.stage}{mark}{note}"


def verdict(comparisons: Sequence[Comparison], dtype: str) -> str:
    """The last line: what was found."""
    first = first_out(comparisons)
    if first is None:
        return f"{len(comparisons)} stages agree in {dtype}"
    return f"{first.stage} is the first of {len(comparisons)} stages out of tolerance in {dtype}: look there"
