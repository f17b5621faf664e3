"""Small models with weights large enough that attention is sharp and a mistake shows."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.config import LanguageConfig, ModelConfig, MotionConfig, VisionConfig
from vqathinker_jax.model.layers import unstack
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.skeleton import abstract_model

MOVING = ModelConfig(
    vision=VisionConfig(width=32, layers=2, heads=4, mlp=48, grid=4),
    language=LanguageConfig(width=32, layers=3, heads=4, kv_heads=2, mlp=64, vocabulary=80),
    motion=MotionConfig(stem=8, depths=(1, 1, 1, 1), slow_pool=(8, 1, 1), fast_pool=(32, 2, 2)),
)
PLAIN = replace(MOVING, motion=None)
IMAGE_SIZE = 56
FRAMES = 4
CONTEXT, STOP, PAD = 77, 78, 79


def tiny_model(config: ModelConfig = PLAIN, seed: int = 0, *, listed: bool = False) -> VLM:
    """A random model; `listed` unstacks its layers, as scoring on a CPU does."""
    graph, state = nnx.split(abstract_model(config))
    rng = np.random.default_rng(seed)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        noise = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
        if "kernel" in name:
            outs = 1 if name.count("layers") == 0 else 2
            gain = 3.0 if ".query." in name or ".key." in name else 1.0
            return gain * noise / math.sqrt(math.prod(x.shape[outs - 1 : -1]) or 1)
        if "variance" in name:
            return 0.5 + jnp.abs(noise)
        if "scale" in name:
            return 1 + 0.1 * noise
        return (0.5 if "embedding" in name or "position" in name or "token" in name else 0.1) * noise

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
    if listed:
        model.vision.layers, model.language.layers = unstack(model.vision.layers), unstack(model.language.layers)
    return model


def tiny_prompt(tail: list[int], config: ModelConfig = PLAIN) -> np.ndarray:
    """Ids with a slot for every visual token of `FRAMES` frames, some text around them, and `tail` at the end."""
    slots = FRAMES * config.tokens_per_frame(IMAGE_SIZE) + (config.motion is not None)
    return np.array([5, 6, *[CONTEXT] * slots, 7, *tail], np.int32)


def tiny_frames(videos: int, seed: int = 0) -> np.ndarray:
    """Random uint8 frames [P, F, Y, X, C]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (videos, FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
