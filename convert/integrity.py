"""Whether a checkpoint is what it was when it was written: a folder of any format in, findings out."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from convert.origin import Origin, open_origin
from vqathinker_jax.checkpoint import is_native
from vqathinker_jax.checksums import CHECKSUMS, check_sums, read_checksums
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.doctor import Finding
from vqathinker_jax.records import CheckpointError


def examine_checkpoint(directory: Path, slowfast: Path | None = None) -> Iterator[Finding]:
    """What is to be said of a checkpoint, each thing as it is found; weights are read once, and nothing is run.

    slowfast: a file of SlowFast's weights, for a checkpoint that has the motion projector but not them.
    """
    if not directory.is_dir():
        yield Finding(False, f"{directory}: no such folder; expected a checkpoint")
        return
    try:
        origin = open_origin(directory, slowfast)
        yield Finding(True, _described(origin))
    except CheckpointError as error:
        yield from (Finding(False, line) for line in str(error).splitlines())
    try:
        load_tokenizer(directory)
        yield Finding(True, "tokenizer: has every token of the prompt")
    except CheckpointError as error:
        yield Finding(False, str(error))
    yield from _numbers(directory)


def _described(origin: Origin) -> str:
    config = origin.config
    millions = sum(row.size for row in origin.rows.values()) / 1e6
    kind = f"native, from {origin.spelling}" if is_native(origin.directory) else origin.spelling
    parts = [
        f"vision {config.vision.layers} layers of {config.vision.width}",
        f"language {config.language.layers} layers of {config.language.width}",
        "motion branch" if config.motion else "no motion branch",
        f"{millions:,.1f} million weights in {', '.join(sorted({row.dtype for row in origin.rows.values()}))}",
    ]
    return f"{kind} format: {'; '.join(parts)}; every tensor is there, once, and of its shape"


def _numbers(directory: Path) -> Iterator[Finding]:
    """Holds every tensor against the checksum it was written with."""
    if not (directory / CHECKSUMS).is_file():
        cure = "`convert` and `export` write it; without it a flipped bit stays unseen"
        yield Finding(None, f"no {CHECKSUMS}: {cure}")
        return
    try:
        count = sum(map(len, read_checksums(directory).values()))
        sound = 0
        for where, fault in tqdm(check_sums(directory), "checking", count, disable=None):
            if fault:
                yield Finding(False, f"{where}: {fault}")
            sound += fault is None
        if sound == count:
            yield Finding(True, f"{count} tensors are those that were written: SHA-256 of each")
    except CheckpointError as error:
        yield Finding(False, str(error))
