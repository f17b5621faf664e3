"""Attention: softmax(q k / sqrt(H)) v over blocks of queries, so no [B, N, T, S] array of a long sequence exists."""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vqathinker_jax.model.layers import each
from vqathinker_jax.sharding import ONE_DEVICE, Layout

MASKED = -1e30
"""The score of an invisible key: finite, so that a row without any visible key (padding) stays free of NaN."""

_BLOCK = 448
"""Queries a block, about: larger products are faster, but a shorter causal block multiplies fewer unseen keys."""


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    layout: Layout = ONE_DEVICE,
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
    query_BKRTH = query_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key_BKSH, value_BKSH = key_BSKH.transpose(0, 2, 1, 3), value_BSKH.transpose(0, 2, 1, 3)
    each_row = partial(each, one_by_one=layout.one_by_one)
    block = jax.checkpoint(_block) if layout.remat == "blocks" else _block
    blocks = max(1, round(T / _BLOCK))
    edges = [T * block // blocks for block in range(blocks + 1)]

    def one_head(query_TH: jax.Array, key_SH: jax.Array, value_SH: jax.Array, mask_S: jax.Array | None) -> jax.Array:
        seen_TH = []
        for start, stop in itertools.pairwise(edges):
            first = max(0, start + S - T + 1 - window) if causal and window else 0
            last = stop + S - T if causal else S
            visible_TS = None if mask_S is None else mask_S[None, first:last]
            if causal:
                back_TS = jnp.arange(start + S - T, stop + S - T)[:, None] - jnp.arange(first, last)[None, :]
                near_TS = (back_TS >= 0) & (back_TS < (window or S))
                visible_TS = near_TS if visible_TS is None else near_TS & visible_TS
            seen_TH.append(block(query_TH[start:stop], key_SH[first:last], value_SH[first:last], visible_TS))
        return jnp.concatenate(seen_TH)

    def one_row(row: Any) -> jax.Array:
        query_KRTH, key_KSH, value_KSH, mask_S = row

        def one_group(group: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            query_RTH, key_SH, value_SH = group
            return each_row(lambda query_TH: one_head(query_TH, key_SH, value_SH, mask_S), query_RTH)

        return each_row(one_group, (query_KRTH, key_KSH, value_KSH))

    out_BKRTH = each_row(one_row, (query_BKRTH, key_BKSH, value_BKSH, key_mask_BS))
    return out_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _block(query_TH: jax.Array, key_SH: jax.Array, value_SH: jax.Array, visible_TS: jax.Array | None) -> jax.Array:
    """One head, one block of queries: [T, H] over [S, H]. `visible_TS` may have T = 1."""
    scores_TS = jnp.matmul(query_TH, key_SH.T, preferred_element_type=jnp.float32) * (1 / math.sqrt(query_TH.shape[-1]))
    if visible_TS is not None:
        scores_TS = jnp.where(visible_TS, scores_TS, MASKED)
    weights_TS = jnp.exp(scores_TS - scores_TS.max(-1, keepdims=True))
    out_TH = jnp.matmul(weights_TS.astype(value_SH.dtype), value_SH, preferred_element_type=jnp.float32)
    return (out_TH / weights_TS.sum(-1, keepdims=True)).astype(query_TH.dtype)


def attend_two(
    query_BTNH: jax.Array,
    shared: tuple[jax.Array, jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """One decode step of T completions a row over the row's prompt, stored once, and each completion's own cache.

    shared: key_BKSH, value_BKSH, mask_BS; own: key_BKTCH, value_BKTCH, mask_BTC. One softmax over both, float32.
    Returns [B, T, N, H].
    """
    B, T, N, H = query_BTNH.shape
    key_BKSH, value_BKSH, mask_BS = shared
    key_BKTCH, value_BKTCH, mask_BTC = own
    K = key_BKSH.shape[1]
    query_BKTRH = query_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    f32 = {"preferred_element_type": jnp.float32}
    # Keys stand first, so that XLA on a CPU transposes the few queries and not, at every step, the whole cache.
    prompt_BKTRS = jnp.moveaxis(jnp.einsum("bksh,bktrh->bkstr", key_BKSH, query_BKTRH, **f32), 2, -1)
    mine_BKTRC = jnp.moveaxis(jnp.einsum("bktch,bktrh->bktcr", key_BKTCH, query_BKTRH, **f32), 3, -1)
    prompt_BKTRS = jnp.where(mask_BS[:, None, None, None, :], prompt_BKTRS * (1 / math.sqrt(H)), MASKED)
    mine_BKTRC = jnp.where(mask_BTC[:, None, :, None, :], mine_BKTRC * (1 / math.sqrt(H)), MASKED)
    peak_BKTR1 = jnp.maximum(prompt_BKTRS.max(-1, keepdims=True), mine_BKTRC.max(-1, keepdims=True))
    prompt_BKTRS, mine_BKTRC = jnp.exp(prompt_BKTRS - peak_BKTR1), jnp.exp(mine_BKTRC - peak_BKTR1)
    total_BKTR1 = prompt_BKTRS.sum(-1, keepdims=True) + mine_BKTRC.sum(-1, keepdims=True)
    out_BKTRH = jnp.einsum("bktrs,bksh->bktrh", prompt_BKTRS.astype(value_BKSH.dtype), value_BKSH, **f32)
    out_BKTRH += jnp.einsum("bktrc,bktch->bktrh", mine_BKTRC.astype(value_BKTCH.dtype), value_BKTCH, **f32)
    out_BTKRH = (out_BKTRH / total_BKTR1).transpose(0, 2, 1, 3, 4)
    return out_BTKRH.reshape(B, T, N, H).astype(query_BTNH.dtype)
