"""Attention: softmax(q k / sqrt(H)) v over blocks of queries, so that no [T, S] array of a whole sequence exists."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

MASKED = -1e30
"""The score of an invisible key: finite, so that a row without any visible key (padding) stays free of NaN."""

_BLOCK = 512


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask_BS: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query attention of T queries over S keys; N is a multiple of K; returns [B, T, N, H].

    `causal`: the queries are the last T of the S positions and see keys up to their own, with `window` only the last so
    many of them. `key_mask_BS`: False where a key is padding. Scores and softmax are float32 whatever the inputs.
    Blocks of queries are unrolled, so a causal block multiplies only the keys that it can see.
    """
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    query_BKTRH = (query_BTNH * (1 / math.sqrt(H))).reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    key_BKSH, value_BKSH = key_BSKH.transpose(0, 2, 1, 3), value_BSKH.transpose(0, 2, 1, 3)
    mask_BS = jnp.ones((B, S), bool) if key_mask_BS is None else key_mask_BS

    def one_head(query_TRH: jax.Array, key_SH: jax.Array, value_SH: jax.Array, mask_S: jax.Array) -> jax.Array:
        blocks = []
        for start in range(0, T, _BLOCK):
            stop = min(start + _BLOCK, T)
            first = max(0, start + S - T + 1 - window) if causal and window else 0
            last = stop + S - T if causal else S
            visible_TS = mask_S[None, first:last]
            if causal:
                back_TS = jnp.arange(start + S - T, stop + S - T)[:, None] - jnp.arange(first, last)[None, :]
                visible_TS = visible_TS & (back_TS >= 0) & (back_TS < (window or S))
            blocks.append(_block(query_TRH[start:stop], key_SH[first:last], value_SH[first:last], visible_TS))
        return jnp.concatenate(blocks)

    per_head = _over(one_head, (0, 0, 0, None))
    out_BKTRH = _over(per_head, (0, 0, 0, 0))(query_BKTRH, key_BKSH, value_BKSH, mask_BS)
    return out_BKTRH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _block(query_TRH: jax.Array, key_SH: jax.Array, value_SH: jax.Array, visible_TS: jax.Array) -> jax.Array:
    """One kv head, one block of queries: [T, R, H] over [S, H]. `visible_TS` may have T = 1."""
    T, R, H = query_TRH.shape
    scores_QS = jnp.matmul(query_TRH.reshape(T * R, H), key_SH.T, preferred_element_type=jnp.float32)
    scores_TRS = jnp.where(visible_TS[:, None, :], scores_QS.reshape(T, R, -1), MASKED)
    weights_TRS = jnp.exp(scores_TRS - scores_TRS.max(-1, keepdims=True))
    total_TR1 = weights_TRS.sum(-1, keepdims=True)
    weights_QS = weights_TRS.reshape(T * R, -1).astype(value_SH.dtype)
    out_TRH = jnp.matmul(weights_QS, value_SH, preferred_element_type=jnp.float32).reshape(T, R, H) / total_TR1
    return out_TRH.astype(query_TRH.dtype)


def _over(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """`function` mapped over a leading axis: all at once on an accelerator, one after the other on a CPU, where XLA's
    batched products do not reach its fast matrix kernel and one head's scores stay in cache."""
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes)

    def loop(*args: jax.Array) -> jax.Array:
        mapped = [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]
        shared = {i: arg for i, (arg, axis) in enumerate(zip(args, in_axes, strict=True)) if axis is None}

        def one(rows: list[jax.Array]) -> jax.Array:
            rest = iter(rows)
            return function(*(shared[i] if i in shared else next(rest) for i in range(len(args))))

        return jax.lax.map(one, mapped)

    return loop


def attend_two(
    query_BTNH: jax.Array,
    shared: tuple[jax.Array, jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """One decode step of T completions a row over the row's prompt, stored once, and each completion's own cache.

    shared: key_BSKH, value_BSKH, mask_BS; own: key_BTCKH, value_BTCKH, mask_BTC. One softmax over both, float32.
    Returns [B, T, N, H].
    """
    B, T, N, H = query_BTNH.shape
    key_BSKH, value_BSKH, mask_BS = shared
    key_BTCKH, value_BTCKH, mask_BTC = own
    K = key_BSKH.shape[2]
    query_BTKRH = (query_BTNH * (1 / math.sqrt(H))).reshape(B, T, K, N // K, H)
    f32 = {"preferred_element_type": jnp.float32}
    prompt_BKTRS = jnp.einsum("btkrh,bskh->bktrs", query_BTKRH, key_BSKH, **f32)
    mine_BKTRC = jnp.einsum("btkrh,btckh->bktrc", query_BTKRH, key_BTCKH, **f32)
    prompt_BKTRS = jnp.where(mask_BS[:, None, None, None, :], prompt_BKTRS, MASKED)
    mine_BKTRC = jnp.where(mask_BTC[:, None, :, None, :], mine_BKTRC, MASKED)
    peak = jnp.maximum(prompt_BKTRS.max(-1, keepdims=True), mine_BKTRC.max(-1, keepdims=True))
    prompt_BKTRS, mine_BKTRC = jnp.exp(prompt_BKTRS - peak), jnp.exp(mine_BKTRC - peak)
    total_BKTR = prompt_BKTRS.sum(-1) + mine_BKTRC.sum(-1)
    out_BTKRH = jnp.einsum("bktrs,bskh->btkrh", prompt_BKTRS.astype(value_BSKH.dtype), value_BSKH, **f32)
    out_BTKRH += jnp.einsum("bktrc,btckh->btkrh", mine_BKTRC.astype(value_BTCKH.dtype), value_BTCKH, **f32)
    out_BTKRH /= total_BKTR.transpose(0, 2, 1, 3)[..., None]
    return out_BTKRH.reshape(B, T, N, H).astype(query_BTNH.dtype)
