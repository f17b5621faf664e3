"""The native checkpoint: a folder with the weights in our own names and layouts, and all that came with them.

    weights/              what orbax keeps: a tree of arrays by their paths in the model; layers stacked
    carried.safetensors   the source's tensors that this model has no use for, to go back out with it
    config.json           the source's own, byte for byte; so are the tokenizer's files
    checksums.json        the SHA-256 of every array and tensor
    vqathinker.json       version of this format, and what the files of the source leave open; written last, so that a
                          folder without it is no checkpoint

The weights are written a layer at a time (`weights.py`), so that a conversion needs next to no memory, and read a part
at a time (`tiles.py`), so that each device fetches its own.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vqathinker_jax.checksums import read_checksums, write_checksums
from vqathinker_jax.folder import copy_beside, replacing
from vqathinker_jax.model.config import ModelConfig, parse_config
from vqathinker_jax.model.quantized import Weights
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.processes import exchange, is_first
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.sharding import shardings, whole
from vqathinker_jax.skeleton import abstract_model, arrays, by_path, fill, shape_faults
from vqathinker_jax.stored import DTYPES, NAMES
from vqathinker_jax.tiles import Tiled, open_tiled

FORMAT = 3
MANIFEST = "vqathinker.json"
WEIGHTS = "weights"
CARRIED = "carried.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a native checkpoint's `config.json` does not tell.

    motion, tied: whether there is a motion branch, and whether the head is the embedding. spelling: which format the
    source had, as `convert.formats` calls it. repeated: the source stored the head although it is tied. dtypes: by
    array, then by layer ("" where there are none), those that the source stored in another dtype than the array's.
    """

    motion: bool
    tied: bool
    spelling: str = "chat"
    repeated: bool = False
    dtypes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    format: int = FORMAT


def save(directory: Path, model: VLM, source: Path, *, force: bool = False) -> None:
    """Write a model with stacked layers as a native checkpoint, with the files beside it of the folder `source`.

    What a native `source` knows of its own source goes along. force: replace a checkpoint, and nothing else. Where this
    is interrupted, `directory` stays as it was. Of several processes all must call this, and the first one writes, an
    array at a time.

    Raises: CheckpointError where `directory` is taken.
    """
    values = arrays(model)
    if is_first():
        _save(directory, values, _manifest(model, source), source, force=force)
    else:
        for array in values.values():
            whole(array)
    exchange("saved")


def _manifest(model: VLM, source: Path) -> Manifest:
    """What is to be told of a model that came from `source`."""
    manifest = Manifest(motion=model.motion is not None, tied=model.config.language.tied)
    if is_native(source):
        former = read_manifest(source)
        manifest = replace(manifest, spelling=former.spelling, repeated=former.repeated and manifest.tied)
    elif read_config(source)["model_type"] == "internvl":
        manifest = replace(manifest, spelling="transformers")
    return manifest


def _save(directory: Path, values: Mapping[str, jax.Array], manifest: Manifest, source: Path, *, force: bool) -> None:
    from vqathinker_jax.weights import write_weights  # orbax, which takes half a second to import

    with replacing(directory, force=force) as partial:
        specs = {name: (array.shape, NAMES[np.dtype(array.dtype)]) for name, array in values.items()}
        parts = ((name, None, whole(array)) for name, array in values.items())
        sums = {WEIGHTS: write_weights(partial / WEIGHTS, specs, parts)}
        if is_native(source) and (source / CARRIED).exists():
            shutil.copyfile(source / CARRIED, partial / CARRIED)
            sums[CARRIED] = read_checksums(source)[CARRIED]
        finish(partial, source, manifest, sums)


def finish(partial: Path, source: Path, manifest: Manifest, sums: Mapping[str, Mapping[str, str]]) -> None:
    """Make a folder whose tensors are written a native checkpoint: small files of `source`, checksums, manifest."""
    copy_beside(source, partial)
    write_checksums(partial, sums)
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def is_native(directory: Path) -> bool:
    """Whether the folder holds a native checkpoint that was finished."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a native checkpoint.

    Raises: CheckpointError where it is damaged or of another version.
    """
    path = directory / MANIFEST
    raw = _read_json(path)
    known = {each.name for each in fields(Manifest)}
    if raw.get("format") != FORMAT or raw.keys() != known:
        found = f"format {raw.get('format')!r} with {len(raw)} entries, expected format {FORMAT} with {len(known)}"
        raise CheckpointError(f"{path}: {found}; convert the checkpoint again with this version")
    return Manifest(**raw)


