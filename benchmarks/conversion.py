"""Conversion in and out of an 8B-shaped checkpoint (random bfloat16 weights, 4 shards) beside copying the same bytes.

Each run is a process of its own, so that its peak memory is its own; kinds of run take turns. Before each, the files it
reads are dropped from the page cache, and each ends when what it wrote is on the disk, so that all wait for the disk
alike. `--gigabytes` makes the model smaller in every dimension that is not a matrix's: layers and vocabulary.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

WHOLE = 15.89
"""Gigabytes of InternVL3-8B without its motion branch."""

SHARDS = 4
RUNS = ("copy", "convert", "export chat", "export transformers")


def make_source(folder: Path, gigabytes: float) -> int:
    """Write a chat-format checkpoint of about this size; returns its bytes."""
    from convert.formats import CHAT
    from convert.rule import link
    from convert.settings import chat_settings
    from vqathinker_jax.model.config import LanguageConfig, ModelConfig, VisionConfig
    from vqathinker_jax.skeleton import abstract_model, arrays
    from vqathinker_jax.stored import DTYPES, Writer

    share = min(1.0, gigabytes / WHOLE)
    language = LanguageConfig(layers=max(1, round(28 * share)), vocabulary=max(1000, int(151674 * share)))
    config = ModelConfig(VisionConfig(layers=max(1, round(24 * share))), language, motion=None)
    shapes = {path: array.shape for path, array in arrays(abstract_model(config)).items()}
    links = link(CHAT.rules, shapes)
    specs = {name: (s, "BF16") for each in links for name, s in zip(each.theirs, each.their_shapes, strict=True)}
    total = sum(2 * int(np.prod(shape)) for shape, _ in specs.values())
    # Random in all that a disk or a checksum can see, and finite: the exponent's highest bit is off.
    noise = np.random.default_rng(0).integers(0, 2**16, 2**25, np.uint16) & 0xBFFF
    with Writer(folder, specs, limit=total // SHARDS + total // 20) as writer:
        for number, (name, (shape, _)) in enumerate(specs.items()):
            flat = np.resize(np.roll(noise, number), int(np.prod(shape)))
            writer.append(name, flat.view(DTYPES["BF16"]).reshape(shape))
        writer.finish()
    settings = chat_settings({"text_config": {}}, config)
    (folder / "config.json").write_text(json.dumps(settings))
    small = Path(__file__).parents[1] / "vqathinker_jax" / "assets" / "checkpoint"
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(small / name, folder)
    return total


def work(kind: str, folder: Path, report: Connection) -> None:
    """One run, in a process of its own: seconds, and the most memory it ever held, over what its imports took."""
    from convert.export import export_checkpoint
    from convert.native import convert_checkpoint

    source, native, target = (folder / name for name in ("source", "native", "target"))
    idle = peak_memory()
    forget(native if kind.startswith("export") else source)
    start = time.perf_counter()
    if kind == "copy":
        copy(source, target)
    elif kind == "convert":
        convert_checkpoint(source, native, force=True)
    else:
        export_checkpoint(native, target, "chat" if kind.endswith("chat") else "transformers")
    seconds = time.perf_counter() - start
    report.send({"seconds": seconds, "peak": peak_memory(), "idle": idle})


def peak_memory() -> int:
    """Bytes that this process had resident at most; getrusage would count those of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def copy(source: Path, target: Path) -> None:
    """Read and write the same bytes with nothing in between, as plainly as it can be done."""
    target.mkdir()
    for path in source.glob("*.safetensors"):
        with path.open("rb", buffering=0) as from_file, (target / path.name).open("wb", buffering=0) as to_file:
            while chunk := from_file.read(2**26):
                to_file.write(chunk)
            os.fsync(to_file.fileno())


def forget(folder: Path) -> None:
    """Take a folder's files out of the page cache, so that they are read from the disk."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(kind: str, folder: Path) -> dict[str, float]:
    """The report of one run."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(kind, folder, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()
        shutil.rmtree(folder / "target", ignore_errors=True)


def main() -> None:
    """Print a table, or one JSON object, of medians beside the copy's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=WHOLE, help="of the checkpoint that is made (default: 8B's)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room for three times as much (default: temporary)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        total = make_source(folder / "source", options.gigabytes)
        print(f"made {total / 1e9:.2f} GB in {SHARDS} shards or so", file=sys.stderr)
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in RUNS}
        for repeat in range(options.repeats):
            for kind in RUNS:
                runs[kind].append(measured(kind, folder))
                print(f"{repeat + 1}/{options.repeats} {kind}: {runs[kind][-1]['seconds']:.1f} s", file=sys.stderr)
    seconds = {kind: statistics.median(run["seconds"] for run in each) for kind, each in runs.items()}
    rows = [
        {
            "run": kind,
            "seconds": round(seconds[kind], 2),
            "fastest": round(min(run["seconds"] for run in each), 2),
            "slowest": round(max(run["seconds"] for run in each), 2),
            "times a copy": round(seconds[kind] / seconds["copy"], 2),
            "gigabytes a second": round(total / 1e9 / seconds[kind], 2),
            "peak memory, GB": round(max(run["peak"] for run in each) / 1e9, 2),
            "of it imports": round(max(run["idle"] for run in each) / 1e9, 2),
        }
        for kind, each in runs.items()
    ]
    if options.json:
        print(json.dumps({"bytes": total, "python": platform.python_version(), "jax": version("jax"), "runs": rows}))
        return
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(map(str, row.values())))


if __name__ == "__main__":
    main()
