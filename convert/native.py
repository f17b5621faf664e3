"""A checkpoint of the PyTorch world in, a native one out, one layer's array in memory at a time."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from convert.origin import Origin, open_origin
from convert.packing import ahead, packed
from convert.tensors import Tensor
from vqathinker_jax.checkpoint import CARRIED, WEIGHTS, Manifest, finish, is_native
from vqathinker_jax.folder import check_free, replacing
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, NAMES, Writer
from vqathinker_jax.weights import Part, write_weights


def convert_checkpoint(
    source: Path,
    target: Path,
    *,
    slowfast: Path | None = None,
    fresh_motion: bool = False,
    dtype: DTypeLike | None = None,
    force: bool = False,
) -> tuple[str, ...]:
    """Write the checkpoint of the PyTorch world in `source` as a native one to `target`, with a bar in the terminal.

    slowfast: a file of SlowFast's weights, for a checkpoint that lacks them. fresh_motion: give a checkpoint without a
    motion branch one whose projector is still to be trained. dtype: of every weight; None keeps what is stored, the
    widest where layers differ. force: replace a checkpoint in `target`. Returns what was left out, and why, in
    sentences.

    Raises: CheckpointError where `source` does not load, or `target` is taken.
    """
    check_free(target, force=force)
    if is_native(source):
        raise CheckpointError(f"{source}: is a native checkpoint already; copy the folder")
    if source.resolve().is_relative_to(target.resolve()):
        raise CheckpointError(f"{target}: holds {source}, which is still needed; name another folder")
    origin = open_origin(source, slowfast, fresh_motion=fresh_motion)
    kinds = _kinds(origin, dtype)
    with replacing(target, force=force) as folder:
        sums = _write_weights(origin, kinds, folder) | _write_carried(origin, folder)
        manifest = Manifest(
            motion=origin.config.motion is not None,
            tied=origin.config.language.tied,
            spelling=origin.spelling,
            repeated=origin.repeated,
            dtypes={} if dtype is not None else _exceptions(origin, kinds),
        )
        finish(folder, source, manifest, sums)
    return origin.left_out


def _write_weights(origin: Origin, kinds: dict[str, str], folder: Path) -> dict[str, dict[str, str]]:
    def make(path: str, layer: int | None, row: Tensor) -> Part:
        return path, layer, packed(row.read(), DTYPES[kinds[path]])

    made = ahead(partial(make, path, layer, row) for (path, layer), row in origin.rows.items())
    specs = {path: (shape, kinds[path]) for path, shape in origin.shapes.items()}
    title = f"converting {origin.directory.resolve().name}"
    sums = write_weights(folder / WEIGHTS, specs, tqdm(made, title, len(origin.rows), disable=None))
    return {WEIGHTS: sums}


def _write_carried(origin: Origin, folder: Path) -> dict[str, dict[str, str]]:
    """Keep what our model has no use for, where there is any."""
    if not origin.carried:
        return {}
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in origin.carried.items()}
    with Writer(folder, specs, stem=CARRIED.removesuffix(".safetensors")) as writer:
        for name, tensor in origin.carried.items():
            writer.append(name, tensor.read())
        return writer.finish()


def _kinds(origin: Origin, dtype: DTypeLike | None) -> dict[str, str]:
    """The dtype, as safetensors calls it, of each of our arrays: wide enough for every layer's."""
    widest: dict[str, np.dtype] = {}
    for (path, _), row in origin.rows.items():
        stored = np.dtype(DTYPES[row.dtype] if dtype is None else jnp.dtype(dtype))
        widest[path] = np.dtype(jnp.promote_types(widest.get(path, stored), stored))
    return {path: NAMES[np.dtype(jax.dtypes.canonicalize_dtype(kind))] for path, kind in widest.items()}


def _exceptions(origin: Origin, kinds: dict[str, str]) -> dict[str, dict[str, str]]:
    """The dtypes of the rows that are stored wider than they came, so that they can go back as they were."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for (path, layer), row in origin.rows.items():
        if row.dtype not in {kinds[path], "F64"}:  # JAX has no float64: what came so goes back as float32
            found[path]["" if layer is None else str(layer)] = row.dtype
    return dict(found)
