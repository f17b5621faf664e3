"""Safetensors files written and read a part at a time, each tensor with a checksum.

The names, shapes and dtypes of all tensors come first and make the files' headers; then each tensor's numbers come in
order, in as many pieces as suits. So a checkpoint can be written that no memory holds, which `safetensors` itself does
not offer. Read back, a tensor is a place in a file of which any rows can be had.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from vqathinker_jax.records import CheckpointError

DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
"""What safetensors calls a dtype, and what numpy calls it."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

LIMIT = 5 * 10**9
"""Bytes of a file; a larger tensor has a file of its own. Transformers shards at the same size."""

_PIECE = 16 * 2**20

Shape = tuple[int, ...]
Spec = tuple[Shape, str]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, its dtype in safetensors' spelling, and where its numbers begin."""

    file: Path
    offset: int
    shape: Shape
    dtype: str

    def pieces(self) -> Iterator[np.ndarray]:
        """Its numbers in their order, some at a time."""
        count, dtype = math.prod(self.shape), DTYPES[self.dtype]
        for start in range(0, count, _PIECE):
            yield np.fromfile(self.file, dtype, min(_PIECE, count - start), offset=self.offset + start * dtype.itemsize)


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, none of them read yet.

    Raises: CheckpointError where the file is missing, damaged or cut short.
    """
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if start > size:
                raise ValueError("its header is cut off")
            header: dict[str, Any] = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes, expected {end}")
        return {
            name: Stored(path, start + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
            for name, entry in header.items()
        }
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; write the checkpoint again") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); write the checkpoint again") from error


class Writer:
    """Tensors of known names, shapes and dtypes on their way into the safetensors files of one folder.

    A single file is called STEM.safetensors; several are numbered and have the index that Transformers expects.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Spec], *, stem: str = "model", limit: int = LIMIT):
        folder.mkdir(parents=True, exist_ok=True)
        groups = _groups(tensors, limit)
        width = len(groups)
        names = [f"{stem}-{i + 1:05}-of-{width:05}" for i in range(width)] if width > 1 else [stem]
        self._folder, self._stem = folder, stem
        self._places: dict[str, Stored] = {}
        self._files: dict[Path, BinaryIO] = {}
        for name, group in zip(names, groups, strict=True):
            self._begin(folder / f"{name}.safetensors", group)
        self._written = dict.fromkeys(tensors, 0)
        self._sums = {name: hashlib.sha256() for name in tensors}

    def _begin(self, path: Path, tensors: Mapping[str, Spec]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it Transformers refuses the file
        end = 0
        for name, (shape, dtype) in tensors.items():
            begin, end = end, end + _size((shape, dtype))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        file = self._files[path] = path.open("wb", buffering=0)
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        start = file.tell()
        file.truncate(start + end)
        for name, (shape, dtype) in tensors.items():
            self._places[name] = Stored(path, start + header[name]["data_offsets"][0], tuple(shape), dtype)

    def append(self, name: str, array: np.ndarray) -> None:
        """Write an array of the tensor's dtype behind what has been written of this tensor."""
        place = self._places[name]
        if array.dtype != DTYPES[place.dtype]:
            raise TypeError(f"{name}: {array.dtype} given, {place.dtype} announced")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        file = self._files[place.file]
        file.seek(place.offset + self._written[name])
        self._written[name] += len(data)
        self._sums[name].update(data)
        while data:
            data = data[file.write(data) :]

    def finish(self) -> dict[str, dict[str, str]]:
        """Bring everything to disk; returns the SHA-256 of every tensor, by file and name.

        Raises: ValueError where a tensor is not whole.
        """
        for name, place in self._places.items():
            if self._written[name] != _size((place.shape, place.dtype)):
                raise ValueError(f"{name}: {self._written[name]} bytes written of {_size((place.shape, place.dtype))}")
        for file in self._files.values():
            os.fsync(file.fileno())
        self.close()
        home = {name: place.file.name for name, place in self._places.items()}
        if len(self._files) > 1:
            total = sum(self._written.values())
            index = {"metadata": {"total_size": total}, "weight_map": home}
            (self._folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        sums: dict[str, dict[str, str]] = {path.name: {} for path in self._files}
        for name, digest in self._sums.items():
            sums[home[name]][name] = digest.hexdigest()
        return sums

    def close(self) -> None:
        """Close the files, whole or not."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _groups(tensors: Mapping[str, Spec], limit: int) -> list[dict[str, Spec]]:
    groups: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in tensors.items():
        if groups[-1] and filled + _size(spec) > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += _size(spec)
    return groups


def _size(spec: Spec) -> int:
    shape, dtype = spec
    return math.prod(shape) * DTYPES[dtype].itemsize
