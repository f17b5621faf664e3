"""Arrays as orbax keeps them on disk: each a folder in zarr's format 3, with a file a layer, in tiles, uncompressed.

Enters: the weights' folder of a native checkpoint. Leaves: its arrays by name, not read yet, of which any part can be
had: only the tiles that it touches are read. TensorStore, through which orbax reads and writes, does the reading.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore  # comes with orbax, and is imported in a twentieth of its time

from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, NAMES, Shape

TILE, FILE = 2**18, 2**28
"""Bytes of a tile and, unless a layer is larger, of a file at most: read at once, and held while it is written."""

_RAW = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class Tiled:
    """An array in a folder: its shape, those of its files and their tiles, and its dtype in safetensors' spelling."""

    folder: Path
    shape: Shape
    part: Shape
    tile: Shape
    dtype: str

    def read(self, *index: int | slice) -> np.ndarray:
        """The part at this index, or the whole, as an array of its own."""
        return np.asarray(self._store[index].read().result())

    def pieces(self) -> Iterator[np.ndarray]:
        """Its numbers in their order, a file at a time."""
        for start in range(0, self.shape[0], self.part[0]):
            yield self.read(slice(start, min(start + self.part[0], self.shape[0])))

    @cached_property
    def _store(self) -> tensorstore.TensorStore:
        files = {"driver": "file", "path": f"{self.folder}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": files, "fill_missing_data_reads": False}).result()

    def fault(self) -> str | None:
        """What is to be said of its files, where one is missing or cut short."""
        for number, start in enumerate(range(0, self.shape[0], self.part[0])):
            file = self.folder / ".".join(["c", str(number), *["0"] * (len(self.shape) - 1)])
            found = file.stat().st_size if file.exists() else None
            if found != (size := self._size(min(self.part[0], self.shape[0] - start))):
                what = "missing" if found is None else f"{found} bytes, expected {size}"
                return f"{file}: {what}; write the checkpoint again"
        return None

    def _size(self, rows: int) -> int:
        """Bytes of a file that holds so many rows: its tiles, where each lies, and a checksum of that."""
        above, below = (math.prod(map(_count, (n, *self.part[1:]), self.tile)) for n in (rows, self.part[0]))
        return above * math.prod(self.tile) * DTYPES[self.dtype].itemsize + 16 * below + 4


def is_stacked(name: str) -> bool:
    """Whether an array of this name has layers as its first axis."""
    return name.startswith(("vision.layers.", "language.layers."))


def cut(name: str, shape: Shape, dtype: str) -> tuple[Shape, Shape]:
    """The shapes of an array's files, one for each layer or for some rows, and of tiles: the longest side halved.

    So whichever axis a mesh cuts, a device finds its part in few tiles beyond its own.
    """
    itemsize = DTYPES[dtype].itemsize
    tile = [1, *shape[1:]] if is_stacked(name) else list(shape)
    while math.prod(tile) * itemsize > TILE:
        longest = tile.index(max(tile))
        tile[longest] = _count(tile[longest], 2)
    part = [_count(length, side) * side for length, side in zip(shape, tile, strict=True)]
    rows = FILE // (math.prod(part[1:]) * itemsize)
    part[0] = 1 if is_stacked(name) else max(tile[0], min(part[0], rows // tile[0] * tile[0]))
    return tuple(part), tuple(tile)


def scheme(shape: Shape, part: Shape, tile: Shape, dtype: str) -> dict[str, Any]:
    """How an array is kept, in zarr's words."""
    places = {"codecs": [_RAW], "index_codecs": [_RAW, {"name": "crc32c"}], "chunk_shape": tile}
    return {
        "shape": shape,
        "data_type": DTYPES[dtype].name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": part}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": places}],
    }


def open_tiled(folder: Path) -> dict[str, Tiled]:
    """The arrays in a folder by name; neither their numbers nor the files that hold these are looked at.

    Raises: CheckpointError where the folder is missing, or what describes an array is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing; write the checkpoint again")
    opened, faults = {}, []
    for path in sorted(folder.glob("*/zarr.json")):
        try:
            kept = json.loads(path.read_bytes())
            part = tuple(kept["chunk_grid"]["configuration"]["chunk_shape"])
            tile = tuple(kept["codecs"][0]["configuration"]["chunk_shape"])
            kind = NAMES[np.dtype(kept["data_type"])]
            opened[path.parent.name] = Tiled(path.parent, tuple(kept["shape"]), part, tile, kind)
        except (ValueError, LookupError, TypeError) as error:
            faults.append(f"{path}: does not describe an array ({error}); write the checkpoint again")
    if faults:
        raise CheckpointError("\n".join(faults))
    return opened


def _count(length: int, part: int) -> int:
    """Parts of this size that cover a length."""
    return -(-length // part)
