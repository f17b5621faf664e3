"""Named tensors on disk: their shapes and dtypes at once, their numbers one tensor at a time.

Enters: a checkpoint's folder, or the file of SlowFast's weights. Leaves: a dictionary from name to `Tensor`. Pickled
weights are never executed: a `.pyth` is read by torch with `weights_only=True`, which refuses anything but tensors.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
from safetensors import SafetensorError, safe_open

from convert.rule import Shape
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, NAMES

STORED = {name: DTYPES[name] for name in ("F16", "BF16", "F32", "F64")}
"""The dtypes that weights may have; quantised ones are not supported."""

MOTION_FILE = "motion.safetensors"
"""Holds the motion branch of a checkpoint in Transformers' format, whose own files have no place for it."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is still on disk. `dtype` is spelled as safetensors spells it."""

    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def open_folder(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, in one `model.safetensors` or in the shards of its index.

    Raises: CheckpointError naming the file that is missing, damaged, or holds a tensor that another file holds too.
    """
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    for path in _files(directory):
        try:
            opened = open_file(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        twice = "is in another file of this checkpoint too; delete one of the two"
        faults += [f"{path}: {name} {twice}" for name in opened if name in tensors]
        tensors |= opened
    if faults:
        raise CheckpointError("\n".join(faults))
    return tensors


def _files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    beside = [directory / MOTION_FILE] if (directory / MOTION_FILE).exists() else []
    if single.exists():
        return [single, *beside]
    if index.exists():
        names = _shards(index)
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{index}: names files outside its folder ({outside[0]}); download it again")
        shards = [directory / name for name in names if name != MOTION_FILE]
        listed = f"missing, but {index.name} lists it; download it again"
        missing = [f"{shard}: {listed}" for shard in shards if not shard.exists()]
        if missing:
            raise CheckpointError("\n".join(missing))
        return [*shards, *beside]
    pickled = next(iter(sorted([*directory.glob("*.bin"), *directory.glob("*.pt")])), None)
    if pickled:
        raise CheckpointError(f"{pickled}: pickled weights can run code, so they are not read; save as safetensors")
    raise CheckpointError(f"{directory}: no weights found; expected {single.name} or {index.name} with its shards")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(map(str, json.loads(index.read_bytes())["weight_map"].values())))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({error}); download it again") from error


_POINTER = b"version https://git-lfs"


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.safetensors` file, none of them read yet.

    Raises: CheckpointError where the file cannot be opened or is cut short.
    """
    try:
        with safe_open(path, "numpy"), path.open("rb") as file:  # safe_open validates; what it reads, it keeps mapped
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
    except (SafetensorError, OSError) as error:
        if path.is_file() and path.read_bytes()[: len(_POINTER)] == _POINTER:
            raise CheckpointError(f"{path}: a Git LFS pointer and no weights; fetch them by git lfs pull") from error
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download it again") from error
    header.pop("__metadata__", None)
    return {name: _tensor(path, start, **entry) for name, entry in header.items()}


def _tensor(path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    def read() -> np.ndarray:
        flat = np.fromfile(path, DTYPES[dtype], math.prod(shape), offset=start + data_offsets[0])
        return flat.reshape(shape)

    return Tensor(tuple(shape), dtype, read)


def open_slowfast(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of SlowFast's weights: torch hub's `.pyth`, or safetensors of the same names.

    Raises: CheckpointError where the file is missing or damaged, holds more than tensors, or torch is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected SlowFast's weights, SLOWFAST_8x8_R50.pyth of torch hub")
    return open_file(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_pickle(path: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        cure = "pip install torch==2.13.0, or give the same tensors as .safetensors"
        raise CheckpointError(f"{path}: reading this file needs torch; {cure}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, so it is not read; use torch hub's own file"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: not a file that torch can read ({error}); download it again") from error
    state = state.get("model_state", state) if isinstance(state, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    arrays = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in tensors.items()}
    return {name: Tensor(x.shape, NAMES[x.dtype], lambda x=x: x) for name, x in arrays.items()}
