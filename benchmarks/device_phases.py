"""Our phases as programs on one device, with random bfloat16 weights that are made there.

Enters: sizes and a cell such as `decode@16`. Leaves: a `Case`: what makes its arrays, and what runs it. Nothing is
computed before it is asked for, so that the same cases can be counted on shapes alone (`device_counts.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.device_sizes import Prompt, Sizes
from vqathinker_jax.generate import Sampling, begin, decode, encode, generate, prefill
from vqathinker_jax.model.adapter import LoraConfig
from vqathinker_jax.model.vlm import VLM, normalise
from vqathinker_jax.optim import OptimizerConfig, optimizer, trainable
from vqathinker_jax.rewards import Ratings
from vqathinker_jax.sharding import Layout
from vqathinker_jax.skeleton import abstract_model, with_adapters, with_weights
from vqathinker_jax.step import Fixed, Rollout, StepConfig, TrainState, completion_log_probs, update

DTYPE = jnp.bfloat16
ENDING = {"stop_id": -1, "pad_id": 0}
"""No token ends a completion, so all have the length that is asked for."""
_OPTIMIZER = OptimizerConfig(moments="bfloat16")
_LORA, _NO_LORA = LoraConfig(rank=16), LoraConfig()


@dataclass(frozen=True)
class Case:
    """make: the arrays that stay, and those that a run takes over and gives back, or None. run: of both, the latter.

    trips: how often the loop in it runs whose end data decides.
    """

    make: Callable[[], tuple[Any, Any]]
    run: Callable[[Any, Any], Any]
    trips: int = 1


def case(sizes: Sizes, cell: str, layout: Layout) -> Case:
    """What a cell runs."""
    phase, _, batch = cell.partition("@")
    return _CASES[phase](sizes, int(batch), layout)


def skeleton(sizes: Sizes, layout: Layout, lora: LoraConfig = _NO_LORA, *, trained: bool = False) -> VLM:
    """The model without its numbers, told how to compute."""
    # Who scores loads a model in the form that it runs in; training keeps its own.
    model = with_adapters(abstract_model(sizes.model, unrolled=not trained), lora)
    if not trained:
        model = with_weights(model, sizes.weights)
        model.language.cache = sizes.cache
    model.arithmetic = jnp.dtype(DTYPE)
    model.lay_out(layout)
    return model


def drawn(state: nnx.State, seed: int = 0) -> nnx.State:
    """Random bfloat16 weights, small ones, and near 1 those that scale; where a byte is kept, a few of its values."""
    # One draw over and over: a draw for each of hundreds of arrays takes the compiler most of a minute.
    noise = jax.random.normal(jax.random.key(seed), (999_983,), DTYPE) * jnp.asarray(0.02, DTYPE)

    def fill(path: tuple[Any, ...], x: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if x.dtype.itemsize == 1:
            return jnp.resize((50 * noise).astype(x.dtype), x.shape)
        return jnp.resize(noise + 1 if "scale" in name or "variance" in name else noise, x.shape)

    return jax.tree_util.tree_map_with_path(fill, state)


def frames(prompt: Prompt, videos: int) -> jax.Array:
    """Random uint8 frames [P, F, Y, X, C]."""
    shape = (videos, prompt.frames, prompt.size, prompt.size, 3)
    return jax.random.bits(jax.random.key(1), shape, jnp.uint8)


def asked(sizes: Sizes, prompt: Prompt, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [P, S] of prompts padded on the left, slots for visual tokens amid the text, and their mask."""
    visual, real, padded = prompt.visual(sizes.model), prompt.tokens(sizes.model), prompt.padded(sizes.model)
    ids = np.ones(padded, np.int32)
    ids[-visual - 5 : -5] = sizes.context_id
    mask = np.arange(padded) >= padded - real
    return np.tile(ids, (videos, 1)), np.tile(mask, (videos, 1))


