"""The few layers that every tower is built from.

They differ from Flax's own in three ways that matter here: the activation's dtype decides the dtype of the arithmetic
(so float32 master weights run in bfloat16 without a second copy of the model), norms keep their statistics in float32
as the reference does, and every parameter carries its logical axes as plain metadata, `axes`, which no Flax release
ties to a mesh context. `sharding.py` turns those axes into placements.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.sharding import Remat

Axes = tuple[str | None, ...]
M = TypeVar("M", bound=nnx.Module)


class Frozen(nnx.Variable):
    """A weight that no training stage ever changes (SlowFast's, batch statistics included)."""


def param(kind: type[nnx.Variable], init: Callable, shape: Sequence[int], axes: Axes, rngs: nnx.Rngs) -> Any:
    """A variable of the given kind, drawn by `init`, that knows its logical axes."""
    return kind(init(rngs.params(), tuple(shape), jnp.float32), axes=axes)


_normal = jax.nn.initializers.normal(0.02)
_zeros = jax.nn.initializers.zeros
_ones = jax.nn.initializers.ones


class Linear(nnx.Module):
    """x[..., ins] @ kernel[ins, outs] + bias[outs], contracting as many trailing axes of x as `ins` has.

    `adapter`, where there is one (`adapter.py`), adds what it makes of x. `scale` [outs], where there is one, is what a
    kernel kept in bytes counts times (`quantized.py`).
    """

    def __init__(self, ins: Sequence[int], outs: Sequence[int], axes: Axes, *, bias: bool, rngs: nnx.Rngs):
        self.contracted = len(ins)
        self.kernel = param(nnx.Param, _normal, (*ins, *outs), axes, rngs)
        self.bias = param(nnx.Param, _zeros, outs, axes[len(ins) :], rngs) if bias else None
        self.adapter: Any = nnx.data(None)
        self.scale: Any = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self._product(x)
        if self.adapter is not None:
            y += self.adapter(x)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _product(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if self.scale is None:
            return jnp.tensordot(x, kernel, self.contracted)
        y = jnp.tensordot(x, kernel, self.contracted, preferred_element_type=jnp.float32)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Zero mean and unit variance over the last axis, then scale and bias; statistics in float32."""

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = param(nnx.Param, _ones, (width,), ("norm",), rngs)
        self.bias = param(nnx.Param, _zeros, (width,), ("norm",), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Unit mean square over the last axis, then scale; statistics in float32, the scale applied after casting back."""

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = param(nnx.Param, _ones, (width,), ("norm",), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.epsilon)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Bridge(nnx.Module):
    """A tower's features [..., Z] to the width of the language model [..., D]: a norm and an MLP of two layers."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(features, 1e-5, rngs=rngs)
        self.up = Linear((features,), (width,), ("vision", "mlp"), bias=True, rngs=rngs)
        self.down = Linear((width,), (width,), ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(self.norm(features))))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU of the vision tower and the projectors; the tanh approximation is visibly off in float32.

    Written with erf, as PyTorch computes it: `jax.nn.gelu` goes through erfc, which takes a CPU twice as long.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


def each(function: Callable[[Any], Any], rows: Any, *, one_by_one: bool) -> Any:
    """`function` of every row along the leading axis of `rows`, all at once or, as a CPU does it faster, one by one:
    there one row's arrays stay in cache, and XLA's batched products do not reach its fast matrix kernels."""
    return jax.lax.map(function, rows) if one_by_one else jax.vmap(function)(rows)


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """`depth` independent layers as one module whose variables have a leading layer axis R."""
    graph = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
    states = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(jax.random.split(rngs.params(), depth))
    return nnx.merge(graph, states)


def unstack(layers: M) -> nnx.List[M]:
    """The same layers one by one.

    A loop over them compiles slower than a scan, and runs faster where weights are read once a token. XLA for CPUs and
    GPUs first copies each layer's out of a stack (1.9 times the time of a token on a CPU, 2.8 times the bytes on a
    GPU), and any compiler does so with what a kernel reads.
    """
    graph, state = nnx.split(layers)
    depth = jax.tree.leaves(state)[0].shape[0]
    return nnx.List([nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(depth)])


def fold(
    layers: Any, carry: Any, step: Callable[[Any, Any], tuple[Any, Any]], *, remat: Remat = "none"
) -> tuple[Any, Any]:
    """Run `carry, y = step(layer, carry)` through all layers, stacked (a scan) or listed (a loop).

    The returned ys have one entry a layer: a leading axis R for stacked layers, a tuple for listed ones. `remat`: what
    the backward pass computes again (`sharding.Layout`).
    """
    if isinstance(layers, nnx.List):
        ys = []
        for layer in layers:
            graph, state = nnx.split(layer)
            carry, y = _applied(graph, step, remat)(carry, state)
            ys.append(y)
        return carry, tuple(ys)
    graph, state = nnx.split(layers)
    return jax.lax.scan(_applied(graph, step, remat), carry, state)


def near(state: nnx.State) -> nnx.State:
    """A layer's weights in the device's memory: those that wait in the host's are brought, and no others touched."""
    device = jax.memory.Space.Device
    return jax.tree.map(lambda x: x if jax.typeof(x).memory_space == device else jax.device_put(x, device), state)


def _applied(graph: Any, step: Callable[[Any, Any], tuple[Any, Any]], remat: Remat) -> Callable:
    """`step` as a function of arrays alone: the carry, and a layer's state."""

    def apply(carry: Any, state: nnx.State) -> tuple[Any, Any]:
        return step(nnx.merge(graph, near(state)), carry)

    if remat == "none":
        return apply
    # Attention's products have rows and heads as batch dimensions, those with weights have none.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "products" else None
    return jax.checkpoint(apply, policy=kept)
