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
"""Keys that a program of the kernel takes at least; a prompt's cache is a multiple of it."""

_SHORTEST = {"cudnn": _TILE, "splash": 1024}
"""Keys of a head from which on the kernel is worth its programs, which a TPU begins one after the other."""

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
    K = key_BKSH.shape[1]
    query_BKTRH = query_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    # All completions ask the same keys of a prompt.
    asking_BKMH = (query_BKTRH.reshape(B, K, -1, H) * key_scale).astype(dtype)
    part = _seen(asking_BKMH, key_BKSH, value_BKSH, mask_BS, layout)
    prompt = Part(*(x.reshape(*query_BKTRH.shape[:-1], -1) for x in part._replace(seen=part.seen * value_scale)))
    out_BTKRH = _joined(prompt, _seen(query_BKTRH, *own, layout)).transpose(0, 2, 1, 3, 4)
    return out_BTKRH.reshape(B, T, N, H).astype(dtype)


def _opened(kept: Kept) -> tuple[jax.Array, jax.Array | int]:
    """Numbers [B, K, S, H], and what a channel of them counts times, [B, K, 1, H] or 1."""
    return kept if isinstance(kept, Bytes) else (kept, 1)


def _joined(one: Part, other: Part) -> jax.Array:
    """What queries see of all keys, whose parts these are."""
    peak = jnp.maximum(one.peak, other.peak)
    share, others = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    return (one.seen * share + other.seen * others) / (one.total * share + other.total * others)


def _seen(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, layout: Layout) -> Part:
    """Queries [B, K, ..., M, H] over keys and values [B, K, ..., S, H], of which the mask [B, ..., S] shows some."""
    look = partial(_in_kernel, kind=layout.attention) if _kernel_takes(query, key, layout) else _in_xla
    held = layout.mesh and layout.cut(key.shape, "rows", "kv_heads", *[None] * (key.ndim - 2))
    if held is not None:
        # Rows and heads that devices hold see nothing of each other.
        specs = held, held, held, PartitionSpec(held[0])
        look = jax.shard_map(look, mesh=layout.mesh, in_specs=specs, out_specs=held, check_vma=False)
    return look(query, key, value, mask)


