"""The native checkpoint: a folder with the weights as orbax writes them, and beside them all that came with them.

    weights/          one array a parameter, under its path in the model; layers stacked
    config.json       the source's own, byte for byte; so are the tokenizer's files
    vqathinker.json   version of this format, and what config.json leaves open; written last, so that a folder without
                      it is no checkpoint

A checkpoint is written beside its place and moved there when it is whole.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike

from vqathinker_jax.model.config import ModelConfig, parse_config
from vqathinker_jax.model.layers import unstack
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import CheckpointError

FORMAT = 1
MANIFEST = "vqathinker.json"
WEIGHTS = "weights"
BESIDE = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""The files that a checkpoint takes along from its source, where the source has them."""


def save(directory: Path, model: VLM, source: Path, *, force: bool = False) -> None:
    """Write a model with stacked layers as a native checkpoint, with the files `BESIDE` it of the folder `source`.

    force: replace a native checkpoint, and nothing else. Where this is interrupted, `directory` stays as it was.

    Raises: CheckpointError where `directory` is taken.
    """
    directory = directory.absolute()
    check_free(directory, force=force)
    partial, former = (directory.with_name(f"{directory.name}.{word}-{os.getpid()}") for word in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / WEIGHTS, arrays(model))
        for name in BESIDE:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        manifest = {
            "format": FORMAT,
            "motion": model.motion is not None,
            "tied": model.config.language.tied,
            "files": {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial / WEIGHTS)},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if directory.exists():
            directory.rename(former)
        partial.rename(directory)
    finally:
        if former.exists() and not directory.exists():
            former.rename(directory)
        for leftover in (partial, former):
            shutil.rmtree(leftover, ignore_errors=True)


def check_free(directory: Path, *, force: bool) -> None:
    """Nothing, where a checkpoint may be written to `directory`.

    Raises: CheckpointError where it is a file, a folder of other things, or a checkpoint and `force` is not set.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; name a folder to write to")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not is_native(directory):
        raise CheckpointError(f"{directory}: holds other things than a native checkpoint; name another folder")
    if not force:
        raise CheckpointError(f"{directory}: holds a checkpoint already; name another folder, or replace it by --force")


def is_native(directory: Path) -> bool:
    """Whether the folder holds a checkpoint that `save` finished."""
    return (directory / MANIFEST).is_file()


def restore(
    directory: Path, *, dtype: DTypeLike | None = None, unrolled: bool = False, shardings: nnx.State | None = None
) -> VLM:
    """The model of a native checkpoint.

    dtype: of every parameter; None keeps what is stored. unrolled: layers listed rather than stacked. shardings: where
    each array goes, as `sharding.shardings` gives it; each device then reads its own part. Default: the first device.

    Raises: CheckpointError where the weights do not fit the config, or cannot be read.
    """
    manifest, raw = _read_manifest(directory), read_config(directory)
    config = parse_config(raw, motion=manifest["motion"], file=str(directory / "config.json"))
    config = replace(config, language=replace(config.language, tied=manifest["tied"]))
    places = {} if shardings is None else _values(shardings)
    values = _restore_weights(directory / WEIGHTS, arrays(abstract_model(config)), dtype, places)
    return fill(abstract_model(config, unrolled=unrolled), _rows(values) if unrolled else values.items())


def _read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, checked against the files that it lists: orbax tells a damaged one in hundreds of lines."""
    path = directory / MANIFEST
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT or not {"motion", "tied", "files"} <= manifest.keys():
        found = f"format {manifest.get('format')!r}, expected {FORMAT} with motion, tied and files"
        raise CheckpointError(f"{path}: {found}; convert the checkpoint again with this version")
    sizes = {str(file.relative_to(directory)): file.stat().st_size for file in _files(directory / WEIGHTS)}
    lines = [
        f"{directory / name}: {sizes.get(name, 0)} bytes, expected {size}; convert the checkpoint again"
        for name, size in manifest["files"].items()
        if sizes.get(name) != size
    ]
    if lines:
        raise CheckpointError("\n".join(lines))
    return manifest


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _restore_weights(
    path: Path, expected: Mapping[str, Any], dtype: DTypeLike | None, places: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path.absolute()).item_metadata.tree
            refuse(path, shape_faults(*({n: x.shape for n, x in side.items()} for side in (expected, stored))))
            wanted = {
                name: jax.ShapeDtypeStruct(
                    array.shape, array.dtype if dtype is None else dtype, sharding=places.get(name, here)
                )
                for name, array in stored.items()
            }
            return checkpointer.restore(path.absolute(), wanted)
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises bare ones where files are missing or damaged
        found = str(error).partition(". ")[0]
        raise CheckpointError(f"{path}: cannot be read ({found}); convert the checkpoint again") from error


