"""Every phase of scoring and training on this machine's device, beside the least time that it could take there.

    python -m benchmarks.device --model 8B

Random bfloat16 weights are made on the device, so nothing is downloaded; of packages it takes jax, flax, optax and
numpy. Cells are phases at so many videos:

    vision, motion, prefill   12 frames of 560 pixels, prompts of 5,000 tokens; parts of scoring
    decode                    one token for each video, after such a prompt
    score                     videos to answers of 128 tokens
    rollout                   6 frames of 448 pixels, 8 completions of 256 tokens for each video
    log-probs, lora, update   of 4 such completions; update moves all weights, lora adapters of rank 16

The limit is the larger of operations over the rate of a large matrix product and of bytes over that of a large copy,
both measured here first, and both counted by hand (`device_minimum.py`).
"""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import get_args

import jax
import jax.numpy as jnp

from benchmarks.device_phases import PHASES, case
from benchmarks.device_sizes import Sizes
from benchmarks.device_timing import Machine, run, side_arguments
from vqathinker_jax.sharding import Attention, MeshConfig, layout_of, make_mesh


class Ours:
    """This package on the default device."""

    def __init__(self, sizes: Sizes, attention: Attention | None):
        self.sizes = sizes
        layout = layout_of(make_mesh(MeshConfig(), 1), "products")
        self.layout = replace(layout, attention=attention) if attention else layout

    def machine(self) -> Machine:
        """Measures the device."""
        device = jax.devices()[0]
        side, count = (512, 2**24) if device.platform == "cpu" else (8192, 2**30)
        a, b = (jax.random.normal(jax.random.key(seed), (side, side), jnp.bfloat16) for seed in (0, 1))
        x = jnp.ones(count, jnp.bfloat16)
        product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
        versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
        return Machine(
            flops=2 * side**3 / _least_seconds(lambda: product(a, b)),
            bandwidth=2 * x.nbytes / _least_seconds(lambda: copy(x)),
            name=f"{device.device_kind} · {versions}",
        )

    def open(self, cell: str) -> Callable[[], object]:
        """Makes what a cell needs; the function runs it once and returns when the device is done."""
        found = case(self.sizes, cell, self.layout)
        held, carry = jax.block_until_ready(jax.jit(found.make)())

        def run() -> None:
            nonlocal carry
            made = jax.block_until_ready(found.run(held, carry))
            carry = None if carry is None else made

        return run

    def peak(self) -> int:
        """Bytes that were in use at most, so far."""
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _least_seconds(run: Callable[[], jax.Array]) -> float:
    """The mean of ten calls one after the other, in the best of three rounds."""

    def mean() -> float:
        start = time.perf_counter()
        for _ in range(10):
            last = run()
        jax.block_until_ready(last)
        return (time.perf_counter() - start) / 10

    jax.block_until_ready(run())
    return min(mean() for _ in range(3))


def main() -> None:
    parser = side_arguments(__doc__, PHASES)
    parser.add_argument("--attention", choices=get_args(Attention), help="instead of what suits the device")
    args = parser.parse_args()
    passed = ("--attention", args.attention) if args.attention else ()
    run(args, "benchmarks.device", partial(Ours, attention=args.attention), passed)


if __name__ == "__main__":
    main()
