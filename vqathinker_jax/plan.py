"""Whether a recipe fits hardware that is not here, and how fast it would be, found by compiling it for that hardware.

Enters: a recipe, a model's dimensions, a target such as v5p:4x4x4. Leaves: memory, work and time of each program of a
step. The compiler (`compilers.py`) runs in a process of its own, on a CPU.
"""

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vqathinker_jax.budget import Plan, Row
from vqathinker_jax.compilers import check_compiler, devices, environment, options, stood_in_for
from vqathinker_jax.flops import count_flops
from vqathinker_jax.hardware import CHIPS, GIB, Target
from vqathinker_jax.hlo import largest_arrays, read_work
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.phases import Phase, phases
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.records import InputError
from vqathinker_jax.sharding import check_spread, layout_of, make_mesh


@dataclass(frozen=True)
class Effort:
    """What a plan is to find.

    search: the largest batch that fits too, by compiling again. only: these phases; empty for all. quick: the compiler
    spends its least on programs with convolutions, which take most of a plan's time. Their operations and what they
    send stay the same, their memory about; they move more bytes, as less is kept in vector memory.
    """

    search: bool = False
    quick: bool = False
    only: tuple[str, ...] = ()


def plan(config: TrainConfig, model: ModelConfig, target: Target, effort: Effort = Effort()) -> Plan:
    """The plan of a recipe, made in a process of its own.

    Raises: InputError for what does not go together, a supervised recipe, or where libtpu is missing.
    """
    if config.stage != "grpo":
        raise InputError(f"stage is {config.stage}: plans are made of GRPO steps only: name a recipe of that stage")
    check_compiler(target)
    made = subprocess.run(
        [sys.executable, "-m", "vqathinker_jax.plan"],
        input=pickle.dumps((config, model, target, effort)),
        env=os.environ | environment(target),
        capture_output=True,
        check=False,
    )
    said = made.stderr.decode(errors="replace").strip().splitlines()
    if made.returncode == 2:
        raise InputError(said[-1])
    if made.returncode:
        raise InputError(f"{target}: the compiler ended with status {made.returncode}: {' | '.join(said[-3:])[-600:]}")
    return pickle.loads(made.stdout)


def kind_here() -> str:
    """The kind of this machine's devices, as targets name it.

    Raises: InputError where it is none of those.
    """
    device = jax.devices()[0]
    named = device.device_kind.lower().replace("tpu ", "").replace("v5 lite", "v5e").replace("v6 lite", "v6e")
    # jax's own name of it.
    named = "v5p" if named == "v5" else named
    for kind in CHIPS:
        if device.platform == kind or kind in named:
            return kind
    raise InputError(f"devices of kind {device.device_kind!r} are not planned for; give --topology, as h200:8")


def make(config: TrainConfig, model: ModelConfig, target: Target, effort: Effort) -> Plan:
    """The plan, in this process, whose devices are the target's or stand for them."""
    on_cpu = target.chip.platform == "cpu"
    wanted = ("float32" if on_cpu else "bfloat16") if config.arithmetic == "auto" else config.arithmetic
    mesh = make_mesh(config.mesh, list(devices(target)))
    compiling = {"model": model, "mesh": mesh, "arithmetic": jnp.dtype(wanted), "target": target, "quick": effort.quick}
    found = _compiled(config, only=effort.only, **compiling)
    if effort.search:
        found = replace(found, largest_batch=_largest_batch(config, found, compiling))
    return found


def _compiled(
    config: TrainConfig,
    *,
    model: ModelConfig,
    mesh: Mesh,
    arithmetic: jnp.dtype,
    target: Target,
    quick: bool,
    only: tuple[str, ...],
) -> Plan:
    """The plan of one batch size, of all phases or of some."""
    for parts in (config.micro_batches, config.rollout.micro_batches):
        check_spread(config.data.batch_size, parts, mesh)
    once = {phase.name: phase for phase in phases(replace(config, remat="none"), model, mesh, arithmetic)}
    rows, refused = [], ""
    for phase in phases(config, model, mesh, arithmetic):
        if not only or phase.name in only:
            try:
                rows.append(_row(phase, once[phase.name], target, quick=quick and phase.name not in _PLAIN))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                refused = f"{phase.name}: {_short(str(error))} {_asked_for(phase)}"
                break
    seconds = sum(row.times * row.roofline for row in rows)
    useful = sum(row.times * row.useful_flops for row in rows)
    return Plan(
        target=str(target),
        devices=target.count,
        mesh=dict(mesh.shape),
        batch_size=config.data.batch_size,
        estimate=stood_in_for(target),
        rows=rows,
        step_seconds=seconds,
        mfu=useful / (seconds * target.chip.flops) if seconds else 0.0,
        refused=refused,
        quick=quick,
        attention=layout_of(mesh, attention=config.attention).attention,
    )


