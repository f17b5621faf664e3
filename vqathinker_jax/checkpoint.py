"""The native checkpoint: a folder with the weights as orbax writes them, and beside them all that came with them.

    weights/          one array a parameter, under its path in the model; layers stacked
    config.json       the source's own, byte for byte; so are the tokenizer's files
    vqathinker.json   version of this format, and what config.json does not tell; written last, so that a folder
                      without it is no checkpoint

A checkpoint is written beside its place and moved there when it is whole.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.layers import unstack
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import CheckpointError

FORMAT = 1
_MANIFEST = "vqathinker.json"
_WEIGHTS = "weights"
_BESIDE = (
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
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def fill(abstract: VLM, values: Iterable[tuple[str, Any]]) -> VLM:
    """The model whose parameters are `values`, each put on the default device as it comes unless it is a jax.Array.

    Raises: ValueError where values are missing or left over.
    """
    graph, state = nnx.split(abstract)
    variables = {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    filled = []
    for name, value in values:
        path, variable = variables.pop(name)
        filled.append((path, variable.replace(jnp.asarray(value))))
    if variables:
        raise ValueError(f"model parameters without a value: {', '.join(variables)}")
    return nnx.merge(graph, nnx.from_flat_state(filled))
