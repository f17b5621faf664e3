"""What each phase does at its real shapes, beside the least that it has to do, without a device to run it on.

    python -m benchmarks.device_counts --model 8B --phases prefill,decode --tpu

Operations are counted on the trace, loops in full. With --tpu, each program is compiled for a TPU v5p, which libtpu
does on any machine, and the bytes that it moves are read from the module (`hlo.py`, an upper estimate).
"""

import argparse
import os
from typing import get_args

import jax
from jax.sharding import SingleDeviceSharding

from benchmarks.device_minimum import least
from benchmarks.device_phases import Case, case
from benchmarks.device_sizes import SIZES
from vqathinker_jax.flops import count_flops
from vqathinker_jax.hlo import read_work
from vqathinker_jax.sharding import Layout, Remat

PHASES = ("vision", "motion", "prefill", "decode", "log-probs", "lora", "update")
"""Those that are one program; `score` and `rollout` are some of these one after the other."""


def moved(found: Case, device: jax.Device) -> int:  # pyright: ignore[reportInvalidTypeForm]
    """Bytes that a case's program reads and writes on such a device."""
    here = SingleDeviceSharding(device)
    abstract = jax.eval_shape(found.make)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
    compiled = jax.jit(found.run, donate_argnums=1).lower(*args).compile()
    return read_work(compiled.as_text() or "", 1, found.trips).bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8B", help="dimensions (default 8B)")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases, or cells as decode@16 (default: all)")
    parser.add_argument("--remat", choices=get_args(Remat), default="layers", help="what gradients compute again")
    parser.add_argument("--tpu", action="store_true", help="compile for a TPU v5p chip, and count bytes too")
    parser.add_argument("--attention", default="splash", help="what computes it there: splash, or blocks")
    args = parser.parse_args()
    asked = args.phases.split(",")
    if several := [cell for cell in asked if cell.partition("@")[0] not in PHASES]:
        parser.error(f"{', '.join(several)}: no single program; give some of {', '.join(PHASES)}")
    sizes, device = SIZES[args.model], _v5p() if args.tpu else None
    print("| cell | TFLOP | least | ratio | GB moved | least | ratio |")
    print("|---|---|---|---|---|---|---|")
    for cell in sizes.cells(asked):
        found, floor = case(sizes, cell, Layout(remat=args.remat)), least(sizes, cell)
        share = sizes.slice if cell.startswith("decode") else 1
        flops = count_flops(found.run, *jax.eval_shape(found.make)) * found.trips / share
        line = f"| {cell} | {flops / 1e12:.4g} | {floor.flops / 1e12:.4g} | {flops / floor.flops:.3f} |"
        if device:
            # Operations are counted on blocks, for a kernel does not show its own.
            compiled = case(sizes, cell, Layout(remat=args.remat, attention=args.attention))
            size = moved(compiled, device) / share
            line += f" {size / 1e9:.4g} | {floor.bytes / 1e9:.4g} | {size / floor.bytes:.2f} |"
        print(line, flush=True)


def _v5p() -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]
    from jax.experimental import topologies

    # Else libtpu asks a metadata server what machine this is.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5p-2", "TPU_WORKER_HOSTNAMES": "localhost"}
    return topologies.get_topology_desc("v5p:1x1x1", "tpu", chips_per_host_bounds=(1, 1, 1)).devices[0]


if __name__ == "__main__":
    main()
