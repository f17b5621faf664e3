"""What a prediction depends on besides its video: a model and its tokenizer go in, a short mark of them comes out.

The mark is of the numbers the model computes with, whatever files they came from, and is made where they are.
"""

import hashlib
import json
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.config import ModelConfig

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

_WIDTHS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(state: nnx.State, config: ModelConfig, tokenizer: "Qwen2Tokenizer") -> str:
    """A mark, 16 hexadecimal digits, of weights (values, names, dtypes), dimensions and tokens."""
    values = {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}
    sums = jax.device_get({name: _sum(value) for name, value in values.items()})
    marks = [(name, str(values[name].dtype), int(total)) for name, total in sorted(sums.items())]
    text = json.dumps([marks, repr(config), sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _sum(x: jax.Array) -> jax.Array:
    """A sum modulo 2^32 of each element's bits mixed with its place: the same in whatever order it is added up."""
    bits = jax.lax.bitcast_convert_type(x, _WIDTHS[x.dtype.itemsize]).astype(jnp.uint32)
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        for axis, stride in enumerate(strides)
    ]
    mixed = (bits ^ (sum(places, jnp.uint32(1)) * jnp.uint32(0x27D4EB2F))) * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