_PLAIN = "prefill", "decode"
"""Phases without convolutions."""


def _row(phase: Phase, once: Phase, target: Target, *, quick: bool) -> Row:
    jax.config.update("jax_exec_time_optimization_effort", -1.0 if quick else 0.0)
    compiled = phase.lower().compile(options(target, convolutions=phase.name not in _PLAIN))
    memory, text, chip = _memory(compiled), compiled.as_text() or "", target.chip
    work = read_work(text, target.count, phase.trips)
    # What data ends counts once in the trace, and next to all of it is in the loop.
    flops, useful = (count_flops(each.count[0], *each.count[1]) * phase.trips / target.count for each in (phase, once))
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    share = target.count if chip.platform == "cpu" else 1
    return Row(
        phase=phase.name,
        times=phase.times,
        argument=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        resident=phase.resident,
        peak=own + memory.temp_size_in_bytes + phase.resident,
        capacity=chip.memory // share,
        flops=flops,
        useful_flops=useful,
        bytes=work.bytes,
        collectives=work.collectives,
        compute=flops / chip.flops,
        memory=work.bytes / chip.bandwidth,
        network=work.passed / chip.link,
        largest=largest_arrays(text),
    )


def _memory(compiled: jax.stages.Compiled) -> Any:
    """What a program takes of a chip.

    Raises: InputError where the compiler does not say.
    """
    if (found := compiled.memory_analysis()) is None:
        raise InputError("this compiler does not say what memory a program takes: plan for another target")
    return found


def _largest_batch(config: TrainConfig, found: Plan, compiling: dict[str, Any]) -> int:
    """Videos a step, the parts it is taken in as they are, that still fit, to within an eighth: doubled, then halved
    between; 0 for none.

    Memory grows with the batch in every phase, so the one that is fullest decides.
    """
    unit = math.lcm(config.micro_batches, config.rollout.micro_batches) * found.mesh["data"] * found.mesh["fsdp"]
    fullest = found.refused.partition(":")[0] or max(found.rows, key=lambda row: row.peak / row.capacity).phase

    def fits(units: int) -> bool:
        size = units * unit
        if size == found.batch_size:
            return found.fits
        return _compiled(_with_batch(config, size), only=(fullest,), **compiling).fits

    return unit * bisect(fits, max(found.batch_size // unit, 1))


def _with_batch(config: TrainConfig, size: int) -> TrainConfig:
    """The recipe for another batch, whose groups of comparison are all of it."""
    rewards = replace(config.rewards, ranking_group=None, temporal_group=None)
    return replace(config, data=replace(config.data, batch_size=size), rewards=rewards)


def bisect(fits: Callable[[int], bool], first: int) -> int:
    """The largest whole number that fits, to within an eighth, where all below it do; asked for `first` first; 0 for
    none."""
    if fits(first):
        low, high = first, 2 * first
        while fits(high):
            low, high = high, 2 * high
    else:
        low, high = 0, first
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _short(error: str) -> str:
    """The compiler's complaint with its largest allocations, without their whole genealogy."""
    lines = [line.strip() for line in error.splitlines()]
    kept = [line for line in lines if line.startswith(("RESOURCE", "Used", "Size:", "Shape:", "Operator:", "Total"))]
    return " ".join(kept or lines)[:900]


def _asked_for(phase: Phase) -> str:
    """The largest arrays of a program that the compiler refused, and of which it left nothing but what it was given."""
    arrays = largest_arrays(phase.lower().as_text(dialect="hlo"))
    named = ", ".join(f"{name} {size / GIB:.2f}" for size, name in arrays)
    return f"Largest as it was asked, over all chips, in GiB: {named}"


def answer() -> int:
    """Read a question from standard input and write its plan to standard output, both pickled; the exit status."""
    try:
        found = make(*pickle.load(sys.stdin.buffer))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.buffer.write(pickle.dumps(found))
    return 0


if __name__ == "__main__":
    # Under its own name, so that the answer can be read by whoever imported this as a module.
    sys.exit(import_module("vqathinker_jax.plan").answer())
