"""How long `crosscheck` takes over a checkpoint of InternVL3-1B's shapes with a motion branch, and in how much memory.

The weights are random, of a size that keeps activations as large as a trained model's; everything after `--` goes to
the command.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def make_source(folder: Path) -> int:
    """Write the checkpoint in chat format, bfloat16; returns how many numbers it has."""
    from convert import motion
    from convert.formats import CHAT
    from convert.rule import link
    from convert.settings import chat_settings
    from vqathinker_jax.model.released import RELEASED
    from vqathinker_jax.skeleton import abstract_model, arrays
    from vqathinker_jax.stored import DTYPES, Writer

    config = RELEASED["1B"]
    shapes = {path: array.shape for path, array in arrays(abstract_model(config)).items()}
    links = link((CHAT + motion.slowfast(motion.ROOTS[0])).rules, shapes)
    specs = {
        name: (shape, "BF16") for each in links for name, shape in zip(each.theirs, each.their_shapes, strict=True)
    }
    rng = np.random.default_rng(0)
    with Writer(folder, specs) as writer:
        for name, (shape, dtype) in specs.items():
            writer.append(name, drawn(rng, name, shape).astype(DTYPES[dtype]))
        writer.finish()
    (folder / "config.json").write_text(json.dumps(chat_settings({"text_config": {}}, config)))
    small = ROOT / "vqathinker_jax" / "assets" / "checkpoint"
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(small / name, folder)
    return sum(math.prod(shape) for shape, _ in specs.values())


def drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers that keep the size of what passes through them."""
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return 0.5 + np.abs(values)
    if name.endswith((".ls1", ".ls2")):
        return 0.3 + 0.05 * values
    if len(shape) == 1:
        return 0.1 * values + (1 if name.endswith("weight") else 0)
    table = name.endswith(("embed_tokens.weight", "class_embedding", "position_embedding"))
    return values * (0.5 if table else 1 / math.sqrt(math.prod(shape[1:])))


def main() -> None:
    """Run the command on a checkpoint made for it; print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where there is room for 2 GB (default: temporary)")
    parser.add_argument("options", nargs="*", help="of the command, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source = Path(name) / "source"
        numbers = make_source(source)
        command = [
            sys.executable,
            ROOT / "run.py",
            "crosscheck",
            "--checkpoint",
            source,
            "--output",
            Path(name),
            *options.options,
        ]
        start = time.perf_counter()
        status = subprocess.run(command, check=False).returncode
        seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("jax", "torch", "transformers")}
    figures = {"weights": numbers, "seconds": round(seconds, 1), "peak memory, GB": round(peak / 1e9, 2)}
    print(json.dumps({**figures, "status": status, "cores": len(os.sched_getaffinity(0)), **versions}))


if __name__ == "__main__":
    main()
