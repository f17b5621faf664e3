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

from convert.comparison import TOKENS
from convert.load import open_model
from convert.origin import Origin, open_origin
from convert.packing import packed
from convert.recording import Task
from convert.theirs import LAST, QUIET
from vqathinker_jax.generate import Sampling, generate
from vqathinker_jax.model.language import DecoderLayer, LanguageModel
from vqathinker_jax.model.vision import VisionLayer
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.sharding import Layout
from vqathinker_jax.skeleton import abstract_model, arrays, fill, fill_part

Stage = tuple[str, np.ndarray]
Taps = dict[str, Any]
Part = Callable[..., jax.Array]
"""A module's method, or a function of a module: it takes inputs and, last, a dictionary for its taps."""


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
    frames_PFYXC, ids_PS = jnp.asarray(task.given.frames_FYXC)[None], jnp.asarray(task.given.ids_S)[None]
    visual_PLD, out = _tapped(VLM.encode, model, frames_PFYXC)
    yield from _seen(model, frames_PFYXC, out)
    yield from _moved(model, out)
    hidden_PSD = model.embed(ids_PS, visual_PLD, task.context)
    yield "prompt embedding", _kept(hidden_PSD[0])
    yield from _read(model.language, hidden_PSD)
    if task.tokens:
        guided = _on_disk(model)
        yield TOKENS, _guided(model, hidden_PSD, guide) if guided else _greedy(model, task, visual_PLD)


def _seen(model: VLM, frames_PFYXC: jax.Array, out: Taps) -> Iterator[Stage]:
    """The vision tower and its projector."""
    embedded_FLE, layers, patch = out["vision.embedding"], out["vision.layers"], model.config.vision.patch

    def quiet(layer: VisionLayer, before_FLE: jax.Array) -> jax.Array:
        return _vision_layer(*nnx.split(layer), _quiet(before_FLE), model.vision.layout)

    yield "patch embedding", _kept(embedded_FLE)
    yield from _layers("vision", model.vision.layers, embedded_FLE, layers, quiet)
    yield "projector", _kept(out["projector"])
    gy, gx = (side // patch for side in frames_PFYXC.shape[2:4])
    yield "projector, quiet", _kept(model.projector(_quiet(layers[-1][:, 1:]), gy, gx))


def _moved(model: VLM, out: Taps) -> Iterator[Stage]:
    """The motion branch, where there is one; the fast pathway first, as it flows into the slow one."""
    if model.motion_projector is None:
        return
    for number, (slow_PFYXC, fast_PFYXC) in enumerate(out["motion.stages"]):
        yield f"motion stage {number} fast", _kept(fast_PFYXC[0])
        yield f"motion stage {number} slow", _kept(slow_PFYXC[0])
    yield "motion features", _kept(out["motion.features"][0])
    yield "motion token", _kept(out["motion.token"][0])
    yield "motion token, quiet", _kept(model.motion_projector(_quiet(out["motion.features"]))[0])


def _read(language: LanguageModel, hidden_PSD: jax.Array) -> Iterator[Stage]:
    """The decoder over an embedded prompt."""
    normed_PSD, out = _tapped(_prefill, language, hidden_PSD)

    def quiet(layer: DecoderLayer, before_PSD: jax.Array) -> jax.Array:
        """Through the model's own prefill, as if it had this layer only."""
        alone = copy.copy(language)
        alone.layers = nnx.List([layer])
        return _tapped(_prefill, alone, _quiet(before_PSD))[1]["language.layers"][0]

    for name, array in _layers("decoder", language.layers, hidden_PSD, out["language.layers"], quiet):
        yield name, array[0]
    yield "final norm", _kept(normed_PSD[0])
    yield "final norm, quiet", _kept(language.norm(_quiet(out["language.layers"][-1]))[0])
    yield "logits", _kept(language.logits(normed_PSD[0, -LAST:]))


def _prefill(language: LanguageModel, hidden_PSD: jax.Array, out: Taps) -> jax.Array:
    return language.prefill(hidden_PSD, jnp.ones(hidden_PSD.shape[:2], bool), out)[0]


def _tapped(part: Part, module: VLM | LanguageModel, *inputs: jax.Array) -> tuple[jax.Array, Taps]:
    """What a part of a module makes of its inputs, and its taps; compiled but where layers are on disk."""
    if _on_disk(module):
        out: Taps = {}
        return part(module, *inputs, out), out
    return _compiled(part, *nnx.split(module), *inputs)


def _on_disk(module: VLM | LanguageModel) -> bool:
    return isinstance((module.language if isinstance(module, VLM) else module).layers, OnDisk)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    part: Part, graph: nnx.GraphDef[nnx.Module], state: nnx.State, *inputs: jax.Array
) -> tuple[jax.Array, Taps]:
    out: Taps = {}
    return part(nnx.merge(graph, state), *inputs, out), out


def _kept(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32))


def _layers(
    kind: str, layers: Any, before: jax.Array, after: Any, quiet: Callable[[Any, jax.Array], jax.Array]
) -> Iterator[Stage]:
    """Each layer's output, and what it makes of its own input made quiet."""
    inputs = itertools.chain([before], after)
    for number, (layer, given, made) in enumerate(zip(_each(layers), inputs, after, strict=False)):  # inputs: one more
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


@partial(jax.jit, static_argnames=("graph", "layout"))
def _vision_layer(
    graph: nnx.GraphDef[VisionLayer], state: nnx.State, hidden_FLE: jax.Array, layout: Layout
) -> jax.Array:
    return nnx.merge(graph, state)(hidden_FLE, layout)


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
