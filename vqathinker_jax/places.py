"""Prompts come one by one, answers leave as they end: P places on the device, a finished one taken by the next prompt.

So one long answer holds nothing back. All shapes are fixed: one compiled program encodes and prefills a single video,
one puts it into a place, one decodes all places together. Places began at different times but write their keys and
values at one common slot, which moves round a ring as long as the longest answer (`LanguageModel.decode`).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.generate import Sampling, choose, encode, prefill
from vqathinker_jax.model.language import PromptCache
from vqathinker_jax.model.vlm import VLM


class Prompt(NamedTuple):
    """One video and what is asked of it.

    tag: comes back with the answer. frames_FYXC: uint8 RGB. ids_S, mask_S: the prompt, padded on the left to a length
    that is the same for all. key: seeds the draws, so that they depend on nothing else.
    """

    tag: Any
    frames_FYXC: np.ndarray
    ids_S: np.ndarray
    mask_S: np.ndarray
    key: jax.Array


class Written(NamedTuple):
    """An answer. ids_T: int32, up to and including the stop token. stopped: False where it was cut off.

    watched_TW: log-probs of the tokens that sampling watches, at the places of these.
    """

    tag: Any
    ids_T: np.ndarray
    stopped: bool
    watched_TW: np.ndarray


class Places(NamedTuple):
    """The decode loop between two tokens. written_P: tokens chosen in each place, the last of them not yet fed.

    running_P: False where a place is free or its answer has ended. slot: where all write the next key and value.
    """

    slot: jax.Array
    written_P: jax.Array
    running_P: jax.Array
    ids_PC: jax.Array
    watched_PCW: jax.Array
    keys_P: jax.Array
    prompt: PromptCache
    cache: Any


def answers(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    prompts: Iterator[Prompt | None],
    *,
    places: int,
    context_id: int,
    stop_id: int,
    sampling: Sampling,
    slice_length: int = 32,
) -> Iterator[Written]:
    """The answer to each prompt, in the order in which they end; equal to what `generate` makes of each alone.

    `prompts` may yield None where none is ready yet: decoding then goes on for `slice_length` tokens before it is asked
    again.
    """
    ending = {"sampling": sampling, "stop_id": stop_id}
    held: Places | None = None
    tags: dict[int, Any] = {}
    more = True
    while more or tags:
        while more and len(tags) < places:
            prompt = next(prompts, _END)
            more = prompt is not _END
            if prompt is None or prompt is _END:
                break
            place = next(place for place in range(places) if place not in tags)
            tags[place] = prompt.tag
            visual_PLD = encode(graph, state, prompt.frames_FYXC[None])
            logits_PV, cache = prefill(
                graph, state, visual_PLD, prompt.ids_S[None], prompt.mask_S[None], context_id=context_id
            )
            held = held or empty(graph, state, cache, prompt.key, places, sampling)
            held = occupy(held, jnp.int32(place), cache, logits_PV, prompt.key, **ending)
        if held is None or not tags:
            continue
        now: Places = advance(graph, state, held, jnp.int32(slice_length), jnp.bool_(more), **ending)
        held = now
        # Copies: a CPU's arrays that the host holds could not be donated to the next call.
        told = jax.tree.map(jnp.copy, (now.running_P, now.written_P, now.ids_PC, now.watched_PCW))
        running_P, written_P, ids_PC, watched_PCW = jax.device_get(told)
        for place in [place for place in tags if not running_P[place]]:
            ids_T, watched_TW = (said[place, : written_P[place]] for said in (ids_PC, watched_PCW))
            yield Written(tags.pop(place), ids_T, bool(ids_T[-1] == stop_id), watched_TW)


_END: Any = object()


def empty(
    graph: nnx.GraphDef[VLM], state: nnx.State, one: PromptCache, key: jax.Array, places: int, sampling: Sampling
) -> Places:
    """Free places for answers to prompts whose caches are shaped like that of the prompt `one`."""
    model, length = nnx.merge(graph, state), sampling.max_new_tokens

    return Places(
        slot=jnp.int32(0),
        written_P=jnp.ones(places, jnp.int32),
        running_P=jnp.zeros(places, bool),
        ids_PC=jnp.zeros((places, length), jnp.int32),
        watched_PCW=jnp.zeros((places, length, len(sampling.watched)), jnp.float32),
        keys_P=jnp.broadcast_to(key, (places,)),
        prompt=jax.tree.map(lambda x: jnp.zeros((places, *x.shape[1:]), x.dtype), one),
        cache=model.language.empty_cache(places, 1, length, model.dtype),
    )


@partial(jax.jit, static_argnames=("sampling", "stop_id"), donate_argnames=("held",))
def occupy(
    held: Places,
    place: jax.Array,
    one: PromptCache,
    logits_PV: jax.Array,
    key: jax.Array,
    *,
    sampling: Sampling,
    stop_id: int,
) -> Places:
    """Put a prefilled prompt (P = 1) into a place and choose its first token."""
    choice = choose(logits_PV[:, None], jax.random.fold_in(key, 0)[None, None], sampling)
    first = choice.ids_PG[0, 0]

    return held._replace(
        written_P=held.written_P.at[place].set(1),
        running_P=held.running_P.at[place].set((first != stop_id) & (sampling.max_new_tokens > 1)),
        ids_PC=held.ids_PC.at[place, 0].set(first),
        watched_PCW=held.watched_PCW.at[place, 0].set(choice.watched_PGW[0, 0]),
        keys_P=held.keys_P.at[place].set(key),
        prompt=jax.tree.map(lambda held, own: held.at[place].set(own[0]), held.prompt, one),
    )


@partial(jax.jit, static_argnames=("graph", "sampling", "stop_id"), donate_argnames=("held",))
def advance(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    held: Places,
    tokens: jax.Array,
    more: jax.Array,
    *,
    sampling: Sampling,
    stop_id: int,
) -> Places:
    """Choose up to `tokens` tokens in each running place; where `more` prompts wait, stop as soon as an answer ends."""
    model = nnx.merge(graph, state)
    model.language.settle()
    C = sampling.max_new_tokens

    def unfinished(turn: tuple[jax.Array, Places]) -> jax.Array:
        done, now = turn
        freed = (held.running_P & ~now.running_P).any()
        return (done < tokens) & now.running_P.any() & ~(more & freed)

    def token(turn: tuple[jax.Array, Places]) -> tuple[jax.Array, Places]:
        done, now = turn
        newest_P1 = jnp.take_along_axis(now.ids_PC, now.written_P[:, None] - 1, axis=1)
        hidden_PGD = model.language.embed(newest_P1, model.dtype)
        hidden_PGD, cache = model.language.decode(hidden_PGD, now.prompt, now.cache, now.written_P - 1, now.slot)
        keys_P = jax.vmap(jax.random.fold_in)(now.keys_P, now.written_P)
        choice = choose(model.language.logits(hidden_PGD), keys_P[:, None], sampling)
        here_PC = now.running_P[:, None] & (jnp.arange(C) == now.written_P[:, None])
        written_P = now.written_P + now.running_P
        return done + 1, now._replace(
            slot=(now.slot + 1) % C,
            written_P=written_P,
            running_P=now.running_P & (choice.ids_PG[:, 0] != stop_id) & (written_P < C),
            ids_PC=jnp.where(here_PC, choice.ids_PG, now.ids_PC),
            watched_PCW=jnp.where(here_PC[..., None], choice.watched_PGW, now.watched_PCW),
            cache=cache,
        )

    return jax.lax.while_loop(unfinished, token, (jnp.int32(0), held))[1]
