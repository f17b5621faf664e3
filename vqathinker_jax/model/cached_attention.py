"""Attention of newly decoded tokens over what is cached: a prompt's keys and values, stored once for its completions,
and each completion's own.

Both are looked at apart and joined by what their softmaxes add up to. A prompt's cache is nearly all that is read, so
on accelerators a kernel reads it block by block and lets no scores out of the chip; elsewhere XLA does.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from vqathinker_jax.model.attention import MASKED
from vqathinker_jax.sharding import ONE_DEVICE, Attention, Layout

_INTERPRETED = False
"""Whether the kernel runs without an accelerator, for tests."""

_TILE = 128
"""Keys that the kernel takes at least; a prompt's cache is a multiple of it."""

_PROGRAMS = 256
"""Programs of a GPU's kernel, about, which keep all of it busy."""


class Bytes(NamedTuple):
    """Keys or values in a byte a number: of channel h, numbers [B, K, S, H] (int8) times scale [B, K, 1, H] (float32).

    A channel has a scale of its own because keys have channels far larger than others (Qwen2.5's biases), and because
    it can be multiplied with a query's channel, or with a sum's, instead of with every token's.
    """

    numbers: jax.Array
    scale: jax.Array


Kept = jax.Array | Bytes
"""Keys or values of prompts as their cache keeps them."""


class Part(NamedTuple):
    """What queries saw of some of their keys: values [..., H] weighted by exp(score - peak [..., 1]), and the weights'
    total [..., 1]; all float32."""

    seen: jax.Array
    peak: jax.Array
    total: jax.Array


def in_bytes(x_BKSH: jax.Array, mask_BS: jax.Array) -> Bytes:
    """Keys or values of the tokens in the mask, rounded to 127 steps of each channel's largest."""
    x_BKSH = jnp.where(mask_BS[:, None, :, None], x_BKSH, 0).astype(jnp.float32)
    most_BK1H = jnp.abs(x_BKSH).max(2, keepdims=True)
    scale_BK1H = most_BK1H / 127
    scale_BK1H = jnp.where(scale_BK1H > 0, scale_BK1H, 1.0)
    return Bytes(jnp.round(x_BKSH / scale_BK1H).astype(jnp.int8), scale_BK1H)


def attend_two(
    query_BTNH: jax.Array,
    shared: tuple[Kept, Kept, jax.Array],
    own: tuple[jax.Array, jax.Array, jax.Array],
    layout: Layout = ONE_DEVICE,
) -> jax.Array:
    """One decode step of T completions a row over the row's prompt, stored once, and each completion's own cache.

    shared: key_BKSH, value_BKSH, mask_BS; own: key_BKTCH, value_BKTCH, mask_BTC. One softmax over both, float32.
    Returns [B, T, N, H].
    """
    B, T, N, H = query_BTNH.shape
    dtype, mask_BS = query_BTNH.dtype, shared[2]
    (key_BKSH, key_scale), (value_BKSH, value_scale) = (_opened(kept) for kept in shared[:2])
    key_BKTCH, value_BKTCH, mask_BTC = own
    K, S = key_BKSH.shape[1:3]
    R = N // K
    query_BKTRH = query_BTNH.reshape(B, T, K, R, H).transpose(0, 2, 1, 3, 4)
    # All completions ask the same keys of a prompt.
    asking_BKMH = (query_BKTRH.reshape(B, K, T * R, H) * key_scale).astype(dtype)
    look = partial(_in_kernel, kind=layout.attention) if _kernel_takes(asking_BKMH, S, layout) else _in_xla
    part = _on_each_device(look, key_BKSH.shape, layout)(asking_BKMH, key_BKSH, value_BKSH, mask_BS)
    prompt = Part(*(x.reshape(B, K, T, R, -1) for x in part._replace(seen=part.seen * value_scale)))
    mine = _in_xla(query_BKTRH, key_BKTCH, value_BKTCH, mask_BTC)
    out_BTKRH = _joined(prompt, mine).transpose(0, 2, 1, 3, 4)
    return out_BTKRH.reshape(B, T, N, H).astype(dtype)


def _opened(kept: Kept) -> tuple[jax.Array, jax.Array | int]:
    """Numbers [B, K, S, H], and what a channel of them counts times, [B, K, 1, H] or 1."""
    return kept if isinstance(kept, Bytes) else (kept, 1)


def _joined(one: Part, other: Part) -> jax.Array:
    """What queries see of all keys, whose parts these are."""
    peak = jnp.maximum(one.peak, other.peak)
    share, others = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    return (one.seen * share + other.seen * others) / (one.total * share + other.total * others)