def _vision(sizes: Sizes, videos: int, layout: Layout) -> Case:
    graph, abstract = nnx.split(skeleton(sizes, layout))

    @jax.jit
    def run(held: Any, _: Any) -> jax.Array:
        state, frames_PFYXC = held
        model = nnx.merge(graph, state)
        P, F, Y, X, C = frames_PFYXC.shape
        features_FLE = model.vision(normalise(frames_PFYXC).astype(DTYPE).reshape(P * F, Y, X, C))
        return model.projector(features_FLE, Y // sizes.model.vision.patch, X // sizes.model.vision.patch)

    return Case(lambda: ((drawn(abstract), frames(sizes.scoring, videos)), None), run)


def _motion(sizes: Sizes, videos: int, layout: Layout) -> Case:
    graph, abstract = nnx.split(skeleton(sizes, layout))

    @jax.jit
    def run(held: Any, _: Any) -> jax.Array:
        state, frames_PFYXC = held
        model = nnx.merge(graph, state)
        assert model.motion is not None
        assert model.motion_projector is not None
        return model.motion_projector(model.motion(normalise(frames_PFYXC).astype(DTYPE)))

    return Case(lambda: ((drawn(abstract), frames(sizes.scoring, videos)), None), run)


def _prefill(sizes: Sizes, videos: int, layout: Layout) -> Case:
    graph, abstract = nnx.split(skeleton(sizes, layout))

    def run(held: Any, _: Any) -> Any:
        return prefill(graph, *held, context_id=sizes.context_id)

    return Case(lambda: ((drawn(abstract), *_question(sizes, videos)), None), run)


def _question(sizes: Sizes, videos: int) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """What prefill takes of scoring prompts: visual tokens, ids, mask."""
    shape = (videos, sizes.scoring.visual(sizes.model), sizes.model.language.width)
    return jax.random.normal(jax.random.key(2), shape, DTYPE), *asked(sizes, sizes.scoring, videos)


def _decode(sizes: Sizes, videos: int, layout: Layout) -> Case:
    graph, abstract = nnx.split(skeleton(sizes, layout))
    settings = {"sampling": Sampling(max_new_tokens=sizes.answer), **ENDING}

    def make() -> tuple[Any, Any]:
        state = drawn(abstract)
        visual_PLD, ids_PS, mask_PS = _question(sizes, videos)
        fill = partial(prefill, graph, context_id=sizes.context_id)
        logits_PV, blank = jax.eval_shape(fill, state, visual_PLD, ids_PS, mask_PS)

        def draw(like: jax.ShapeDtypeStruct) -> jax.Array:
            numbers = jax.random.normal(jax.random.key(3), like.shape, DTYPE)
            return (numbers * (50 if like.dtype == jnp.int8 else 1)).astype(like.dtype)

        layers = jax.tree.map(draw, blank.layers)
        mask_PS = jnp.asarray(mask_PS)
        prompt = blank._replace(layers=layers, mask_PS=mask_PS, lengths_P=mask_PS.sum(-1, dtype=jnp.int32))
        keys_PG = jax.random.split(jax.random.key(0), (videos, 1))
        return (state, prompt, keys_PG), begin(graph, state, draw(logits_PV), keys_PG, **settings)

    def run(held: Any, decoding: Any) -> Any:
        state, prompt, keys_PG = held
        # Each time from the first token on.
        begun = decoding._replace(written=jnp.int32(1))
        return decode(graph, state, prompt, begun, keys_PG, jnp.int32(1 + sizes.slice), **settings)

    return Case(make, run, sizes.slice)


def _score(sizes: Sizes, videos: int, layout: Layout) -> Case:
    return _answers(sizes, sizes.scoring, videos, skeleton(sizes, layout), Sampling(max_new_tokens=sizes.answer))


def _rollout(sizes: Sizes, videos: int, layout: Layout) -> Case:
    sampling = Sampling(max_new_tokens=sizes.completion, temperature=1.0, top_k=50)
    at_once = {"slice_length": sizes.completion, "completions": sizes.drawn}
    return _answers(sizes, sizes.training, videos, skeleton(sizes, layout, trained=True), sampling, **at_once)


def _answers(sizes: Sizes, prompt: Prompt, videos: int, model: VLM, sampling: Sampling, **how: int) -> Case:
    """Videos to completions, as `Judge` and `rollout` go."""
    graph, abstract = nnx.split(model)
    ids_PS, mask_PS = asked(sizes, prompt, videos)
    settings = {"context_id": sizes.context_id, "sampling": sampling, **how, **ENDING}

    def run(held: Any, _: Any) -> Any:
        state, frames_PFYXC = held
        visual_PLD = encode(graph, state, frames_PFYXC)
        return generate(graph, state, visual_PLD, ids_PS, mask_PS, **settings)

    return Case(lambda: ((drawn(abstract), frames(prompt, videos)), None), run)


def _log_probs(sizes: Sizes, videos: int, layout: Layout) -> Case:
    graph, abstract = nnx.split(skeleton(sizes, layout, trained=True))

    @jax.jit
    def run(held: Any, _: Any) -> jax.Array:
        state, rollout = held
        model = nnx.merge(graph, state)
        return completion_log_probs(model, model.look(rollout.frames_PFYXC), rollout, StepConfig(), sizes.context_id)

    return Case(lambda: ((drawn(abstract), _learned(sizes, videos)), None), run)


def _update(sizes: Sizes, videos: int, layout: Layout, lora: LoraConfig = _NO_LORA) -> Case:
    moves = trainable(_OPTIMIZER, adapters=lora.rank > 0)
    graph, moving, still = nnx.split(skeleton(sizes, layout, lora, trained=True), moves, ...)
    tx = optimizer(_OPTIMIZER, 1000)

    def make() -> tuple[Any, Any]:
        weights, kept = drawn(moving), drawn(still)
        fixed = Fixed(kept, (drawn(moving, 1), None))
        return (fixed, _learned(sizes, videos)), TrainState(weights, tx.init(weights))

    def run(held: Any, state: TrainState) -> TrainState:
        # A video at a time, so that there is room for what products gave.
        settings = {"optimizer": tx, "config": StepConfig(micro_batches=videos), "context_id": sizes.context_id}
        return update(graph, state, *held, **settings)[0]

    return Case(make, run)


def _learned(sizes: Sizes, videos: int) -> Rollout:
    ids_PS, mask_PS = asked(sizes, sizes.training, videos)
    P, G, C = videos, sizes.learned, sizes.completion
    scores_PG = jax.random.uniform(jax.random.key(4), (P, G), minval=1, maxval=5)
    yes_PG = jnp.ones((P, G), bool)
    return Rollout(
        frames_PFYXC=frames(sizes.training, videos),
        ids_PS=jnp.asarray(ids_PS),
        mask_PS=jnp.asarray(mask_PS),
        completions_PGC=jax.random.randint(jax.random.key(5), (P, G, C), 2, sizes.context_id),
        lengths_PG=jnp.full((P, G), C, jnp.int32),
        stopped_PG=yes_PG,
        ratings=Ratings(scores_PG, yes_PG, jnp.full((P, G), 2, jnp.int32), yes_PG),
        mos_P=jax.random.uniform(jax.random.key(6), (P,), minval=1, maxval=5),
    )


_CASES: dict[str, Callable[[Sizes, int, Layout], Case]] = {
    "vision": _vision,
    "motion": _motion,
    "prefill": _prefill,
    "decode": _decode,
    "score": _score,
    "rollout": _rollout,
    "log-probs": _log_probs,
    "lora": partial(_update, lora=_LORA),
    "update": _update,
}
PHASES = tuple(_CASES)
