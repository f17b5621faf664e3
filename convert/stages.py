"""Our half of a cross-check: a task in, every stage of our model's run out, in the order in which they come about.

What runs is what every command runs (`VLM.encode`, `VLM.embed`, `LanguageModel.prefill`), watched through its taps. The
quiet stages are explained in `theirs.py`.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.load import open_model
from convert.origin import Origin, open_origin
from convert.packing import packed
from convert.recording import Task
from convert.theirs import LAST, QUIET
from vqathinker_jax.checkpoint import abstract_model, arrays, fill, fill_part
from vqathinker_jax.generate import Sampling, generate
from vqathinker_jax.model.language import LanguageModel
from vqathinker_jax.model.vision import VisionLayer
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.sharding import Layout

Stage = tuple[str, np.ndarray]


class OnDisk(nnx.List):
    """Listed layers that are read when a loop comes to them, and dropped when it goes on."""

    def __init__(self, make: Callable[[int], nnx.Module], count: int):
        super().__init__()
        self._make, self._length = make, count

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, range(self._length))


def open_ours(directory: Path, slowfast: Path | None, dtype: str, *, on_disk: bool) -> VLM:
    """Our model of a folder, with its layers stacked, or left on disk until they run.

    Raises: CheckpointError where the folder does not load.
    """
    if not on_disk:
        return open_model(directory, dtype=dtype, slowfast=slowfast, progress=True)
    origin = open_origin(directory, slowfast)
    model = abstract_model(origin.config, unrolled=True)
    rows = {path: row for (path, layer), row in origin.rows.items() if layer is None}
    whole = {name: packed(row.read(), jnp.dtype(dtype)) for name, row in rows.items()}
    layers = {kind: getattr(model, kind).layers for kind in ("vision", "language")}
    for kind in layers:
        getattr(model, kind).layers = nnx.List([])
    model = fill(model, whole.items())
    for kind, listed in layers.items():
        getattr(model, kind).layers = OnDisk(_reader(origin, f"{kind}.layers.", listed, dtype), len(listed))
    return model


def _reader(origin: Origin, root: str, abstract: nnx.List, dtype: str) -> Callable[[int], nnx.Module]:
    def read(layer: int) -> nnx.Module:
        values = {name: origin.rows[root + name, layer].read() for name in arrays(abstract[layer])}
        return fill_part(abstract[layer], ((name, packed(value, jnp.dtype(dtype))) for name, value in values.items()))

    return read


def run(model: VLM, task: Task, guide: np.ndarray) -> Iterator[Stage]:
    """Every stage by name, float32, last of all the greedy tokens.

    guide: the reference's greedy tokens. Where layers are on disk, ours are taken in one run behind those and not one
    after the other, which is the same up to the first that differs.
    """
    on_disk = isinstance(model.language.layers, OnDisk)
    graph, state = (None, None) if on_disk else nnx.split(model)
    frames, ids = jnp.asarray(task.given.frames_FYXC)[None], jnp.asarray(task.given.ids_S)[None]
    mask = jnp.ones(ids.shape, bool)

    def apply(function: Callable[..., Any], *inputs: Any) -> tuple[Any, dict[str, Any]]:
        """`function` of the model, the inputs and a dictionary of taps; compiled where the weights are in memory."""
        if on_disk:
            out: dict[str, Any] = {}
            return function(model, *inputs, out), out

        @jax.jit
        def compiled(state: nnx.State, *inputs: Any) -> tuple[Any, dict[str, Any]]:
            out: dict[str, Any] = {}
            return function(nnx.merge(graph, state), *inputs, out), out

        return compiled(state, *inputs)

    visual, out = apply(lambda model, frames, out: model.encode(frames, out), frames)
    yield "patch embedding", _kept(out["vision.embedding"])
    quiet = partial(_quiet_vision, model)
    yield from _layers("vision", model.vision.layers, out["vision.embedding"], out["vision.layers"], quiet)
    last_FLE = out["vision.layers"][-1][:, 1:]
    grid = [side // model.config.vision.patch for side in frames.shape[2:4]]
    yield "projector", _kept(out["projector"])
    yield "projector, quiet", _kept(model.projector(_quiet(last_FLE), *grid))
    for number, (slow, fast) in enumerate(out.get("motion.stages", ())):
        yield f"motion stage {number} slow", _kept(slow[0])
        yield f"motion stage {number} fast", _kept(fast[0])
    if "motion.token" in out:
        yield "motion features", _kept(out["motion.features"][0])
        yield "motion token", _kept(out["motion.token"][0])
        yield "motion token, quiet", _kept(model.motion_projector(_quiet(out["motion.features"]))[0])
    hidden, _ = apply(lambda model, ids, visual, out: model.embed(ids, visual, task.context), ids, visual)
    yield "prompt embedding", _kept(hidden[0])
    prefilled, out = apply(lambda model, hidden, mask, out: model.language.prefill(hidden, mask, out)[0], hidden, mask)
    quiet = partial(_quiet_decoder, model)
    decoder = _layers("decoder", model.language.layers, hidden, out["language.layers"], quiet)
    yield from ((name, array[0]) for name, array in decoder)
    yield "final norm", _kept(prefilled[0])
    yield "final norm, quiet", _kept(model.language.norm(_quiet(out["language.layers"][-1]))[0])
    logits, _ = apply(lambda model, last, out: model.language.logits(last), prefilled[0, -LAST:])
    yield "logits", _kept(logits)
    if task.tokens:
        greedy = _guided(model, hidden, guide) if on_disk else _greedy(model, task, visual)
        yield "greedy tokens", greedy


def _kept(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32))


def _layers(
    kind: str, layers: Any, before: jax.Array, after: Any, quiet: Callable[[nnx.Module, jax.Array], jax.Array]
) -> Iterator[Stage]:
    """Each layer's output, and what it makes of its own input made quiet."""
    inputs = itertools.chain([before], after)
    for number, (layer, given, made) in enumerate(zip(_each(layers), inputs, after, strict=False)):
        yield f"{kind} layer {number}", _kept(made)
        yield f"{kind} layer {number}, quiet", _kept(quiet(layer, given))


