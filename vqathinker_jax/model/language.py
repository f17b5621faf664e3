"""Qwen2.5: embedded tokens in, hidden states out; one layer definition for prefill, decoding and training.

What differs between those is who looks at whom, so a layer takes its attention as an argument. A prompt is computed
once for its G completions: prefill returns the prompt's keys and values, decoding carries each completion's own.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.attention import attend
from vqathinker_jax.model.cached_attention import attend_two, in_bytes
from vqathinker_jax.model.config import LanguageConfig
from vqathinker_jax.model.layers import Linear, RMSNorm, fold, param, stack, unstack
from vqathinker_jax.sharding import ONE_DEVICE

_normal = jax.nn.initializers.normal(0.02)
Cache = Literal["full", "int8"]
"""What prompts' keys and values are kept in: the dtype of arithmetic, or a byte a number."""


class PromptCache(NamedTuple):
    """Keys and values of P prompts, once for all their completions.

    layers: one (key_PKSH, value_PKSH) a layer, listed as the layers are; each an array, or in bytes
    (`cached_attention.Bytes`).
    mask_PS: True where a prompt's token is not padding. lengths_P: tokens of each prompt.
    """

    layers: Any
    mask_PS: jax.Array
    lengths_P: jax.Array


class LanguageModel(nnx.Module):
    """Token ids to hidden states to logits."""

    def __init__(self, config: LanguageConfig, *, rngs: nnx.Rngs):
        D, V = config.width, config.vocabulary
        self.config = config
        self.embedding = param(nnx.Param, _normal, (V, D), ("vocabulary", "embed"), rngs)
        self.layers: Any = stack(lambda rngs: DecoderLayer(config, rngs=rngs), config.layers, rngs)
        self.norm = RMSNorm(D, config.epsilon, rngs=rngs)
        self.layout = ONE_DEVICE
        self.cache: Cache = "full"
        self.head = None if config.tied else Linear((D,), (V,), ("embed", "vocabulary"), bias=False, rngs=rngs)

    def embed(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Token ids of any shape, rows first, to their embeddings [..., D] in the dtype of the computation."""
        # Each device looks up its part of the width for its copy's rows, and parts are exchanged for rows: without the
        # step between, forward and backward, the compiler would gather every row on every device.
        inner = [None] * (ids.ndim - 1)
        found = self.embedding[...][self.layout.place(ids, "rows_of_copy", *inner)].astype(dtype)
        return self.layout.rows(self.layout.place(found, "rows_of_copy", *inner, "embed"))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] to float32 logits [..., V]; give it only the positions whose logits are needed."""
        kernel_DV = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(hidden, kernel_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def prefill(
        self,
        hidden_PSD: jax.Array,
        mask_PS: jax.Array,
        out: dict[str, Any] | None = None,
        *,
        only_last: bool = False,
    ) -> tuple[jax.Array, PromptCache]:
        """Left-padded embedded prompts to normed hidden states [P, S, D] and the prompts' cache.

        only_last: the states [P, 1, D] of the last tokens alone, which are all that a completion goes on from; then the
        last layer, which must be one of a list, makes the keys and values of all, and nothing else of the others. There
        are no taps of that.
        """
        assert not only_last or (out is None and isinstance(self.layers, nnx.List))
        rotation = rotary(positions(mask_PS), self.config)

        def look(query_PTNH: jax.Array, key_PSKH: jax.Array, value_PSKH: jax.Array) -> tuple[jax.Array, Any]:
            reach = {"causal": True, "window": self.config.window}
            asking = jax.tree.map(lambda x_PS1H: x_PS1H[:, -query_PTNH.shape[1] :], rotation)
            query_PTNH, key_PSKH = rotate(query_PTNH, asking), rotate(key_PSKH, rotation)
            seen_PTNH = attend(query_PTNH, key_PSKH, value_PSKH, self.layout, key_mask_BS=mask_PS, **reach)
            kept = [x_PSKH.swapaxes(1, 2) for x_PSKH in (key_PSKH, value_PSKH)]
            if self.cache == "int8":
                kept = [in_bytes(x_PKSH, mask_PS) for x_PKSH in kept]
            return seen_PTNH, jax.tree.map(self._cached, tuple(kept))

        def step(layer: DecoderLayer, hidden_PSD: jax.Array, asking: int | None = None) -> tuple[jax.Array, Any]:
            return layer(self.layout.rows(hidden_PSD), look, asking)

        def tapped(layer: DecoderLayer, hidden_PSD: jax.Array) -> tuple[jax.Array, Any]:
            hidden_PSD, cache = step(layer, hidden_PSD)
            return hidden_PSD, (cache, hidden_PSD)

        if only_last:
            hidden_PSD, caches = fold(nnx.List(self.layers[:-1]), hidden_PSD, step)
            hidden_PSD, cache = step(self.layers[-1], hidden_PSD, asking=1)
            caches = (*caches, cache)
        elif out is None:
            hidden_PSD, caches = fold(self.layers, hidden_PSD, step)
        else:
            hidden_PSD, rows = fold(self.layers, hidden_PSD, tapped)
            caches, out["language.layers"] = zip(*rows, strict=True) if isinstance(self.layers, nnx.List) else rows
        hidden_PSD = self.norm(hidden_PSD)
        if out is not None:
            out["language.norm"] = hidden_PSD
        return hidden_PSD, PromptCache(caches, mask_PS, mask_PS.sum(-1, dtype=jnp.int32))

    def fork(self, prompt_PSD: jax.Array, mask_PS: jax.Array, completions_PGCD: jax.Array) -> jax.Array:
        """Left-padded embedded prompts and G embedded completions of each, to the hidden states that predict them.

        The row of a prompt is prompt, completion 1, …, completion G; each completion sees the prompt and itself, so
        the result is that of G separate rows while the prompt is computed once. Element c of the returned [P, G, C, D]
        is the normed state whose logits are completion token c's. The layout says what the backward pass
        computes again.
        """
        (P, S, D), (G, C) = prompt_PSD.shape, completions_PGCD.shape[1:3]
        own_PGC = jnp.broadcast_to(mask_PS.sum(-1, dtype=jnp.int32)[:, None, None] + jnp.arange(C), (P, G, C))
        rotation = rotary(jnp.concatenate([positions(mask_PS), own_PGC.reshape(P, G * C)], axis=1), self.config)
        key_mask_BS = jnp.concatenate([jnp.repeat(mask_PS, G, axis=0), jnp.ones((P * G, C), bool)], axis=1)
        reach = {"causal": True, "window": self.config.window}

        def alone(x_PTNH: jax.Array) -> jax.Array:
            return x_PTNH[:, S:].reshape(P * G, C, *x_PTNH.shape[2:])

        def after_prompt(x_PTKH: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.repeat(x_PTKH[:, :S], G, axis=0), alone(x_PTKH)], axis=1)

        def look(query_PTNH: jax.Array, key_PTKH: jax.Array, value_PTKH: jax.Array) -> tuple[jax.Array, None]:
            query_PTNH, key_PTKH = rotate(query_PTNH, rotation), rotate(key_PTKH, rotation)
            mine = query_PTNH[:, :S], key_PTKH[:, :S], value_PTKH[:, :S]
            prompt = attend(*mine, self.layout, key_mask_BS=mask_PS, **reach)
            keys, values = after_prompt(key_PTKH), after_prompt(value_PTKH)
            completions = attend(alone(query_PTNH), keys, values, self.layout, key_mask_BS=key_mask_BS, **reach)
            return jnp.concatenate([prompt, completions.reshape(P, G * C, *prompt.shape[2:])], axis=1), None

        def step(layer: DecoderLayer, hidden_PTD: jax.Array) -> tuple[jax.Array, None]:
            return layer(self.layout.rows(hidden_PTD), look)

        row_PTD = jnp.concatenate([prompt_PSD, completions_PGCD.reshape(P, G * C, D)], axis=1)
        hidden_PTD, _ = fold(self.layers, row_PTD, step, remat=self.layout.remat)
        last_PGD = jnp.broadcast_to(hidden_PTD[:, S - 1, None, None], (P, G, 1, D))
        hidden_PGCD = hidden_PTD[:, S:].reshape(P, G, C, D)
        return self.norm(jnp.concatenate([last_PGD, hidden_PGCD[:, :, :-1]], axis=2))

    def empty_cache(self, P: int, G: int, C: int, dtype: jnp.dtype) -> Any:
        """Room for C tokens of G completions of each of P prompts: one (key_PKGCH, value_PKGCH) a layer."""
        shape = P, self.config.kv_heads, G, C, self.config.head

        def room() -> jax.Array:
            return self._cached(jnp.zeros(shape, dtype), None)

        # Arrays of their own: outside jit, one could not be given away twice.
        return tuple((room(), room()) for _ in range(self.config.layers))

    def _cached(self, x: jax.Array, *more: None) -> jax.Array:
        """Keys or values [..., P, K, *more, C, H], told where a cache lies."""
        return self.layout.place(x, "rows", "kv_heads", *more, None, None)

    def unroll(self) -> None:
        """List the layers, and with them the caches to come, as generating wants them (`layers.unstack`)."""
        if not isinstance(self.layers, nnx.List):
            self.layers = unstack(self.layers)

    def settle(self) -> None:
        """List the layers, and on a mesh let weights lie as decoding wants them: cut over all devices of a copy along
        the width inside of each block, and along the vocabulary, where training has them cut along the stream between
        the blocks.

        A device then makes its part of those widths, from the whole stream of all rows of its copy. What goes across
        devices is the stream, added up twice a layer, and never a width, which is larger.
        """
        if self.layout.mesh is not None:
            self._spread_inside()
        self.unroll()

    def _spread_inside(self) -> None:
        layers, inward, outward = self.layers, (None, "width_of_decoding"), ("width_of_decoding", None)
        head = (self.embedding, outward) if self.head is None else (self.head.kernel, inward)
        lying = [head, (layers.gate.kernel, inward), (layers.up.kernel, inward), (layers.down.kernel, outward)]
        lying += [(layers.query.kernel, (None, "heads", "head_of_decoding"))]
        lying += [(each.kernel, (None, "kv_heads", "head_of_decoding")) for each in (layers.key, layers.value)]
        for weight, axes in (*lying, (layers.out.kernel, ("heads", "head_of_decoding", None))):
            weight.set_value(self.layout.place(weight[...], *axes, uneven=True))

    def decode(
        self, hidden_PGD: jax.Array, prompt: PromptCache, own: Any, step: jax.Array, slot: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """One token of each of P x G completions: embedded token number `step` (from 0) to its normed hidden state.

        The G completions of a prompt stand where a sequence's tokens stand elsewhere: G queries over one set of prompt
        keys, each also over its own cache `own`, which comes back with this token written at `step`. Where prompts
        began at different times, `step` is int32 [P], and all write at the one `slot`, which moves on by one a token
        and round the end: no prompt's tokens need places of their own, as a mask tells how far back its first stands.

        On a mesh, weights stay where `settle` puts them, and attention alone goes by rows.
        """
        P, G, _ = hidden_PGD.shape
        slot, step_P1 = step if slot is None else slot, jnp.reshape(step, (-1, 1))
        rotation = rotary(jnp.broadcast_to(prompt.lengths_P[:, None] + step_P1, (P, G)), self.config)
        S, window = prompt.mask_PS.shape[1], self.config.window
        prompt_mask_PS = prompt.mask_PS & (S + step_P1 - jnp.arange(S) < window) if window else prompt.mask_PS

        def written(cache_PKGCH: jax.Array, newest_PGKH: jax.Array) -> jax.Array:
            newest_PKG1H = newest_PGKH.swapaxes(1, 2)[:, :, :, None]
            return jax.lax.dynamic_update_slice_in_dim(cache_PKGCH, newest_PKG1H, slot, 3)

        def by_head(x_PGNH: jax.Array, heads: str) -> jax.Array:
            return self.layout.place(x_PGNH, "rows_of_copy", None, heads, "head_of_decoding", uneven=True)

        def by_row(x_PGNH: jax.Array, heads: str) -> jax.Array:
            return self.layout.place(x_PGNH, "rows", None, heads, None)

        def through(layer: DecoderLayer, hidden_PGD: jax.Array, prompt: Any, own: Any) -> tuple[jax.Array, Any]:
            def look(query_PGNH: jax.Array, key_PGKH: jax.Array, value_PGKH: jax.Array) -> tuple[jax.Array, Any]:
                query_PGNH = by_row(by_head(query_PGNH, "heads"), "heads")
                key_PGKH, value_PGKH = (by_row(by_head(x, "kv_heads"), "kv_heads") for x in (key_PGKH, value_PGKH))
                query_PGNH, key_PGKH = rotate(query_PGNH, rotation), rotate(key_PGKH, rotation)
                key_PKGCH, value_PKGCH = written(own[0], key_PGKH), written(own[1], value_PGKH)
                C = key_PKGCH.shape[3]
                back_C = (slot - jnp.arange(C)) % C
                own_mask_PC = (back_C <= step_P1) & (back_C < (window or C))
                mine = key_PKGCH, value_PKGCH, jnp.broadcast_to(own_mask_PC[:, None], (P, G, C))
                seen_PGNH = attend_two(query_PGNH, (*prompt, prompt_mask_PS), mine, self.layout)
                return by_head(by_row(seen_PGNH, "heads"), "heads"), (key_PKGCH, value_PKGCH)

            hidden_PGD, own = layer(hidden_PGD, look)
            return self.layout.place(hidden_PGD, "rows_of_copy", None, None), own

        hidden_PGD = self.layout.place(hidden_PGD, "rows_of_copy", None, None)
        kept = []
        for layer, *caches in zip(self.layers, prompt.layers, own, strict=True):
            hidden_PGD, cache = through(layer, hidden_PGD, *caches)
            kept.append(cache)
        return self.norm(hidden_PGD), tuple(kept)


Look = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class DecoderLayer(nnx.Module):
    """Pre-norm grouped-query attention and SwiGLU."""

    def __init__(self, config: LanguageConfig, *, rngs: nnx.Rngs):
        D, N, K, H, M = config.width, config.heads, config.kv_heads, config.head, config.mlp
        self.input_norm = RMSNorm(D, config.epsilon, rngs=rngs)
        self.query = Linear((D,), (N, H), ("embed", "heads", None), bias=True, rngs=rngs)
        self.key = Linear((D,), (K, H), ("embed", "kv_heads", None), bias=True, rngs=rngs)
        self.value = Linear((D,), (K, H), ("embed", "kv_heads", None), bias=True, rngs=rngs)
        self.out = Linear((N, H), (D,), ("heads", None, "embed"), bias=False, rngs=rngs)
        self.mlp_norm = RMSNorm(D, config.epsilon, rngs=rngs)
        self.gate = Linear((D,), (M,), ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = Linear((D,), (M,), ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = Linear((M,), (D,), ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, hidden_BSD: jax.Array, look: Look, asking: int | None = None) -> tuple[Any, Any]:
        """`look` takes query, key and value, rotates, and returns what was seen [B, T, N, H] and what to keep.

        asking: of so many last tokens alone, T, are the states wanted, and made; None, of all.
        """
        normed_BSD = self.input_norm(hidden_BSD)
        asking_BTD, hidden_BTD = (x if asking is None else x[:, -asking:] for x in (normed_BSD, hidden_BSD))
        seen_BTNH, kept = look(self.query(asking_BTD), self.key(normed_BSD), self.value(normed_BSD))
        hidden_BTD += self.out(seen_BTNH)
        normed_BTD = self.mlp_norm(hidden_BTD)
        return hidden_BTD + self.down(jax.nn.silu(self.gate(normed_BTD)) * self.up(normed_BTD)), kept


def positions(mask_BT: jax.Array) -> jax.Array:
    """Position of each token among its row's real tokens (int32), so that left padding changes nothing."""
    return jnp.maximum(jnp.cumsum(mask_BT, -1, dtype=jnp.int32) - 1, 0)


def rotary(positions_BT: jax.Array, config: LanguageConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, T, 1, H] of the rotary embedding, float32."""
    # In numpy's float32 and in the reference's order of operations: at position 5000 one ulp of a frequency shows.
    exponent = np.arange(0, config.head, 2, dtype=np.float32) / np.float32(config.head)
    frequency = np.float32(1) / np.float32(config.rope_theta) ** exponent
    angle = positions_BT[..., None, None].astype(jnp.float32) * np.concatenate([frequency, frequency])
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (x[h], x[h + H/2]) by its angle."""
    cos, sin = (part.astype(x_BTNH.dtype) for part in rotation)
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return x_BTNH * cos + jnp.concatenate([-second, first], axis=-1) * sin
