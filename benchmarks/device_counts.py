"""What each phase does at its real shapes, beside the least that it has to do, without a device to run it on.

    python -m benchmarks.device_counts --model 8B --phases prefill,decode --chip h200

Operations are counted on the trace, loops in full. With --chip, each program is compiled for one, which its compiler
does on any machine (`compilers.py`), and the bytes that it moves are read from the module (`hlo.py`, an upper
estimate).
"""

import argparse
import os
from typing import get_args

import jax
from jax.sharding import SingleDeviceSharding

from benchmarks.device_minimum import least
from benchmarks.device_phases import Case, case
from benchmarks.device_sizes import SIZES
from vqathinker_jax.compilers import devices, environment, options
from vqathinker_jax.flops import count_flops
from vqathinker_jax.hardware import Target, parse_target
from vqathinker_jax.hlo import read_work
from vqathinker_jax.sharding import Layout, MeshConfig, Remat, layout_of, make_mesh

PHASES = ("vision", "motion", "prefill", "decode", "log-probs", "lora", "update")
"""Those that are one program; `score` and `rollout` are some of these one after the other."""


_PLAIN = "vision", "prefill", "decode"
"""Those without convolutions."""
CHIPS = {"v5p": "v5p:1x1x1", "h200": "h200:1"}


def compiled(cell: str, found: Case, target: Target) -> jax.stages.Compiled:
    """A cell's program for such a chip."""
    here = SingleDeviceSharding(devices(target)[0])
    abstract = jax.eval_shape(found.make)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
    lowered = jax.jit(found.run, donate_argnums=1).lower(*args)
    return lowered.compile(options(target, convolutions=not cell.startswith(_PLAIN)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8B", help="dimensions (default 8B)")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases, or cells as decode@16 (default: all)")
    parser.add_argument("--remat", choices=get_args(Remat), default="products", help="what gradients keep")
    parser.add_argument("--chip", choices=list(CHIPS), help="compile for one, and count bytes and memory too")
    parser.add_argument("--attention", choices=["auto", "blocks"], default="auto", help="blocks: without kernels")
    args = parser.parse_args()
    asked = args.phases.split(",")
    if several := [cell for cell in asked if cell.partition("@")[0] not in PHASES]:
        parser.error(f"{', '.join(several)}: no single program; give some of {', '.join(PHASES)}")
    sizes, target = SIZES[args.model], parse_target(CHIPS[args.chip]) if args.chip else None
    if target:
        os.environ |= environment(target)
        jax.config.update("jax_platforms", "cpu")
        layout = layout_of(make_mesh(MeshConfig(), devices(target)), args.remat, args.attention)
    print("| cell | TFLOP | least | ratio | GB moved | least | ratio | temporary GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in sizes.cells(asked):
        # Operations are counted on blocks, for a kernel does not show its own.
        found, floor = case(sizes, cell, Layout(remat=args.remat)), least(sizes, cell)
        share = sizes.slice if cell.startswith("decode") else 1
        flops = count_flops(found.run, *jax.eval_shape(found.make)) * found.trips / share
        line = f"| {cell} | {flops / 1e12:.4g} | {floor.flops / 1e12:.4g} | {flops / floor.flops:.3f} |"
        if target:
            made = compiled(cell, case(sizes, cell, layout), target)
            size = read_work(made.as_text() or "", 1, found.trips).bytes / share
            memory = made.memory_analysis()
            line += f" {size / 1e9:.4g} | {floor.bytes / 1e9:.4g} | {size / floor.bytes:.2f} |"
            line += f" {memory.temp_size_in_bytes / 2**30:.2f} |" if memory else ""
        print(line, flush=True)


if __name__ == "__main__":
    main()
