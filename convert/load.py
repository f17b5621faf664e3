"""A checkpoint folder in, a model out.

All that does not fit is found from the files' headers, before any weight is read. Then weights are read one tensor at a
time into one array of ours at a time, so memory peaks at the model and its largest array.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from convert.formats import Source, open_source
from convert.rule import Link, Shape, faults, link
from convert.tensors import STORED, Tensor
from vqathinker_jax.checkpoint import abstract_model, arrays, check_free, fill, is_native, refuse, restore, save
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import CheckpointError

_BLOCK = 256


def open_model(
    directory: Path,
    *,
    dtype: DTypeLike | None = None,
    slowfast: Path | None = None,
    unrolled: bool = False,
    progress: bool = False,
) -> VLM:
    """The model of a checkpoint folder of any kind, native ones included; the arguments are those of `load`.

    Raises: CheckpointError with every fault found, one a line.
    """
    if not is_native(directory):
        return load(directory, dtype=dtype, slowfast=slowfast, unrolled=unrolled, progress=progress)
    if slowfast:
        raise CheckpointError(f"{directory}: a native checkpoint has no use for {slowfast}; leave --slowfast out")
    return restore(directory, dtype=dtype, unrolled=unrolled)


def convert_checkpoint(
    source: Path, target: Path, *, slowfast: Path | None = None, dtype: DTypeLike | None = None, force: bool = False
) -> None:
    """Write the checkpoint of the PyTorch world in `source` as a native one to `target`, with a bar on stderr.

    dtype, slowfast: as for `load`. force: replace what is in `target`.

    Raises: CheckpointError where `source` does not load, or `target` is taken.
    """
    check_free(target, force=force)
    if is_native(source):
        raise CheckpointError(f"{source}: is a native checkpoint already; copy the folder")
    if source.resolve().is_relative_to(target.resolve()):
        raise CheckpointError(f"{target}: holds {source}, which is still needed; name another folder")
    save(target, load(source, dtype=dtype, slowfast=slowfast, progress=True), source, force=force)


def load(
    directory: Path,
    *,
    dtype: DTypeLike | None = None,
    slowfast: Path | None = None,
    unrolled: bool = False,
    progress: bool = False,
) -> VLM:
    """The model of a folder in chat or Transformers' format, on the default device.

    dtype: of every parameter; None keeps what is stored. slowfast: a file of SlowFast's weights, for a checkpoint that
    has the motion projector but not them. unrolled: layers listed rather than stacked. progress: a bar on stderr.

    Raises: CheckpointError with every fault found, one a line.
    """
    source = open_source(directory, slowfast)
    abstract = abstract_model(source.config, unrolled=unrolled)
    shapes = {path: array.shape for path, array in arrays(abstract).items()}
    values = stream(fit(source, shapes), source.tensors, shapes, dtype)
    return fill(abstract, tqdm(values, f"loading {directory.resolve().name}", len(shapes), disable=not progress))


def fit(source: Source, shapes: Mapping[str, Shape]) -> list[Link]:
    """The links between the source's tensors and a model's arrays of these shapes, every one of them on both sides.

    Raises: CheckpointError listing each tensor that is unexpected, missing, misshapen or of an unsupported dtype.
    """
    links = link(source.table.rules, shapes)
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    lines = faults(links, source.table.ignored, found, shapes)
    claimed = sorted(set(found).intersection(name for each in links for name in each.theirs))
    wrong = [(name, source.tensors[name].dtype) for name in claimed if source.tensors[name].dtype not in STORED]
    lines += [f"{name}: found dtype {dtype}, expected {', '.join(STORED)}" for name, dtype in wrong]
    refuse(source.directory, lines)
    return links


def stream(
    links: Sequence[Link], tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], dtype: DTypeLike | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each array of ours, whole, with its path; only the ones being filled are in memory."""
    for paths, same in itertools.groupby(links, key=lambda each: each.ours):
        group = list(same)
        stored = [STORED[tensors[name].dtype] for each in group for name in each.theirs]
        widest = jax.dtypes.canonicalize_dtype(reduce(jnp.promote_types, stored))
        kind = widest if dtype is None else jnp.dtype(dtype)
        filling = {path: np.empty(shapes[path], kind) for path in paths}
        for each in group:
            parts = each.form.to_ours([tensors[name].read() for name in each.theirs], each.shapes)
            for path, part in zip(paths, parts, strict=True):
                _copy(part, filling[path] if each.layer is None else filling[path][each.layer])
        yield from filling.items()


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """`target[...] = source`, in square blocks: most sources are transposed matrices, and this is 5 times as fast."""
    source, target = _matrix(source), target.reshape(_matrix(source).shape)
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for i, j in itertools.product(*(range(0, size, _BLOCK) for size in source.shape)):
        block = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
        target[block] = source[block]


def _matrix(array: np.ndarray) -> np.ndarray:
    """The array with each run of axes that lie one within the other in memory as one axis."""
    shape: list[int] = []
    for axis, size in enumerate(array.shape):
        inside = axis > 0 and array.strides[axis - 1] == size * array.strides[axis]
        shape = [*shape[:-1], shape[-1] * size] if inside else [*shape, size]
    return array.reshape(shape)