def _rows(values: dict[str, jax.Array]) -> Iterator[tuple[str, jax.Array]]:
    """Stacked arrays taken out of `values` one by one and handed on layer by layer, as `layers.unstack` names them."""
    for name in list(values):
        value = values.pop(name)
        root, _, rest = name.partition(".layers.")
        if rest:
            yield from ((f"{root}.layers.{layer}.{rest}", value[layer]) for layer in range(len(value)))
        else:
            yield name, value


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a checkpoint folder of any format.

    Raises: CheckpointError where the folder, the file, or JSON in the file is missing.
    """
    path = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; expected a checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; a checkpoint folder has it beside weights and tokenizer")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it from the model's source again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object of settings")
    return value


def abstract_model(config: ModelConfig, *, unrolled: bool = False) -> VLM:
    """The model without its numbers: every parameter is a float32 `jax.ShapeDtypeStruct`.

    unrolled: vision and language layers are listed, which runs faster on a CPU, not stacked for a scan.
    """

    def build() -> VLM:
        model = VLM(config, rngs=cast("nnx.Rngs", _SameKey))
        if unrolled:
            model.vision.layers = unstack(model.vision.layers)
            model.language.layers = unstack(model.language.layers)
        return model

    return nnx.eval_shape(build)


class _SameKey:
    """Stands for nnx.Rngs where no number is drawn: their counters make tracing a model take 10 s instead of 1."""

    @staticmethod
    def params() -> jax.Array:
        return jax.random.key(0)


def arrays(model: VLM) -> dict[str, jax.Array]:
    """A model's parameters by their dotted path, `language.layers.query.kernel`, frozen ones included."""
    return _values(nnx.state(model))


def fill(abstract: VLM, values: Iterable[tuple[str, Any]]) -> VLM:
    """The model whose parameters are `values`, by their dotted path.

    Each is put on the default device as it comes, so that no second copy of the model stays behind; one that is on a
    device already stays there.
    """
    graph, state = nnx.split(abstract)
    variables = _variables(state)
    filled = []
    for name, value in values:
        path, variable = variables[name]
        filled.append((path, variable.replace(jnp.asarray(value))))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _values(state: nnx.State) -> dict[str, Any]:
    return {name: variable.get_value() for name, (_, variable) in _variables(state).items()}


def _variables(state: nnx.State) -> dict[str, tuple[tuple[Any, ...], nnx.Variable]]:
    return {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}


def shape_faults(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for each array that is missing, unexpected, or of another shape than expected."""
    lines = [f"{name}: missing, expected {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: unexpected, found {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{n}: found {found[n]}, expected {expected[n]}" for n in both if found[n] != expected[n]]


def refuse(path: Path, lines: Sequence[str]) -> None:
    """Nothing, where there are no faults.

    Raises: CheckpointError that lists all of them.
    """
    if lines:
        count = f"{len(lines)} fault{'s'[: len(lines) > 1]} in the weights"
        cure = "check that config.json belongs to these weights, and fetch the checkpoint again"
        raise CheckpointError("\n".join([f"{path}: {count}", *lines, cure]))
