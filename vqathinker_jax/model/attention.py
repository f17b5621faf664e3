"""Attention: softmax(q k / sqrt(H)) v of long sequences without an array [B, N, T, S].

`attend` chooses: a kernel that keeps scores on the chip, where the layout names one and it takes the arrays, and blocks
of queries in XLA everywhere else.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vqathinker_jax.model.layers import each
from vqathinker_jax.sharding import ONE_DEVICE, Layout

MASKED = -1e30
"""The score of an invisible key: finite, so that a row without any visible key (padding) stays free of NaN."""

_KERNEL = "cudnn"
"""What `jax.nn.dot_product_attention` is asked for where the layout names cuDNN; tests ask for its like in XLA."""

_INTERPRETED = False
"""Whether splash runs without a TPU, for tests."""

_TILE = 128
"""Positions of splash's smallest tile."""

_SPREAD = ("rows", None, "kv_heads", None)
"""The axes of keys and values, and of queries, whose heads stand in groups of as many."""

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
    many of them. `key_mask_BS`: False where a key is padding, which stands before a row's other keys; what a query
    there sees means nothing. Scores and softmax are float32 whatever the inputs.
    """
    window = None if window and window >= key_BSKH.shape[1] else window
    kernel = None
    if layout.attention == "cudnn" and _cudnn_takes(query_BTNH, key_BSKH, window):
        kernel = partial(_in_cudnn, causal=causal)
    if layout.attention == "splash" and _splash_takes(query_BTNH, key_BSKH):
        kernel = partial(_in_splash, causal=causal, window=window)
    if kernel and (layout.mesh is None or layout.cut(key_BSKH.shape, *_SPREAD)):
        return _on_each_device(kernel, key_BSKH.shape, layout)(query_BTNH, key_BSKH, value_BSKH, key_mask_BS)
    reach = {"causal": causal, "window": window, "key_mask_BS": key_mask_BS}
    return _in_blocks(query_BTNH, key_BSKH, value_BSKH, layout, **reach)


def _cudnn_takes(query_BTNH: jax.Array, key_BSKH: jax.Array, window: int | None) -> bool:
    """Whether cuDNN has a kernel for this, forward and backward, on every chip from Ampere on."""
    (T, _, H), S = query_BTNH.shape[1:], key_BSKH.shape[1]
    fits = H % 8 == 0 and H <= 128 and query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return fits and window is None and (T == S or T % 2 == S % 2 == 0)


def _on_each_device(look: Callable[..., jax.Array], shape: tuple[int, ...], layout: Layout) -> Callable[..., jax.Array]:
    """`look` at the rows and heads that each device holds, which see nothing of each other."""
    if layout.mesh is None:
        return look
    held = layout.cut(shape, *_SPREAD)
    assert held is not None
    specs = held, held, held, PartitionSpec(held[0])
    return jax.shard_map(look, mesh=layout.mesh, in_specs=specs, out_specs=held, check_vma=False)


def _in_cudnn(
    query_BTNH: jax.Array, key_BSKH: jax.Array, value_BSKH: jax.Array, key_mask_BS: jax.Array | None, *, causal: bool
) -> jax.Array:
    """`attend` by cuDNN."""
    look = partial(jax.nn.dot_product_attention, implementation=_KERNEL)
    (B, T), S = query_BTNH.shape[:2], key_BSKH.shape[1]
    if T != S:
        visible_TS = jnp.arange(S) <= jnp.arange(S - T, S)[:, None] if causal else jnp.ones((T, S), bool)
        real_BS = jnp.ones((B, S), bool) if key_mask_BS is None else key_mask_BS
        return look(query_BTNH, key_BSKH, value_BSKH, mask=visible_TS & real_BS[:, None, None])
    if key_mask_BS is None:
        return _among_first(look, (query_BTNH, key_BSKH, value_BSKH), None, causal)
    # The kernel knows rows of different lengths, but all of them from the first place on.
    real_B = key_mask_BS.sum(-1, dtype=jnp.int32)
    turned = (_turned(x, real_B) for x in (query_BTNH, key_BSKH, value_BSKH))
    seen_BTNH = _turned(_among_first(look, turned, real_B, causal), -real_B)
    # It may leave anything where there is no query.
    return jnp.where(key_mask_BS[:, :, None, None], seen_BTNH, 0)


def _among_first(look: Any, inputs: Iterable[jax.Array], real_B: jax.Array | None, causal: bool) -> jax.Array:
    """What each row's first queries see of as many keys; None: all of them."""
    query_BTNH, key_BTKH, value_BTKH = inputs
    B, T = query_BTNH.shape[:2]
    if T % 2:
        # Its gradient wants an even number of places.
        one = ((0, 0), (0, 1), (0, 0), (0, 0))
        query_BTNH, key_BTKH, value_BTKH = (jnp.pad(x, one) for x in (query_BTNH, key_BTKH, value_BTKH))
        real_B = jnp.full(B, T, jnp.int32) if real_B is None else real_B
    lengths = {"query_seq_lengths": real_B, "key_value_seq_lengths": real_B}
    return look(query_BTNH, key_BTKH, value_BTKH, is_causal=causal, **lengths)[:, :T]


