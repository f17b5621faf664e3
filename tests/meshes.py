"""One update and one greedy completion on every mesh of 8 devices; run as a program, for devices are faked at start.

Prints a JSON row a mesh, the one of a single device first: results, and what its compiled text gathers.
"""

import json
import re
from dataclasses import replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tests.models import CONTEXT, PAD, PLAIN, STOP, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.generate import Sampling, begin, decode, encode, generate, prefill
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.optim import OptimizerConfig, trainable
from vqathinker_jax.rewards import Ratings
from vqathinker_jax.sharding import MeshConfig, layout_of, make_mesh, put_videos, shardings
from vqathinker_jax.step import Fixed, Rollout, StepConfig, TrainState, update

SHAPES = [shape for shape in product((1, 2, 4, 8), repeat=3) if np.prod(shape) == 8]
"""Sizes of (data, fsdp, tensor)."""

SCORING = (1, 8, 1), (2, 2, 2)
"""Those that also score: what they compile for that shares its layers with the update."""

P, G, C = 8, 2, 8
DESCENT = optax.sgd(1.0)
"""Moves weights by their very gradient."""
STEP = StepConfig(loss=LossConfig(beta=0.0), chunk=4, max_tokens=C)
MODEL = replace(
    PLAIN,
    vision=replace(PLAIN.vision, heads=8),
    # Depths and a vocabulary that no other dimension is as large as.
    language=replace(PLAIN.language, heads=8, kv_heads=8, layers=5, vocabulary=1016),
)


def batch() -> Rollout:
    """Videos with distinct ratings, as numpy arrays."""
    rng = np.random.default_rng(0)
    ids_PS, mask_PS = pad_left([tiny_prompt([8 + p], MODEL) for p in range(P)], PAD, bucket=8)
    truth = np.ones((P, G), bool)
    scores_PG = rng.uniform(1, 5, (P, G)).astype(np.float32)
    return Rollout(
        frames_PFYXC=tiny_frames(P),
        ids_PS=ids_PS,
        mask_PS=mask_PS,
        completions_PGC=rng.integers(0, 70, (P, G, C)).astype(np.int32),
        lengths_PG=np.full((P, G), C, np.int32),
        stopped_PG=truth,
        ratings=Ratings(scores_PG, truth, 2 * truth.astype(np.int32), truth),
        mos_P=rng.uniform(1, 5, P).astype(np.float32),
    )


def results(mesh: Mesh, *, scoring: bool) -> dict[str, Any]:
    """What one update and one completion give on a mesh."""
    model = tiny_model(MODEL)
    model.lay_out(layout_of(mesh, "blocks"))
    graph, moving, still = nnx.split(model, trainable(OptimizerConfig()), ...)
    moving, still = (jax.device_put(part, shardings(part, mesh)) for part in (moving, still))
    placed, fixed = put_videos(batch(), mesh), Fixed(still, None)
    before = jax.tree.map(jnp.copy, moving)
    asked = {"optimizer": DESCENT, "config": STEP, "context_id": CONTEXT}
    compiled = update.lower(graph, TrainState(moving, DESCENT.init(moving)), fixed, placed, **asked).compile()
    state, report = compiled(TrainState(moving, DESCENT.init(moving)), fixed, placed)
    gradient = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).sum(), before, state.moving)
    stay = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), before, state.moving)
    text = compiled.as_text() or ""
    found = {
        "rewards": np.asarray(report.rewards_PG).tolist(),
        "metrics": {name: float(value) for name, value in report.metrics.items()},
        "gradient": {jax.tree_util.keystr(p): float(g) for p, g in jax.tree_util.tree_leaves_with_path(gradient)},
        "stay": all(jax.tree.leaves(stay)),
        "gathered": gathered(text),
        "logits": [shape for shape in shapes(text) if MODEL.language.vocabulary in shape],
        "stacks": [list(x.shape) for x in jax.tree.leaves(moving["language"]["layers"]) if x.ndim > 2],
    }
    return found | (scored(graph, nnx.merge_state(before, still), placed) if scoring else {})


def scored(graph: Any, acting: nnx.State, placed: Rollout) -> dict[str, Any]:
    """A greedy completion of each video, its log-probs, and what decoding gathers."""
    asked = encode(graph, acting, placed.frames_PFYXC), placed.ids_PS, placed.mask_PS
    ending = {"stop_id": STOP, "pad_id": PAD, "sampling": Sampling(C)}
    made = generate(graph, acting, *asked, context_id=CONTEXT, **ending)
    logits_PV, prompt = prefill(graph, acting, *asked, context_id=CONTEXT)
    keys_PG = jax.random.split(jax.random.key(0), (P, 1))
    decoding = begin(graph, acting, logits_PV, keys_PG, **ending)
    text = decode.lower(graph, acting, prompt, decoding, keys_PG, jnp.int32(C), **ending).compile().as_text() or ""
    layers = jax.tree.leaves(acting["language"]["layers"])
    return {
        "ids": made.ids_PGC.tolist(),
        "log_probs": made.log_probs_PGC.tolist(),
        "gathered_by_decode": [sorted(shape) for shape in gathered(text)],
        "summed_by_decode": made_by(text, "all-reduce"),
        "matrices": [sorted(x.shape[1:]) for x in layers if x.ndim > 2],
    }


def gathered(text: str) -> list[list[int]]:
    """Shapes of all that all-gathers of a compiled module give."""
    return made_by(text, "all-gather")


def made_by(text: str, operation: str) -> list[list[int]]:
    """Shapes of all arrays that operations of this kind give in a compiled module, alone or several at once."""
    types = re.findall(rf" = (.*?) {operation}\(", text)
    return [[int(n) for n in found.split(",")] for kind in types for found in re.findall(r"\w+\[([\d,]+)\]", kind)]


def shapes(text: str) -> set[tuple[int, ...]]:
    """Shapes of all float arrays of a compiled module."""
    return {tuple(map(int, found.split(","))) for found in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text)}


if __name__ == "__main__":
    print(json.dumps(results(make_mesh(MeshConfig(fsdp=1), 1), scoring=True)), flush=True)
    for shape in SHAPES:
        print(json.dumps(results(make_mesh(MeshConfig(*shape)), scoring=shape in SCORING)), flush=True)
