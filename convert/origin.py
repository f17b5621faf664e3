"""A checkpoint of any kind as the arrays of our model, one a layer, all of them still on disk.

Enters: a folder in chat, Transformers' or native format. Leaves: an `Origin`, from which the other formats are written
one array at a time.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from convert import motion
from convert.formats import SPELLINGS, Source, open_source
from convert.load import fit
from convert.packing import packed
from convert.rule import Link, Shape
from convert.tensors import STORED, Tensor, open_file
from vqathinker_jax.checkpoint import CARRIED, is_native, native_config, open_native, read_manifest
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.skeleton import abstract_model, arrays
from vqathinker_jax.stored import DTYPES, NAMES
from vqathinker_jax.tiles import Tiled, is_stacked

Row = tuple[str, int | None]
"""An array of ours: its path and, where layers are stacked, the layer."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    spelling: the key in `SPELLINGS` of the format they were published in. repeated: they came with a head although it
    is tied. rows: in the model's order, layer after layer, in the dtypes they were published in. carried: tensors of
    the PyTorch world that our model has no use for. left_out: what was dropped for good, in sentences.
    """

    directory: Path
    config: ModelConfig
    spelling: str
    repeated: bool
    rows: Mapping[Row, Tensor]
    carried: Mapping[str, Tensor]
    left_out: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each of our arrays, layers stacked."""
        return {path: array.shape for path, array in arrays(abstract_model(self.config)).items()}


def open_origin(directory: Path, slowfast: Path | None = None, *, fresh_motion: bool = False) -> Origin:
    """The checkpoint in a folder; `slowfast` and `fresh_motion` are as for `open_source`.

    Raises: CheckpointError with every fault found, one a line.
    """
    if not is_native(directory):
        return _published(open_source(directory, slowfast, fresh_motion=fresh_motion))
    if slowfast:
        raise CheckpointError(f"{directory}: a native checkpoint has no use for {slowfast}; leave --slowfast out")
    return _native(directory)


def _published(source: Source) -> Origin:
    shapes = {path: array.shape for path, array in arrays(abstract_model(source.config)).items()}
    links = fit(source, shapes)
    rows = {
        (path, each.layer): _row(each, number, source.tensors)
        for each in links
        for number, path in enumerate(each.ours)
    }
    unclaimed = source.tensors.keys() - {name for each in links for name in each.theirs}
    carried: dict[str, Tensor] = {}
    left_out: list[str] = []
    for ignored in source.table.ignored:
        matching = sorted(name for name in unclaimed if re.fullmatch(ignored.pattern, name))
        if ignored.carried:
            carried |= {_at_home(name): source.tensors[name] for name in matching}
        elif matching:
            others = f" and {len(matching) - 1} more" if len(matching) > 1 else ""
            left_out.append(f"{matching[0]}{others}: {ignored.reason}")
    head = SPELLINGS[source.spelling].theirs("language.head.kernel")
    repeated = source.config.language.tied and head in source.tensors
    return Origin(source.directory, source.config, source.spelling, repeated, rows, carried, tuple(left_out))


def _row(each: Link, number: int, tensors: Mapping[str, Tensor]) -> Tensor:
    theirs = [tensors[name] for name in each.theirs]
    dtype = np.dtype(reduce(jnp.promote_types, [STORED[tensor.dtype] for tensor in theirs]))

    def read() -> np.ndarray:
        return each.form.to_ours([tensor.read().astype(dtype, copy=False) for tensor in theirs], each.shapes)[number]

    return Tensor(each.shapes[number], NAMES[dtype], read)


def _at_home(name: str) -> str:
    """A tensor of torch hub's SlowFast under the name that it has in a checkpoint."""
    own, hub = motion.ROOTS
    return own + name.removeprefix(hub) if name.startswith(hub) else name


def _native(directory: Path) -> Origin:
    manifest, stored = read_manifest(directory), open_native(directory)
    rows: dict[Row, Tensor] = {}
    for path, array in stored.items():
        for layer in range(array.shape[0]) if is_stacked(path) else [None]:
            published = manifest.dtypes.get(path, {}).get("" if layer is None else str(layer), array.dtype)
            shape = array.shape if layer is None else array.shape[1:]
            rows[path, layer] = Tensor(shape, published, partial(_read_native, array, layer, published))
    carried = open_file(directory / CARRIED) if (directory / CARRIED).exists() else {}
    return Origin(directory, native_config(directory), manifest.spelling, manifest.repeated, rows, carried)


def _read_native(array: Tiled, layer: int | None, dtype: str) -> np.ndarray:
    return packed(array.read() if layer is None else array.read(layer), DTYPES[dtype])