def _in_xla(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> Part:
    """Queries [B, K, ..., M, H] over keys [B, K, ..., S, H], of which the mask [B, ..., S] shows some."""
    f32 = {"preferred_element_type": jnp.float32}
    dtype = query.dtype
    # Keys stand first, so that XLA on a CPU transposes the few queries and not, at every step, the whole cache.
    scores = jnp.swapaxes(jnp.einsum("bk...sh,bk...mh->bk...sm", key.astype(dtype), query, **f32), -1, -2)
    scores = jnp.where(mask[:, None, ..., None, :], scores * (1 / math.sqrt(query.shape[-1])), MASKED)
    peak = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    seen = jnp.einsum("bk...ms,bk...sh->bk...mh", weights.astype(dtype), value.astype(dtype), **f32)
    return Part(seen, peak, weights.sum(-1, keepdims=True))


def _kernel_takes(query_BKMH: jax.Array, S: int, layout: Layout) -> bool:
    """Whether the kernel is for such arrays: whole tiles of keys, and queries that fit beside them."""
    M, H = query_BKMH.shape[2:]
    fits = query_BKMH.dtype == jnp.bfloat16 and H in (64, 128) and M <= 128 and S % _TILE == 0
    return fits and layout.attention != "blocks"


def _on_each_device(look: Any, shape: tuple[int, ...], layout: Layout) -> Any:
    """`look` at the rows and heads that each device holds, which see nothing of each other."""
    held = layout.mesh and layout.cut(shape, "rows", "kv_heads", None, None)
    if held is None:
        return look
    specs = held, held, held, PartitionSpec(held[0])
    return jax.shard_map(look, mesh=layout.mesh, in_specs=specs, out_specs=held, check_vma=False)


def _in_kernel(
    query_BKMH: jax.Array, key_BKSH: jax.Array, value_BKSH: jax.Array, mask_BS: jax.Array, *, kind: Attention
) -> Part:
    """Queries over prompts' keys, by a kernel of which each program takes some of the keys of one head."""
    (B, K, M, H), S = query_BKMH.shape, key_BKSH.shape[2]
    rows = max(16, pl.next_power_of_2(M))
    padded_BKMH = jnp.pad(query_BKMH, ((0, 0), (0, 0), (0, rows - M), (0, 0)))
    bias_B1S = jnp.where(mask_BS, 0.0, MASKED)[:, None]
    keys, chunk = _program(S, B * K, kind)
    parts = S // keys

    def block(*shape: int, at: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None,) * (len(at(0, 0, 0)) - len(shape)) + shape, at)

    cached = block(keys, H, at=lambda b, k, x: (b, k, x, 0))
    made = [block(rows, width, at=lambda b, k, x: (b, k, x, 0, 0)) for width in (H, 1, 1)]
    part = pl.pallas_call(
        partial(_look, chunk=chunk),
        grid=(B, K, parts),
        in_specs=[
            block(rows, H, at=lambda b, k, x: (b, k, 0, 0)),
            cached,
            cached,
            block(1, keys, at=lambda b, k, x: (b, 0, x)),
        ],
        out_specs=made,
        out_shape=[jax.ShapeDtypeStruct((B, K, parts, rows, width), jnp.float32) for width in (H, 1, 1)],
        compiler_params=_compiling(kind),
        interpret=_INTERPRETED,
        name="cached_attention",
    )(padded_BKMH, key_BKSH, value_BKSH, bias_B1S)
    seen_BKXMH, peak_BKXM1, total_BKXM1 = (x[:, :, :, :M] for x in part)
    peak_BKM1 = peak_BKXM1.max(2)
    share_BKXM1 = jnp.exp(peak_BKXM1 - peak_BKM1[:, :, None])
    return Part((seen_BKXMH * share_BKXM1).sum(2), peak_BKM1, (total_BKXM1 * share_BKXM1).sum(2))


def _look(query_ref: Any, key_ref: Any, value_ref: Any, bias_ref: Any, *part_refs: Any, chunk: int) -> None:
    """One program: queries [M, H] over its keys and values [S, H], a chunk of them at a time."""
    query_MH = query_ref[...]
    M, H = query_MH.shape
    over_channels, over_keys = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))

    def add(number: jax.Array | int, before: Part) -> Part:
        at = pl.ds(number * chunk, chunk)
        key_SH, value_SH = (ref[at, :].astype(query_MH.dtype) for ref in (key_ref, value_ref))
        f32 = {"preferred_element_type": jnp.float32}
        scores_MS = jax.lax.dot_general(query_MH, key_SH, over_channels, **f32) * (1 / math.sqrt(H)) + bias_ref[:, at]
        peak_M1 = jnp.maximum(before.peak, scores_MS.max(1, keepdims=True))
        share_M1, weights_MS = jnp.exp(before.peak - peak_M1), jnp.exp(scores_MS - peak_M1)
        seen_MH = jax.lax.dot_general(weights_MS.astype(value_SH.dtype), value_SH, over_keys, **f32)
        total_M1 = before.total * share_M1 + weights_MS.sum(1, keepdims=True)
        return Part(before.seen * share_M1 + seen_MH, peak_M1, total_M1)

    nothing = Part(
        jnp.zeros((M, H), jnp.float32), jnp.full((M, 1), MASKED, jnp.float32), jnp.zeros((M, 1), jnp.float32)
    )
    part = jax.lax.fori_loop(0, key_ref.shape[0] // chunk, add, nothing)
    for ref, x in zip(part_refs, part, strict=True):
        ref[...] = x


def _program(S: int, heads: int, kind: Attention) -> tuple[int, int]:
    """Keys of a program, and how many it takes at a time.

    A TPU takes one program after the other, and fetches the next one's keys meanwhile: few large ones, each at once. A
    GPU runs hundreds side by side, each with registers for few keys.
    """
    fitting = [keys for keys in range(_TILE, S + 1, _TILE) if S % keys == 0]
    if kind == "splash":
        keys = max(keys for keys in fitting if keys <= 4096)
        return keys, keys
    many = [keys for keys in fitting if keys <= 1024 and heads * (S // keys) >= _PROGRAMS]
    return max(many, default=_TILE), _TILE // 2


def _compiling(kind: Attention) -> Any:
    if kind == "splash":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(dimension_semantics=("parallel",) * 3)
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=3)
