"""Dimensions go in; a model without its numbers comes out, to be held against shapes, or filled by path."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.adapter import LoraConfig, adapt
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.layers import unstack
from vqathinker_jax.model.quantized import Weights, make_room, quantized
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.sharding import MeshConfig, layout_of, make_mesh

M = TypeVar("M", bound=nnx.Module)


def abstract_model(config: ModelConfig, *, unrolled: bool = False) -> VLM:
    """The model without its numbers: every parameter is a float32 `jax.ShapeDtypeStruct`.

    unrolled: vision and language layers are listed, as decoding wants them, not stacked for a scan.
    """

    def build() -> VLM:
        model = VLM(config, rngs=cast("nnx.Rngs", _SameKey))
        if unrolled:
            model.vision.layers = unstack(model.vision.layers)
            model.language.layers = unstack(model.language.layers)
        return model

    return nnx.eval_shape(build)


def with_adapters(skeleton: VLM, lora: LoraConfig, seed: int = 0) -> VLM:
    """The model with fresh adapters, equally empty, in its decoder layers; as it is where their rank is 0."""
    if not lora.rank:
        return skeleton

    def adapted(model: VLM) -> VLM:
        adapt(model.language.layers, lora, seed)
        return model

    return nnx.eval_shape(adapted, skeleton)


def with_weights(skeleton: VLM, weights: Weights) -> VLM:
    """The model whose decoder layers' matrices are kept in this form."""

    def narrowed(model: VLM) -> VLM:
        make_room(model.language.layers, weights)
        return model

    return nnx.eval_shape(narrowed, skeleton)


class _SameKey:
    """Stands for nnx.Rngs where no number is drawn: their counters make tracing a model take 10 s instead of 1."""

    @staticmethod
    def params() -> jax.Array:
        return jax.random.key(0)


def arrays(model: nnx.Module) -> dict[str, jax.Array]:
    """A module's parameters by their dotted path, `language.layers.query.kernel`, frozen ones included."""
    return by_path(nnx.state(model))


def fill(abstract: VLM, values: Iterable[tuple[str, Any]], weights: Weights = "full") -> VLM:
    """The model whose parameters are `values`, as `fill_part` makes it, laid out for one device.

    weights: what its decoder layers' matrices become, one after the other.
    """
    model = fill_part(with_weights(abstract, weights), quantized(values, weights))
    model.lay_out(layout_of(make_mesh(MeshConfig(), 1)))
    return model


def fill_part(abstract: M, values: Iterable[tuple[str, Any]]) -> M:
    """The module whose parameters are `values`, by their dotted path.

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


def by_path(state: nnx.State) -> dict[str, Any]:
    """The values of a state by their dotted path."""
    return {name: variable.get_value() for name, (_, variable) in _variables(state).items()}


def _variables(state: nnx.State) -> dict[str, tuple[tuple[Any, ...], nnx.Variable]]:
    return {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}


def shape_faults(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for each array that is missing, unexpected, or of another shape than expected."""
    lines = [f"{name}: missing, expected {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: unexpected, found {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{n}: found {found[n]}, expected {expected[n]}" for n in both if found[n] != expected[n]]