def _in_xla(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> Part:
    """`_seen` by XLA."""
    f32 = {"preferred_element_type": jnp.float32}
    dtype = query.dtype
    # Keys stand first, so that XLA on a CPU transposes the few queries and not, at every step, the whole cache.
    scores = jnp.swapaxes(jnp.einsum("bk...sh,bk...mh->bk...sm", key.astype(dtype), query, **f32), -1, -2)
    scores = jnp.where(mask[:, None, ..., None, :], scores * (1 / math.sqrt(query.shape[-1])), MASKED)
    peak = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    seen = jnp.einsum("bk...ms,bk...sh->bk...mh", weights.astype(dtype), value.astype(dtype), **f32)
    return Part(seen, peak, weights.sum(-1, keepdims=True))


def _kernel_takes(query: jax.Array, key: jax.Array, layout: Layout) -> bool:
    """Whether the kernel is for such arrays: whole tiles of keys, and queries that fit beside them."""
    (M, H), S = query.shape[-2:], key.shape[-2]
    if layout.attention == "blocks":
        return False
    whole = S % _TILE == 0 and _SHORTEST[layout.attention] <= S
    return whole and query.dtype == jnp.bfloat16 and H in (64, 128) and M <= 128


def _in_kernel(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *, kind: Attention) -> Part:
    """`_seen` by a kernel, of which each program takes some of the keys of one head of a row."""
    query_BGMH, key_BGSH, value_BGSH = (x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (query, key, value))
    (B, G, M, H), S = query_BGMH.shape, key_BGSH.shape[2]
    bias_BT1S = jnp.where(mask, 0.0, MASKED).reshape(B, -1, 1, S)
    T = bias_BT1S.shape[1]
    rows = max(16, 1 << (M - 1).bit_length())
    keys, chunk = _program(S, B * G, kind)
    parts = S // keys
    cached = pl.BlockSpec((None, None, keys, H), lambda b, g, x: (b, g, x, 0))
    shapes = [(B, G, parts, rows, width) for width in (H, 1, 1)]
    part = pl.pallas_call(
        partial(_look, chunk=chunk),
        grid=(B, G, parts),
        in_specs=[
            pl.BlockSpec((None, None, rows, H), lambda b, g, x: (b, g, 0, 0)),
            cached,
            cached,
            pl.BlockSpec((None, None, 1, keys), lambda b, g, x: (b, g % T, 0, x)),
        ],
        out_specs=[pl.BlockSpec((None, None, None, *shape[3:]), lambda b, g, x: (b, g, x, 0, 0)) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        compiler_params=_compiling(kind),
        interpret=_INTERPRETED,
        name="cached_attention",
    )(jnp.pad(query_BGMH, ((0, 0), (0, 0), (0, rows - M), (0, 0))), key_BGSH, value_BGSH, bias_BT1S)
    seen_BGXMH, peak_BGXM1, total_BGXM1 = (x[:, :, :, :M] for x in part)
    peak_BGM1 = peak_BGXM1.max(2)
    share_BGXM1 = jnp.exp(peak_BGXM1 - peak_BGM1[:, :, None])
    whole = Part((seen_BGXMH * share_BGXM1).sum(2), peak_BGM1, (total_BGXM1 * share_BGXM1).sum(2))
    return Part(*(x.reshape(*query.shape[:-1], -1) for x in whole))


def _look(query_ref: Any, key_ref: Any, value_ref: Any, bias_ref: Any, *part_refs: Any, chunk: int) -> None:
    """One program: queries [M, H] over its keys and values [S, H], a chunk of them at a time."""
    query_MH = query_ref[...]
    M, H = query_MH.shape
    over_channels, over_keys = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))
    f32 = {"preferred_element_type": jnp.float32}

    def add(number: jax.Array | int, before: Part) -> Part:
        at = pl.ds(number * chunk, chunk)
        key_SH, value_SH = (ref[at, :].astype(query_MH.dtype) for ref in (key_ref, value_ref))
        scores_MS = jax.lax.dot_general(query_MH, key_SH, over_channels, **f32) * (1 / math.sqrt(H)) + bias_ref[:, at]
        peak_M1 = jnp.maximum(before.peak, scores_MS.max(1, keepdims=True))
        share_M1, weights_MS = jnp.exp(before.peak - peak_M1), jnp.exp(scores_MS - peak_M1)
        seen_MH = jax.lax.dot_general(weights_MS.astype(value_SH.dtype), value_SH, over_keys, **f32)
        total_M1 = before.total * share_M1 + weights_MS.sum(1, keepdims=True)
        return Part(before.seen * share_M1 + seen_MH, peak_M1, total_M1)

    nothing = Part(*(jnp.full((M, width), start, jnp.float32) for width, start in ((H, 0.0), (1, MASKED), (1, 0.0))))
    first, stop = _visible(bias_ref, chunk) if chunk < key_ref.shape[0] else (0, 1)
    part = jax.lax.fori_loop(first, stop, add, nothing)
    for ref, x in zip(part_refs, part, strict=True):
        ref[...] = x


def _visible(bias_ref: Any, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The first chunk with a key to see, and the one after the last: padding at one end, and places not yet written at
    the other, are not even read."""
    place_1S = jax.lax.broadcasted_iota(jnp.int32, bias_ref.shape, 1)
    visible_1S = bias_ref[...] > MASKED
    first = jnp.min(jnp.where(visible_1S, place_1S, place_1S.size))
    last = jnp.max(jnp.where(visible_1S, place_1S + chunk, 0))
    return first // chunk, last // chunk


def _program(S: int, heads: int, kind: Attention) -> tuple[int, int]:
    """Keys of a program, and how many it takes at a time.

    A TPU takes one program after the other, and fetches the next one's keys meanwhile: few large ones, each at once. A
    GPU runs hundreds side by side, each with registers for few keys.
    """
    if kind == "splash":
        keys = max(keys for keys in range(_TILE, min(S, 4096) + 1, _TILE) if S % keys == 0)
        return keys, keys
    # Triton's arrays have powers of two for sides.
    many = [keys for keys in (256, 512, 1024) if S % keys == 0 and heads * (S // keys) >= _PROGRAMS]
    return max(many, default=_TILE), _TILE // 2


def _compiling(kind: Attention) -> Any:
    if kind == "splash":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(dimension_semantics=("parallel",) * 3)
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=3)
