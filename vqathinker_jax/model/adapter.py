"""LoRA: a small product of two matrices beside each matrix of the language model's layers, which alone is trained.

The second matrix starts at zero, so a model with fresh adapters is the model without: its first weights are the
reference policy. Source: Hu et al., "LoRA"; the first matrix is drawn as PEFT draws it.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.layers import Linear, param
from vqathinker_jax.records import InputError

ADAPTED = ("query", "key", "value", "out", "gate", "up", "down")
"""The matrices of a decoder layer that get an adapter."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters beside the language model's matrices, which then move instead of these."""

    rank: int = 0
    """Columns of the adapters' inner side; 0 for none, when the model's own weights move."""
    alpha: float = 16.0
    """The adapters' output is scaled by alpha / rank."""

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise InputError(f"{self}: rank must not be negative (0 for no adapters), alpha positive")


class Adapter(nnx.Module):
    """x[..., ins] @ down[ins, rank] @ up[rank, outs] * alpha / rank, beside a `Linear`, stacked where that is."""

    def __init__(self, beside: Linear, config: LoraConfig, *, rngs: nnx.Rngs):
        axes, shape = beside.kernel.axes, beside.kernel[...].shape
        first = len(shape) - len(axes)
        middle = first + beside.contracted
        layers, ins, outs = shape[:first], shape[first:middle], shape[middle:]
        self.contracted = beside.contracted
        self.scale = config.alpha / config.rank
        bound = 1 / math.sqrt(math.prod(ins))

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        zeros = jax.nn.initializers.zeros
        self.down = param(nnx.LoRAParam, uniform, (*layers, *ins, config.rank), (*axes[: len(ins)], None), rngs)
        self.up = param(nnx.LoRAParam, zeros, (*layers, config.rank, *outs), (None, *axes[len(ins) :]), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Else XLA makes one product of this and the matrix beside it, for which a GPU copies that at every token.
        x = jax.lax.optimization_barrier(x)
        inner = jnp.tensordot(x, self.down[...].astype(x.dtype), self.contracted)
        return jnp.tensordot(inner, self.up[...].astype(x.dtype), 1) * self.scale


def adapt(layers: Any, config: LoraConfig, seed: int) -> None:
    """Put a fresh adapter beside each matrix of a language model's stacked layers."""
    rngs = nnx.Rngs(seed)
    for name in ADAPTED:
        linear = getattr(layers, name)
        linear.adapter = Adapter(linear, config, rngs=rngs)


def merge(layers: Any) -> None:
    """Add what the adapters learned to the matrices they stand beside, and take them away."""
    for name in ADAPTED:
        linear = getattr(layers, name)
        adapter, linear.adapter = linear.adapter, None
        if adapter is None:
            continue
        kernel = linear.kernel[...]
        product = jax.vmap(lambda down, up: jnp.tensordot(down, up, 1))(adapter.down[...], adapter.up[...])
        learned = product * adapter.scale
        linear.kernel.set_value((kernel.astype(jnp.float32) + learned).astype(kernel.dtype))