def native_config(directory: Path) -> ModelConfig:
    """The dimensions of a native checkpoint's model.

    Raises: CheckpointError where a file is missing or damaged.
    """
    manifest = read_manifest(directory)
    config = parse_config(read_config(directory), motion=manifest.motion, file=str(directory / "config.json"))
    return replace(config, language=replace(config.language, tied=manifest.tied))


def open_native(directory: Path) -> dict[str, Tiled]:
    """Every array of a native checkpoint, found to be whole and those of its config's model; none of them read yet.

    Raises: CheckpointError where a file is missing or damaged, or the arrays do not fit the config.
    """
    expected = {name: array.shape for name, array in arrays(abstract_model(native_config(directory))).items()}
    read_checksums(directory)
    stored = open_tiled(directory / WEIGHTS)
    misfits = shape_faults(expected, {name: array.shape for name, array in stored.items()})
    damaged = [fault for array in stored.values() if (fault := array.fault())]
    if damaged and not misfits:
        raise CheckpointError("\n".join(damaged))
    refuse(directory / WEIGHTS, misfits + damaged)
    return stored


def restore(
    directory: Path,
    *,
    dtype: DTypeLike | None = None,
    weights: Weights = "full",
    unrolled: bool = False,
    mesh: Mesh | None = None,
) -> VLM:
    """The model of a native checkpoint.

    dtype: of every parameter; None keeps what is stored. weights: of these, what the decoder layers' matrices are kept
    in. unrolled: layers listed rather than stacked. mesh: over which it is spread, each device reading its own part; by
    default it goes to the first device.

    Raises: CheckpointError where the weights do not fit the config, or cannot be read; InputError where its dimensions
    do not divide by the mesh's.
    """
    stored = open_native(directory)
    abstract = abstract_model(native_config(directory), unrolled=unrolled)
    at = places(abstract, mesh)
    return fill(abstract, ((name, _restored(stored, name, dtype, place)) for name, place in at.items()), weights)


def places(model: VLM, mesh: Mesh | None) -> dict[str, jax.sharding.Sharding | None]:
    """Where on a mesh each array of a model goes, by its path; None where there is no mesh."""
    return dict.fromkeys(arrays(model)) if mesh is None else by_path(shardings(nnx.state(model), mesh))


def _restored(
    stored: Mapping[str, Tiled], name: str, dtype: DTypeLike | None, place: jax.sharding.Sharding | None
) -> jax.Array:
    """The array of this path, a row of a stacked one where layers are listed, of which each device reads its part."""
    numbered = re.fullmatch(r"(.*\.layers)\.(\d+)(\..*)", name)
    found, row = (stored[numbered[1] + numbered[3]], (int(numbered[2]),)) if numbered else (stored[name], ())
    kind = jax.dtypes.canonicalize_dtype(DTYPES[found.dtype] if dtype is None else jnp.dtype(dtype))
    if place is None:
        return jnp.asarray(found.read(*row), kind)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return found.read(*row, *(index or ())).astype(kind, copy=False)

    return jax.make_array_from_callback(found.shape[len(row) :], place, part)


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a checkpoint folder of any format.

    Raises: CheckpointError where the folder, the file, or JSON in the file is missing.
    """
    path = directory / "config.json"
    if directory.is_file():
        raise CheckpointError(f"{directory}: is a file; name the folder of a checkpoint")
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; name one with a checkpoint, for nothing is fetched")
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; a checkpoint folder has it beside weights and tokenizer")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it from the model's source again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object of settings")
    return value


def refuse(path: Path, lines: Sequence[str]) -> None:
    """Check that there are no faults.

    Raises: CheckpointError that lists all of them.
    """
    if lines:
        count = f"{len(lines)} fault{'s'[: len(lines) > 1]} in the weights"
        cure = "check that config.json belongs to these weights, and fetch the checkpoint again"
        raise CheckpointError("\n".join([f"{path}: {count}", *lines, cure]))
