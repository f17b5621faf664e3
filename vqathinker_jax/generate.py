"""From prompts and frames to completions: prefill once a prompt, then a decode loop for its G completions.

Everything has a static shape: prompts are left-padded to a bucket, completions have `max_new_tokens` places. So one
compilation serves every video. The decode loop runs in slices whose length is an argument of the compiled function;
between slices the host may show progress, and the loop ends when every completion has ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.language import PromptCache
from vqathinker_jax.model.vlm import UNSEEN, VLM, Sight
from vqathinker_jax.records import InputError
from vqathinker_jax.sharding import local_rows


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 leave every token in the draw, but for
    those in `never`. How likely the model held each of the tokens in `watched` is kept for every place, whatever is
    chosen and at whatever temperature."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    never: tuple[int, ...] = ()
    watched: tuple[int, ...] = ()

    def __post_init__(self):
        asked = {
            f"max_new_tokens is {self.max_new_tokens}: give at least 1": self.max_new_tokens >= 1,
            f"temperature is {self.temperature}: give 0, or 0.01 to 100": self.temperature == 0
            or 0.01 <= self.temperature <= 100,
            f"top_k is {self.top_k}: give 0 for all tokens, or how many": self.top_k >= 0,
            f"top_p is {self.top_p}: give above 0 and up to 1": 0 < self.top_p <= 1,
        }
        if faults := [fault for fault, sound in asked.items() if not sound]:
            raise InputError("; ".join(faults))


class Completions(NamedTuple):
    """ids_PGC: int32, the pad id after the end. lengths_PG: tokens up to and including the stop token.

    stopped_PG: False where a completion was cut off at its last place. log_probs_PGC: float32, of each drawn token
    among the whole vocabulary at the sampling temperature (at 1 when greedy); 0 after the end. watched_PGCW: of the W
    tokens that sampling watches, at the places of these, always at temperature 1.
    """

    ids_PGC: np.ndarray
    lengths_PG: np.ndarray
    stopped_PG: np.ndarray
    log_probs_PGC: np.ndarray
    watched_PGCW: np.ndarray


class Choice(NamedTuple):
    """The next tokens, int32, with their log-probs, and those of the watched tokens at temperature 1, float32."""

    ids_PG: jax.Array
    log_probs_PG: jax.Array
    watched_PGW: jax.Array


class Decoding(NamedTuple):
    """The decode loop between two tokens: `written` tokens of each completion are chosen, the last one not yet fed."""

    written: jax.Array
    ids_PGC: jax.Array
    log_probs_PGC: jax.Array
    watched_PGCW: jax.Array
    stopped_PG: jax.Array
    lengths_PG: jax.Array
    cache: Any


@partial(jax.jit, static_argnames=("graph",))
def look(graph: nnx.GraphDef[VLM], state: nnx.State, frames_PFYXC: jax.Array | np.ndarray) -> Sight:
    """What the towers make of videos; see `VLM.look`."""
    return nnx.merge(graph, state).look(jnp.asarray(frames_PFYXC))


@partial(jax.jit, static_argnames=("graph",))
def encode(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    frames_PFYXC: jax.Array | np.ndarray,
    order_PF: jax.Array | None = None,
    blank_PF: jax.Array | None = None,
    sight: Sight = UNSEEN,
) -> jax.Array:
    """Videos to their visual tokens [P, L, D], once whatever is then asked about them; see `VLM.encode`.

    sight: what is known of them. With an order (int) and blanks (bool) of the frames, [2 P, L, D]: each video, then its
    copy out of order.
    """
    model = nnx.merge(graph, state)
    frames_PFYXC = jnp.asarray(frames_PFYXC)
    visual_PLD = model.show(model.look(frames_PFYXC, sight))
    if order_PF is None or blank_PF is None:
        return visual_PLD
    moved_PLD = model.encode_perturbed(frames_PFYXC, visual_PLD, order_PF, blank_PF)
    # Side by side, so that each device goes on with the copies of its own videos.
    return jnp.stack([visual_PLD, moved_PLD], axis=1).reshape(-1, *visual_PLD.shape[1:])


@partial(jax.jit, static_argnames=("graph", "context_id"))
def prefill(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    visual_PLD: jax.Array,
    ids_PS: jax.Array,
    mask_PS: jax.Array,
    *,
    context_id: int,
) -> tuple[jax.Array, PromptCache]:
    """Run the prompts around encoded videos; returns float32 logits [P, V] of the first new token, and the cache."""
    model = nnx.merge(graph, state)
    model.language.unroll()
    hidden_PSD = model.embed(ids_PS, visual_PLD, context_id)
    hidden_P1D, cache = model.language.prefill(hidden_PSD, mask_PS, only_last=True)
    return model.language.logits(hidden_P1D[:, 0]), cache


@partial(jax.jit, static_argnames=("graph", "sampling", "stop_id", "pad_id"))
def begin(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    logits_PV: jax.Array,
    keys_PG: jax.Array,
    *,
    sampling: Sampling,
    stop_id: int,
    pad_id: int,
) -> Decoding:
    """Choose the first token of each of G completions, one a key, and make room for the others."""
    model = nnx.merge(graph, state)
    (P, G), V, C = keys_PG.shape, logits_PV.shape[-1], sampling.max_new_tokens
    rows = model.layout.rows
    blank = Decoding(
        written=jnp.int32(0),
        ids_PGC=rows(jnp.full((P, G, C), pad_id, jnp.int32)),
        log_probs_PGC=rows(jnp.zeros((P, G, C), jnp.float32)),
        watched_PGCW=rows(jnp.zeros((P, G, C, len(sampling.watched)), jnp.float32)),
        stopped_PG=rows(jnp.zeros((P, G), bool)),
        lengths_PG=rows(jnp.zeros((P, G), jnp.int32)),
        cache=model.language.empty_cache(P, G, C, model.dtype),
    )
    logits_PGV = jnp.broadcast_to(logits_PV[:, None], (P, G, V))
    return _write(blank, logits_PGV, keys_PG, blank.cache, sampling, stop_id, pad_id)


@partial(jax.jit, static_argnames=("graph", "sampling", "stop_id", "pad_id"), donate_argnames=("decoding",))
def decode(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    prompt: PromptCache,
    decoding: Decoding,
    keys_PG: jax.Array,
    until: jax.Array,
    *,
    sampling: Sampling,
    stop_id: int,
    pad_id: int,
) -> Decoding:
    """Choose tokens until `until` are written or every completion has stopped."""
    model = nnx.merge(graph, state)
    model.language.settle()
    last = jnp.minimum(until, sampling.max_new_tokens)

    def unfinished(decoding: Decoding) -> jax.Array:
        return (decoding.written < last) & ~decoding.stopped_PG.all()

    def token(decoding: Decoding) -> Decoding:
        place = decoding.written - 1
        newest_PG = jax.lax.dynamic_index_in_dim(decoding.ids_PGC, place, axis=2, keepdims=False)
        hidden_PGD = model.language.embed(newest_PG, model.dtype)
        hidden_PGD, cache = model.language.decode(hidden_PGD, prompt, decoding.cache, place)
        logits_PGV = model.language.logits(hidden_PGD)
        # From parts of the vocabulary for all rows to all of it for some, so that no logits are added across devices.
        for axes in (("rows_of_copy", None, "width_of_decoding"), ("rows", None, "vocabulary")):
            logits_PGV = model.layout.place(logits_PGV, *axes, uneven=True)
        return _write(decoding, model.layout.rows(logits_PGV), keys_PG, cache, sampling, stop_id, pad_id)

    made = jax.lax.while_loop(unfinished, token, decoding)
    rows = model.layout.rows
    return made._replace(
        ids_PGC=rows(made.ids_PGC),
        log_probs_PGC=rows(made.log_probs_PGC),
        watched_PGCW=rows(made.watched_PGCW),
        stopped_PG=rows(made.stopped_PG),
        lengths_PG=rows(made.lengths_PG),
    )


def generate(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    visual_PLD: jax.Array,
    ids_PS: jax.Array | np.ndarray,
    mask_PS: jax.Array | np.ndarray,
    *,
    context_id: int,
    stop_id: int,
    pad_id: int,
    sampling: Sampling,
    completions: int = 1,
    key: jax.Array | None = None,
    progress: Callable[[int], None] = lambda written: None,
    slice_length: int = 32,
) -> Completions:
    """G completions of each of P left-padded prompts about P videos, encoded by `encode`; those of this process.

    `key` seeds the draws, or a key for each of [P, G] does (it may be left out when greedy); each completion has a
    stream of its own, so a row's tokens do not depend on how long the other rows run. `progress` is called with the
    number of tokens written so far, every `slice_length` tokens.
    """
    key = jax.random.key(0) if key is None else key
    keys_PG = key if key.ndim else jax.random.split(key, (ids_PS.shape[0], completions))
    ending = {"sampling": sampling, "stop_id": stop_id, "pad_id": pad_id}
    logits_PV, prompt = prefill(graph, state, visual_PLD, ids_PS, mask_PS, context_id=context_id)
    decoding = begin(graph, state, logits_PV, keys_PG, **ending)
    for until in range(1 + slice_length, sampling.max_new_tokens + slice_length, slice_length):
        decoding = decode(graph, state, prompt, decoding, keys_PG, jnp.int32(until), **ending)
        progress(int(decoding.written))
        if decoding.stopped_PG.all():
            break
    made = decoding.ids_PGC, decoding.lengths_PG, decoding.stopped_PG, decoding.log_probs_PGC, decoding.watched_PGCW
    return Completions(*map(local_rows, made))


def _write(
    decoding: Decoding,
    logits_PGV: jax.Array,
    keys_PG: jax.Array,
    cache: Any,
    sampling: Sampling,
    stop_id: int,
    pad_id: int,
) -> Decoding:
    """Choose one token a completion from its logits and put it into the next place; a stopped one gets padding."""
    place = decoding.written
    keys_PG = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys_PG, place)
    choice = choose(logits_PGV, keys_PG, sampling)
    running_PG = ~decoding.stopped_PG
    chosen_PG = jnp.where(running_PG, choice.ids_PG, pad_id)
    log_probs_PG = jnp.where(running_PG, choice.log_probs_PG, 0.0)
    watched_PGW = jnp.where(running_PG[..., None], choice.watched_PGW, 0.0)
    return Decoding(
        written=place + 1,
        ids_PGC=jax.lax.dynamic_update_index_in_dim(decoding.ids_PGC, chosen_PG, place, axis=2),
        log_probs_PGC=jax.lax.dynamic_update_index_in_dim(decoding.log_probs_PGC, log_probs_PG, place, axis=2),
        watched_PGCW=jax.lax.dynamic_update_index_in_dim(decoding.watched_PGCW, watched_PGW, place, axis=2),
        stopped_PG=decoding.stopped_PG | (chosen_PG == stop_id),
        lengths_PG=decoding.lengths_PG + running_PG,
        cache=cache,
    )


def choose(logits_PGV: jax.Array, keys_PG: jax.Array, sampling: Sampling) -> Choice:
    """The next tokens, and log-probs among the whole vocabulary at the sampling temperature.

    The cuts come in Transformers' order: the tokens that are never chosen, temperature, then the k most probable, then
    of those the fewest whose probabilities reach top_p.
    """
    scaled_PGV = logits_PGV / (sampling.temperature or 1.0)
    allowed_PGV = scaled_PGV.at[..., list(sampling.never)].set(-jnp.inf) if sampling.never else scaled_PGV
    if sampling.temperature == 0:
        chosen_PG = jnp.argmax(allowed_PGV, -1)
    else:
        kept_PGV = _nucleus(_most_probable(allowed_PGV, sampling.top_k), sampling.top_p)
        chosen_PG = jax.vmap(jax.vmap(jax.random.categorical))(keys_PG, kept_PGV)
    picked_PG = jnp.take_along_axis(scaled_PGV, chosen_PG[..., None], -1)[..., 0]
    watched_PGW = logits_PGV[..., jnp.array(sampling.watched, jnp.int32)]
    if sampling.watched:
        watched_PGW -= jax.nn.logsumexp(logits_PGV, -1, keepdims=True)
    log_probs_PG = picked_PG - jax.nn.logsumexp(scaled_PGV, -1)
    return Choice(chosen_PG.astype(jnp.int32), log_probs_PG, watched_PGW)


def _most_probable(logits_PGV: jax.Array, top_k: int) -> jax.Array:
    if not 0 < top_k < logits_PGV.shape[-1]:
        return logits_PGV
    lowest = jax.lax.top_k(logits_PGV, top_k)[0][..., -1:]
    return jnp.where(logits_PGV < lowest, -jnp.inf, logits_PGV)


def _nucleus(logits_PGV: jax.Array, top_p: float) -> jax.Array:
    if top_p == 1:
        return logits_PGV
    ordered_PGV = -jnp.sort(-logits_PGV, -1)
    before_PGV = jnp.cumsum(jax.nn.softmax(ordered_PGV, -1), -1) - jax.nn.softmax(ordered_PGV, -1)
    lowest = jnp.min(jnp.where(before_PGV < top_p, ordered_PGV, jnp.inf), -1, keepdims=True)
    return jnp.where(logits_PGV < lowest, -jnp.inf, logits_PGV)
