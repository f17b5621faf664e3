"""The decoder layers' matrices in a byte a weight: what a token reads, and most of what a model takes, next to halved.

Each output of a matrix has a scale of its own. What the bytes make of x is added up first and multiplied by the scale
then (`layers.Linear`), so no matrix is ever held at full width. Embedding, head, norms, biases and the towers stay as
they are. For looking at videos: a model kept so is not trained.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.adapter import ADAPTED
from vqathinker_jax.model.layers import Linear

Weights = Literal["full", "int8", "fp8"]


class _Kind(NamedTuple):
    dtype: Any
    largest: float


_KINDS = {"int8": _Kind(jnp.int8, 127.0), "fp8": _Kind(jnp.float8_e4m3fn, 448.0)}
_MATRIX = re.compile(rf"language\.layers\.(?:\d+\.)?({'|'.join(ADAPTED)})\.kernel")


def make_room(layers: Any, weights: Weights) -> None:
    """Put a scale of 1 beside each matrix of a language model's layers, stacked or listed; none where all is full."""
    if weights == "full":
        return
    for layer in layers if isinstance(layers, nnx.List) else [layers]:
        for name in ADAPTED:
            linear: Linear = getattr(layer, name)
            shape, axes, ins = linear.kernel[...].shape, linear.kernel.axes, linear.contracted
            stacked = len(shape) - len(axes)
            linear.kernel.set_value(linear.kernel[...].astype(_KINDS[weights].dtype))
            ones = jnp.ones((*shape[:stacked], *shape[stacked + ins :]), jnp.float32)
            linear.scale = nnx.Param(ones, axes=axes[ins:])


def quantized(values: Iterable[tuple[str, Any]], weights: Weights) -> Iterator[tuple[str, Any]]:
    """A model's arrays with their paths, matrices become bytes and followed by their scales, each on its device."""
    for path, value in values:
        matrix = None if weights == "full" else _MATRIX.fullmatch(path)
        if not matrix:
            yield path, value
            continue
        ins = 2 if matrix[1] == "out" else 1
        stacked = not any(part.isdigit() for part in path.split("."))
        kernel, scale = _quantize(value, ins=ins, stacked=stacked, weights=weights)
        # Else the next matrix would come beside this one.
        del value
        yield path, kernel
        yield path.removesuffix("kernel") + "scale", scale


@partial(jax.jit, static_argnames=("ins", "stacked", "weights"))
def _quantize(kernel: jax.Array, *, ins: int, stacked: bool, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """Bytes [ins, outs] and float32 scales [outs] of a matrix, or of a stack of them."""
    kind = _KINDS[weights]

    def one(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = kernel.astype(jnp.float32)
        most = jnp.abs(kernel).max(range(ins))
        scale = most / kind.largest
        scale = jnp.where(scale > 0, scale, 1.0)  # of what is next to nothing it is 0, as subnormals are flushed
        steps = kernel / scale
        return (jnp.round(steps) if kind.dtype == jnp.int8 else steps).astype(kind.dtype), scale

    # Layer by layer, for the sake of what float32 takes.
    return jax.lax.map(one, kernel) if stacked else one(kernel)