def _each(layers: Any) -> Iterator[nnx.Module]:
    if isinstance(layers, nnx.List):
        yield from layers
        return
    graph, state = nnx.split(layers)
    for number in range(jax.tree.leaves(state)[0].shape[0]):
        yield nnx.merge(graph, jax.tree.map(lambda x, number=number: x[number], state))


def _quiet(hidden: jax.Array) -> jax.Array:
    volume = jnp.sqrt(jnp.square(hidden.astype(jnp.float32)).mean())
    return hidden * (QUIET / volume).astype(hidden.dtype)


def _quiet_vision(model: VLM, layer: nnx.Module, before_FLE: jax.Array) -> jax.Array:
    graph, state = nnx.split(layer)
    return _vision_layer(graph, state, _quiet(before_FLE), model.vision.layout)


@partial(jax.jit, static_argnames=("graph", "layout"))
def _vision_layer(
    graph: nnx.GraphDef[VisionLayer], state: nnx.State, hidden_FLE: jax.Array, layout: Layout
) -> jax.Array:
    return nnx.merge(graph, state)(hidden_FLE, layout)


def _quiet_decoder(model: VLM, layer: nnx.Module, before_BTD: jax.Array) -> jax.Array:
    """Through the model's own prefill, as if it had this layer only."""
    alone = copy.copy(model.language)
    alone.layers = nnx.List([layer])
    return _prefilled(*nnx.split(alone), _quiet(before_BTD))


@partial(jax.jit, static_argnames="graph")
def _prefilled(graph: nnx.GraphDef[LanguageModel], state: nnx.State, hidden_BTD: jax.Array) -> jax.Array:
    out: dict[str, Any] = {}
    nnx.merge(graph, state).prefill(hidden_BTD, jnp.ones(hidden_BTD.shape[:2], bool), out)
    return out["language.layers"][0]


def _greedy(model: VLM, task: Task, visual: jax.Array) -> np.ndarray:
    """The first tokens of the most probable answer, int32, up to the stop token."""
    ids = jnp.asarray(task.given.ids_S)[None]
    made = generate(
        *nnx.split(model),
        visual,
        ids,
        np.ones(ids.shape, bool),
        context_id=task.context,
        stop_id=task.stop,
        pad_id=task.stop,
        sampling=Sampling(max_new_tokens=task.tokens),
    )
    return made.ids_PGC[0, 0, : int(made.lengths_PG[0, 0])]


def _guided(model: VLM, hidden: jax.Array, guide: np.ndarray) -> np.ndarray:
    """The most probable token, int32, at each place behind the prompt where the guide's stand before it."""
    words = model.language.embed(jnp.asarray(guide[:-1])[None], hidden.dtype)
    row = jnp.concatenate([hidden, words], axis=1)
    seen, _ = model.language.prefill(row, jnp.ones(row.shape[:2], bool))
    return np.asarray(model.language.logits(seen[0, -len(guide) :]).argmax(-1), np.int32)
