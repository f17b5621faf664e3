"""A checkpoint folder in, a model out.

All that does not fit is found from the files' headers, before weights are read, but for one question that only they
answer: whether a head stored beside the embedding it is tied to equals it (`formats.py`). Then weights are read one
tensor at a time into one array of ours at a time, so memory peaks at the model and its largest array.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike
from tqdm import tqdm

from convert.formats import Source, open_source
from convert.packing import copy_into
from convert.rule import Link, Shape, faults, link
from convert.tensors import STORED, Tensor
from vqathinker_jax.checkpoint import is_native, native_config, places, refuse, restore
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.quantized import Weights
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.skeleton import abstract_model, arrays, fill


def open_config(directory: Path, *, slowfast: Path | None = None) -> ModelConfig:
    """The dimensions of the model that `open_model` would load, from small files and headers.

    Raises: CheckpointError where they are damaged or missing, or the config is unsupported.
    """
    return native_config(directory) if is_native(directory) else open_source(directory, slowfast).config


def open_model(
    directory: Path,
    *,
    dtype: DTypeLike | None = None,
    weights: Weights = "full",
    slowfast: Path | None = None,
    unrolled: bool = False,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> VLM:
    """The model of a checkpoint folder of any kind, native ones included; the arguments are those of `load`.

    Raises: CheckpointError with every fault found, one a line.
    """
    if not is_native(directory):
        kept = {"dtype": dtype, "weights": weights, "unrolled": unrolled, "mesh": mesh}
        return load(directory, slowfast=slowfast, progress=progress, **kept)
    if slowfast:
        raise CheckpointError(f"{directory}: a native checkpoint has no use for {slowfast}; leave --slowfast out")
    return restore(directory, dtype=dtype, weights=weights, unrolled=unrolled, mesh=mesh)


def load(
    directory: Path,
    *,
    dtype: DTypeLike | None = None,
    weights: Weights = "full",
    slowfast: Path | None = None,
    unrolled: bool = False,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> VLM:
    """The model of a folder in chat or Transformers' format.

    dtype: of every parameter; None keeps what is stored. weights: of these, what the decoder layers' matrices are kept
    in (`quantized.py`). slowfast: a file of SlowFast's weights, for a checkpoint that
    has the motion projector but not them. unrolled: layers listed rather than stacked. mesh: over which it is spread;
    by default it goes to the first device. progress: a bar in the terminal.

    Raises: CheckpointError with every fault found, one a line; InputError where the mesh does not suit the model.
    """
    source = open_source(directory, slowfast)
    abstract = abstract_model(source.config, unrolled=unrolled)
    shapes = {path: array.shape for path, array in arrays(abstract).items()}
    at = places(abstract, mesh)
    values = (
        (name, value if (place := at[name]) is None else _spread(value, place))
        for name, value in stream(fit(source, shapes), source.tensors, shapes, dtype)
    )
    quiet = None if progress else True  # None: where there is no terminal
    return fill(abstract, tqdm(values, f"loading {directory.resolve().name}", len(shapes), disable=quiet), weights)


def _spread(value: np.ndarray, place: Sharding) -> jax.Array:
    """An array of which each device gets its part, whichever process's it is."""
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])


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
                copy_into(part, filling[path] if each.layer is None else filling[path][each.layer])
        yield from filling.items()