def _turned(x_BTNH: jax.Array, by_B: jax.Array) -> jax.Array:
    """Each row's positions moved on by so many places, round its end."""
    T = x_BTNH.shape[1]
    source_BT = (jnp.arange(T) - by_B[:, None]) % T
    # Said to be unique, so that the gradient is a plain write and no sum of atomics.
    return jax.vmap(lambda x, at: x.at[at].get(unique_indices=True, mode="promise_in_bounds"))(x_BTNH, source_BT)


def _splash_takes(query_BTNH: jax.Array, key_BSKH: jax.Array) -> bool:
    """Whether the sequences are long enough to be worth padding to whole tiles, and queries need none beside others."""
    (T, _, H), S = query_BTNH.shape[1:], key_BSKH.shape[1]
    return query_BTNH.dtype == jnp.bfloat16 and H in (64, 128) and T >= _TILE and (T == S or T % _TILE == 0)


def _in_splash(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    key_mask_BS: jax.Array | None,
    *,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """`attend` by splash, whose sequences are whole tiles, and whose tokens see those of their own kind only."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (B, T, N, H), S = query_BTNH.shape, key_BSKH.shape[1]
    real_BS = jnp.ones((B, S), bool) if key_mask_BS is None else key_mask_BS
    query_BNTH, key_BKSH, value_BKSH = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % _TILE), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (query_BTNH, key_BSKH, value_BSKH)
    )
    kind_BS = jnp.pad(real_BS.astype(jnp.int32), ((0, 0), (0, -S % _TILE)))
    kinds = splash.SegmentIds(kind_BS if T == S else kind_BS[:, S - T : S], kind_BS)
    shape = query_BNTH.shape[2], key_BKSH.shape[2]
    if causal:
        reach = masks.LocalMask(shape, (window - 1, 0), S - T) if window else masks.CausalMask(shape, S - T)
    else:
        reach = masks.FullMask(shape)
    keys = _tile(shape[1], 2048)
    queries = _tile(shape[0], 2**19 // keys)
    tiles = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    kernel: Any = splash.make_splash_mha(
        masks.MultiHeadMask([reach] * N), block_sizes=tiles, head_shards=1, q_seq_shards=1, interpret=_INTERPRETED
    )
    scaled_BNTH = query_BNTH * jnp.asarray(1 / math.sqrt(H), query_BNTH.dtype)
    return jax.vmap(kernel)(scaled_BNTH, key_BKSH, value_BKSH, kinds).swapaxes(1, 2)[:, :T]


def _tile(length: int, most: int) -> int:
    """The largest tile of so many positions that a length divides into."""
    return max(tile for tile in range(_TILE, most + 1, _TILE) if length % tile == 0)


def _in_blocks(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    layout: Layout,
    *,
    causal: bool,
    window: int | None,
    key_mask_BS: jax.Array | None,
) -> jax.Array:
    """`attend` in blocks of queries, which are unrolled, so a causal block multiplies only the keys that it can see."""
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
