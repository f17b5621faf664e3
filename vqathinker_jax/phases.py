"""A training step as the programs it runs, with the shapes and places of all they take, and no numbers.

Enters: a recipe, a model's dimensions, a mesh, whose devices need not be here. Leaves: one `Phase` a program.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from vqathinker_jax.data.prompt import BUCKET
from vqathinker_jax.generate import Decoding, begin, decode, encode, prefill
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.language import PromptCache
from vqathinker_jax.model.vlm import VLM, Sight
from vqathinker_jax.optim import memory_places, optimizer
from vqathinker_jax.policy import divide, reference_dtype, reference_places
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.rewards import Ratings
from vqathinker_jax.sharding import layout_of, shardings, specification
from vqathinker_jax.skeleton import abstract_model, with_adapters
from vqathinker_jax.step import Fixed, Rollout, TrainState, completion_log_probs, seen_by_still, update

TEXT_TOKENS = 384
"""Room for the words of a prompt, beside what stands for frames."""
_CONTEXT = 151667
"""The id of a visual slot in the released models; a plan depends on no id."""


@dataclass(frozen=True)
class Phase:
    """One program of a step.

    lower: traces it for the mesh. count: what `flops.count_flops` takes: a function, and its arguments. times: how
    often a step runs it. trips: how often the loop in it runs whose end data decides. resident: bytes a chip that lie
    in its memory meanwhile and are none of its arguments.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    count: tuple[Callable[..., Any], tuple[Any, ...]]
    times: int
    resident: int
    trips: int = 1


