"""The SHA-256 of every tensor of a checkpoint's folder, kept beside the tensors, and held against them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import Stored, open_file
from vqathinker_jax.tiles import Tiled, open_tiled

CHECKSUMS = "checksums.json"
"""Checksums by file, or folder of arrays, and tensor; read before anything else of a checkpoint."""


def write_checksums(folder: Path, sums: Mapping[str, Mapping[str, str]]) -> None:
    """Keep the checksums of a checkpoint folder's files, named from the folder."""
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")


def read_checksums(folder: Path) -> dict[str, dict[str, str]]:
    """The checksums of a checkpoint folder by file, named from the folder, and tensor.

    Raises: CheckpointError where they are missing or unreadable, or name a file outside the folder.
    """
    path = folder / CHECKSUMS
    try:
        sums = json.loads(path.read_bytes())
        named = [file for file, tensors in sums.items() if tensors.keys() is not None]
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); write the checkpoint again") from error
    outside = [file for file in named if Path(file).is_absolute() or ".." in Path(file).parts]
    if outside:
        raise CheckpointError(f"{path}: names files outside its folder ({outside[0]}); write the checkpoint again")
    return sums


def check_sums(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Every tensor with a checksum, as it is reached: its file and name, and what is wrong with it or None.

    Raises: CheckpointError where the checksums themselves cannot be read.
    """
    for file, sums in read_checksums(folder).items():
        try:
            stored = open_file(folder / file) if file.endswith(".safetensors") else open_tiled(folder / file)
        except CheckpointError as error:
            for line in str(error).splitlines():
                yield file, line.removeprefix(f"{folder / file}: ")
            continue
        for name in sorted(stored.keys() - sums.keys()):
            yield f"{file}: {name}", f"has no checksum in {CHECKSUMS}"
        for name, expected in sums.items():
            if name not in stored:
                yield f"{file}: {name}", "missing; write the checkpoint again"
                continue
            yield f"{file}: {name}", _fault(stored[name], expected)


def _fault(stored: Stored | Tiled, expected: str) -> str | None:
    if isinstance(stored, Tiled) and (fault := stored.fault()):
        return fault.removeprefix(f"{stored.folder}/")
    digest = hashlib.sha256()
    for piece in stored.pieces():
        digest.update(piece.reshape(-1).view(np.uint8).data)
    found = digest.hexdigest()
    return (
        None
        if found == expected
        else f"SHA-256 is {found[:12]}…, expected {expected[:12]}…; write the checkpoint again"
    )
