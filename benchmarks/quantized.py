"""What bytes cost in accuracy: one checkpoint's ratings of labelled videos, its matrices or prompts' caches kept so.

    python run.py synthesize fresh --train 1 --in-domain 400 --out-of-domain 1 --frames 6 --seed 1
    python -m benchmarks.quantized fresh/in_domain.json --videos fresh

SRCC is that with the labels, of ratings as written and as expected; changes are from what nothing in bytes says. A
video counts where both are known, of it and of what nothing in bytes says.
"""

import argparse
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from flax import nnx

import vqathinker
from commands.options import DEMO
from vqathinker_jax.data.labels import read_sets
from vqathinker_jax.metrics import srcc
from vqathinker_jax.model.quantized import Weights

KEPT = {
    "nothing in bytes": {},
    **{f"weights {weights}": {"weights": weights} for weights in get_args(Weights) if weights != "full"},
    "cache int8": {"cache": "int8"},
    "weights and cache int8": {"weights": "int8", "cache": "int8"},
}
HEAD = """| kept | MB of layers | rated | SRCC written | expected | written otherwise | expected off, mean | most |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meta", type=Path, help="labelled videos, as evaluate takes them")
    parser.add_argument("--videos", type=Path, help="their folder (default: the meta's)")
    parser.add_argument("--checkpoint", type=Path, default=DEMO / "checkpoint", help="(default: the bundled model)")
    args = parser.parse_args()
    labelled = [item for found in read_sets(args.meta, args.videos) for item in found.items if item.mos is not None]
    labels_N = np.array([item.mos for item in labelled])
    print(f"{len(labelled)} videos · jax {jax.__version__} · {jax.devices()[0].device_kind}\n\n{HEAD}")
    full_N2 = np.empty(())
    for name, options in KEPT.items():
        judge = vqathinker.load(args.checkpoint, **options)
        verdicts = vqathinker.score(judge, [item.video for item in labelled])
        rated_N2 = np.array([(verdict.score, verdict.expected) for verdict in verdicts], np.float64)
        full_N2 = full_N2 if options else rated_N2
        size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(nnx.merge(judge.graph, judge.state).language.layers)))
        # Of two models that are held one after the other, the former must be gone.
        del judge, verdicts
        known_N = np.isfinite(rated_N2).all(1) & np.isfinite(full_N2).all(1)
        rated, full, labels = rated_N2[known_N], full_N2[known_N], labels_N[known_N]
        off = np.abs(rated - full)[:, 1]
        figures = [f"{size / 1e6:.3g}", str(known_N.sum()), *(f"{srcc(rated[:, kind], labels):.3f}" for kind in (0, 1))]
        figures += [f"{np.mean(rated[:, 0] != full[:, 0]):.1%}", f"{off.mean():.4f}", f"{off.max():.4f}"]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