def phases(config: TrainConfig, model: ModelConfig, mesh: Mesh, arithmetic: jnp.dtype) -> Iterator[Phase]:
    """Encode, prefill, decode, log-probs and update, each with the batch that it sees at a time."""

    here = partial(_placed, mesh)

    # Whatever a CPU stands for takes rows all at once.
    layout = replace(layout_of(mesh, config.remat, config.attention), one_by_one=False)

    def bare() -> VLM:
        return with_adapters(abstract_model(model), config.lora, config.seed)

    graph, moving, still = divide(bare(), config, arithmetic, layout)
    # A trace shows no work of a kernel's; in blocks attention multiplies about as much.
    counted = divide(bare(), config, arithmetic, replace(layout, attention="blocks"))[0]
    moving = _state(moving, mesh, jnp.dtype(config.parameters))
    still, acting = _state(still, mesh, arithmetic), _state(moving, mesh, arithmetic)
    tx = optimizer(config.optimizer, 1)
    memory = jax.tree.map(_lying, jax.eval_shape(tx.init, moving), memory_places(tx, moving, mesh))
    reference = _state(moving, mesh, reference_dtype(config, arithmetic))
    waiting = jax.tree.map(_lying, reference, reference_places(reference, mesh, config))
    fixed = Fixed(still, (waiting, None) if config.loss.beta else None)
    whole = nnx.merge_state(acting, still)

    data, rolling = config.data, config.rollout
    P, F, size = data.batch_size, data.frames, data.size
    parts, G, C = rolling.micro_batches, rolling.completions, rolling.max_new_tokens
    tokens, D = F * model.tokens_per_frame(size), model.language.width
    L = tokens + (model.motion is not None)
    S = -(-(L + TEXT_TOKENS) // BUCKET) * BUCKET
    Q, copies = P // parts, 2 if data.perturb else 1
    features = here((P, model.motion.features), arithmetic, "rows", None) if model.motion else None
    sight = Sight(here((P, tokens, D), arithmetic, "rows", None, None), features)
    kept = held((moving, memory, fixed.reference and fixed.reference[0], sight))

    frames = here((Q, F, size, size, 3), jnp.uint8, "rows", None, None, None, None)
    moved = (here((Q, F), jnp.int32, "rows", None), here((Q, F), bool, "rows", None)) if data.perturb else ()
    shown = (whole, frames, *moved)
    yield Phase("encode", lambda: encode.lower(graph, *shown), (partial(encode, counted), shown), parts, kept)

    B, K, H, R = copies * Q, model.language.kv_heads, model.language.head, model.language.layers
    mask = here((B, S), bool, "rows", None)
    asked = (whole, here((B, L, D), arithmetic, "rows", None, None), here((B, S), jnp.int32, "rows", None), mask)
    filling = partial(prefill, counted, context_id=_CONTEXT)
    yield Phase(
        "prefill",
        lambda: prefill.lower(graph, *asked, context_id=_CONTEXT),
        (filling, asked),
        parts,
        kept,
    )

    def caches(*shape: int) -> Any:
        """Keys and values, layer by layer."""
        each = here(shape, arithmetic, "rows", "kv_heads", *[None] * (len(shape) - 2))
        return ((each, each),) * R

    prompt = PromptCache(caches(B, K, S, H), mask, here((B,), jnp.int32, "rows"))
    ending = {"sampling": rolling.sampling(()), "stop_id": 0, "pad_id": 0}
    logits = here((B, model.language.vocabulary), jnp.float32, "rows", None)
    draws = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (B, G)))
    blank = jax.eval_shape(partial(begin, graph, **ending), whole, logits, draws)
    rows = [here(x.shape, x.dtype, "rows", *[None] * (x.ndim - 1)) for x in blank[1:-1]]
    decoding = Decoding._make([here((), jnp.int32), *rows, caches(B, K, G, C, H)])
    until = jax.ShapeDtypeStruct((), jnp.int32)
    said = (whole, prompt, decoding, draws, until)
    yield Phase(
        "decode",
        lambda: decode.lower(graph, *said, **ending),
        (partial(decode, counted, **ending), said),
        parts,
        kept,
        C - 1,
    )

    batch = _rollout(here, config, P, S)._replace(sight=seen_by_still(sight, moving))
    part = _rollout(here, config, P // config.micro_batches, S)

    def ask(graph: nnx.GraphDef[VLM], state: nnx.State, part: Rollout) -> jax.Array:
        model = nnx.merge(graph, state)
        return completion_log_probs(model, model.look(part.frames_PFYXC), part, config.step, _CONTEXT)

    scoring = jax.jit(ask, static_argnums=0)
    # The update holds this, for policy and reference; a row of its own shows what scoring takes.
    yield Phase("log-probs", lambda: scoring.lower(graph, whole, part), (partial(ask, counted), (whole, part)), 0, kept)

    state, settings = TrainState(moving, memory), {"optimizer": tx, "config": config.step, "context_id": _CONTEXT}
    yield Phase(
        "update",
        lambda: update.lower(graph, state, fixed, batch, **settings),
        (partial(update, counted, **settings), (state, fixed, batch)),
        config.iterations,
        0,
    )


def held(tree: Any) -> int:
    """Bytes of a tree of placed arrays on each chip, but for what waits in its host's memory."""
    near = (x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host")
    shapes = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in near)
    return sum(math.prod(shape) * size for shape, size in shapes)


def _lying(x: jax.ShapeDtypeStruct, place: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _state(state: nnx.State, mesh: Mesh, dtype: jnp.dtype) -> nnx.State:
    places = shardings(state, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place), state, places)


def _placed(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
    """An array whose axes have these places."""
    place = NamedSharding(mesh, specification(axes, len(shape), mesh) if axes else PartitionSpec())
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)


def _rollout(here: Callable[..., jax.ShapeDtypeStruct], config: TrainConfig, P: int, S: int) -> Rollout:
    data, G, C = config.data, config.rollout.completions, config.rollout.max_new_tokens

    def each(dtype: Any) -> Any:
        return here((P, G), dtype, "rows", None)

    ratings: Any = Ratings(each(jnp.float32), each(bool), each(jnp.int32), each(bool))
    shape = (P, data.frames, data.size, data.size, 3)
    fields: Any = {
        "frames_PFYXC": here(shape, jnp.uint8, "rows", None, None, None, None),
        "ids_PS": here((P, S), jnp.int32, "rows", None),
        "mask_PS": here((P, S), bool, "rows", None),
        "completions_PGC": here((P, G, C), jnp.int32, "rows", None, None),
        "lengths_PG": each(jnp.int32),
        "stopped_PG": each(bool),
        "ratings": ratings,
        "mos_P": here((P,), jnp.float32, "rows"),
        "perturbed": ratings if data.perturb else None,
    }
    return Rollout(**fields)
