"""Why scoring on a CPU is no faster: the model's matrix products by XLA, by XLA with oneDNN, and by PyTorch (MKL).

The three take turns in one process, all cores; GFLOP/s of the fastest call of each. oneDNN is an experiment of XLA's
that is off by default.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

SHAPES = {
    "vision, query, key and value": (1025, 1024, 3072),
    "vision, up": (1025, 1024, 4096),
    "vision, down": (1025, 4096, 1024),
    "vision, scores of a head": (1025, 64, 1025),
    "vision, values of a head": (1025, 1025, 64),
    "language, up": (1656, 896, 4864),
}
"""Rows, contracted and columns, at InternVL3-1B's widths, 448 pixels."""

ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def implementations(rows: int, contracted: int, columns: int) -> dict[str, Callable[[], Any]]:
    """One product of random numbers by each."""
    random = np.random.default_rng(0)
    left = random.standard_normal((rows, contracted), np.float32)
    right = random.standard_normal((contracted, columns), np.float32)
    ours, theirs = [jax.device_put(x) for x in (left, right)], [torch.tensor(left), torch.tensor(right.T.copy())]
    plain, onednn = jax.jit(jax.numpy.matmul), jax.jit(jax.numpy.matmul, compiler_options=ONEDNN)
    return {
        "XLA": lambda: plain(*ours).block_until_ready(),
        "XLA, oneDNN": lambda: onednn(*ours).block_until_ready(),
        "PyTorch": lambda: torch.nn.functional.linear(*theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="calls of each, after the first (default 10)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    names = list(implementations(1, 1, 1))
    print(f"| GFLOP/s | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for label, shape in SHAPES.items():
        calls, fastest = implementations(*shape), dict.fromkeys(names, float("inf"))
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if repeat:
                    fastest[name] = min(fastest[name], time.perf_counter() - start)
        rates = [2e-9 * np.prod(shape, dtype=float) / fastest[name] for name in names]
        print(f"| {label} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
