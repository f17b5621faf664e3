"""Arrays as orbax keeps them on disk: each a folder in zarr's format, with a file for every tile, uncompressed.

Enters: the weights' folder of a native checkpoint. Leaves: its arrays by name, not read yet, of which any part can be
had: only the tiles that it touches are read. TensorStore, through which orbax reads and writes, does the reading.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorstore  # comes with orbax, and is imported in a twentieth of its time

from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, NAMES, Shape

LIMIT = 16 * 2**20
"""Bytes of a tile at most."""


@dataclass(frozen=True)
class Tiled:
    """An array in a folder: its shape, that of its tiles, and its dtype in safetensors' spelling."""

    folder: Path
    shape: Shape
    tile: Shape
    dtype: str

    def read(self, *index: int | slice) -> np.ndarray:
        """The part at this index, or the whole, as an array of its own."""
        return np.asarray(self._store[index].read().result())

    def pieces(self) -> Iterator[np.ndarray]:
        """Its numbers in their order, some rows, or a layer, at a time."""
        for start in range(0, self.shape[0], self.tile[0]):
            yield self.read(slice(start, min(start + self.tile[0], self.shape[0])))

    @cached_property
    def _store(self) -> tensorstore.TensorStore:
        files = {"driver": "file", "path": f"{self.folder}/"}
        return tensorstore.open({"driver": "zarr", "kvstore": files, "fill_missing_data_reads": False}).result()

    def fault(self) -> str | None:
        """What is to be said of its files, where one is missing or cut short."""
        size = math.prod(self.tile) * DTYPES[self.dtype].itemsize
        counts = (-(-length // part) for length, part in zip(self.shape, self.tile, strict=True))
        for place in itertools.product(*map(range, counts)):
            file = self.folder / (".".join(map(str, place)) or "0")
            found = file.stat().st_size if file.exists() else None
            if found != size:
                what = "missing" if found is None else f"{found} bytes, expected {size}"
                return f"{file}: {what}; write the checkpoint again"
        return None


def is_stacked(name: str) -> bool:
    """Whether an array of this name has layers as its first axis."""
    return name.startswith(("vision.layers.", "language.layers."))


def tile(name: str, shape: Shape, dtype: str) -> Shape:
    """The tiles of an array: all its axes cut into as many parts as keep them small; of a stack, each layer has its own.

    So whichever axis a mesh cuts, a device finds its part in few tiles beyond its own.
    """
    layers = (1,) if is_stacked(name) else ()
    cut = (tuple(max(-(-n // 2**halved), min(n, 4)) for n in shape[len(layers) :]) for halved in itertools.count())
    return layers + next(part for part in cut if math.prod(part) * DTYPES[dtype].itemsize <= LIMIT)


def open_tiled(folder: Path) -> dict[str, Tiled]:
    """The arrays in a folder by name; neither their numbers nor the files that hold these are looked at.

    Raises: CheckpointError where the folder is missing, or what describes an array is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing; write the checkpoint again")
    opened, faults = {}, []
    for path in sorted(folder.glob("*/.zarray")):
        try:
            scheme = json.loads(path.read_bytes())
            kind = NAMES[np.dtype(scheme["dtype"])]
            opened[path.parent.name] = Tiled(path.parent, tuple(scheme["shape"]), tuple(scheme["chunks"]), kind)
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"{path}: does not describe an array ({error}); write the checkpoint again")
    if faults:
        raise CheckpointError("\n".join(faults))
    return opened
