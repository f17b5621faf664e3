"""A tiny VQAThinker that has learned nothing: its dimensions and its first weights, as a checkpoint in the chat format.

Trained for minutes, it gets a head start where a large model has its pre-training: the patch embedding begins as
band-pass filters that answer equally strongly to typical clips, for noise and blur are a matter of the weakest
frequencies; SlowFast measures change by construction (`tiny_motion.py`), and stays as it is; and other weights are
drawn as widely as narrow layers need.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from convert.formats import CHAT
from convert.motion import ROOTS, slowfast
from convert.rule import link
from tools.tiny_motion import measure_change
from tools.tiny_tokenizer import write_tokenizer
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.model.config import parse_config
from vqathinker_jax.model.layers import Linear
from vqathinker_jax.model.vision import VisionLayer, VisionTower
from vqathinker_jax.model.vlm import VLM, normalise
from vqathinker_jax.skeleton import arrays

PATCH = 14
LONGEST_WAVE, SHORTEST_WAVE = 20, 2
"""Wavelengths of the first filters, in pixels: half a frame's details to its finest grain."""
EMBEDDING = 0.3
"""Deviation of a word's first embedding: less, and layers drown the word; more, and the word drowns what is seen."""
COLOUR_SHARE = 0.3
"""Of the filters, those that answer to colour alone."""


@dataclass(frozen=True)
class Size:
    """How large the model is.

    image: pixels a side of a frame. motion_stem, motion_ratio: SlowFast's narrowest width, and how much narrower the
    fast pathway is. mlp: width of the towers' inner layers, in widths of the tower.
    """

    image: int = 112
    vision_width: int = 96
    vision_layers: int = 2
    vision_heads: int = 4
    language_width: int = 128
    language_layers: int = 2
    language_heads: int = 4
    motion_stem: int = 8
    motion_ratio: int = 1
    mlp: int = 2


TINY = Size()
SMALL = Size(
    image=224,
    vision_width=512,
    vision_layers=12,
    vision_heads=8,
    language_width=640,
    language_layers=12,
    language_heads=10,
    motion_stem=32,
    motion_ratio=4,
    mlp=3,
)
"""About a hundred million weights, for one GPU."""


def write_words(directory: Path, texts: Iterable[str]) -> int:
    """Write a tokenizer that knows the words of `texts`; returns the size of its vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, texts)
    return len(load_tokenizer(directory))


def settings(vocabulary: int, size: Size = TINY, frames: int = 6) -> dict[str, Any]:
    """The checkpoint's `config.json`; it says that the model is made to see so many frames of its size."""
    # As wide as the last feature map, or the 7 of the reference.
    pool = min(7, (size.image - 1) // 2**5 + 1)
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "template": "internvl2_5",
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "force_image_size": size.image,
        "view": {"frames": frames, "image_size": size.image},
        "vision_config": {
            "model_type": "intern_vit_6b",
            "architectures": ["InternVisionModel"],
            "hidden_size": size.vision_width,
            "intermediate_size": size.mlp * size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "image_size": size.image,
            "patch_size": PATCH,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "use_flash_attn": False,
        },
        "llm_config": {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": size.language_width,
            "intermediate_size": size.mlp * size.language_width,
            "num_hidden_layers": size.language_layers,
            "num_attention_heads": size.language_heads,
            "num_key_value_heads": max(1, size.language_heads // 2),
            "vocab_size": vocabulary,
            "rope_theta": 1e4,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
        "motion_config": {
            "stem": size.motion_stem,
            "beta": size.motion_ratio,
            "fusion": 1,
            "depths": [1, 1, 1, 1],
            "slow_pool": [8, pool, pool],
            "fast_pool": [32, pool, pool],
        },
    }


def fresh(raw: dict[str, Any], typical_FYXC: np.ndarray, seed: int) -> VLM:
    """A model of these settings; `typical_FYXC` are uint8 RGB frames as it will see them."""
    model = VLM(parse_config(raw, motion=True), rngs=nnx.Rngs(seed))
    gain = _as_wide_as(model.config.language.width)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            module.kernel[...] *= gain
        elif isinstance(module, VisionLayer):
            module.scale2[...] = jnp.ones_like(module.scale2[...])
    model.language.embedding[...] *= EMBEDDING / 0.02
    _begin_with_filters(model.vision, typical_FYXC, np.random.default_rng(seed))
    assert model.motion is not None
    measure_change(model.motion)
    return model


def _begin_with_filters(vision: VisionTower, typical_FYXC: np.ndarray, rng: np.random.Generator) -> None:
    """Make patches answer to band-pass filters, and the first MLP tell rising from falling answers, so that how much
    there is of each wavelength and colour is a mean of what comes out."""
    E = vision.patches.kernel.shape[-1]
    kernel_YXCE = _band_passes(rng, E)
    answers_KE = np.tensordot(_patches(np.asarray(normalise(jnp.asarray(typical_FYXC)))), kernel_YXCE, 3)
    vision.patches.kernel[...] = jnp.asarray(kernel_YXCE / answers_KE.std(0), jnp.float32)
    assert vision.patches.bias is not None
    vision.patches.bias[...] = jnp.asarray(-answers_KE.mean(0) / answers_KE.std(0), jnp.float32)
    signs_EM = np.tile(np.eye(E), (1, vision.layers.up.kernel.shape[-1] // E))
    signs_EM[:, E:] *= -1
    vision.layers.up.kernel[...] = vision.layers.up.kernel[...].at[0].set(jnp.asarray(signs_EM, jnp.float32))


def _as_wide_as(width: int) -> float:
    """By what to multiply weights of deviation 0.02, so that a layer of this width keeps the size of its inputs."""
    return 1 / (0.02 * math.sqrt(width))


def _band_passes(rng: np.random.Generator, filters: int) -> np.ndarray:
    """Windowed waves [PATCH, PATCH, 3, E] of random length, direction, phase, place and tint."""
    y_YX, x_YX = np.mgrid[:PATCH, :PATCH] - (PATCH - 1) / 2
    waves = []
    for _ in range(filters):
        length = np.exp(rng.uniform(np.log(SHORTEST_WAVE), np.log(LONGEST_WAVE)))
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        top, left = rng.uniform(-PATCH / 3, PATCH / 3, 2)
        window_YX = np.exp(-((y_YX - top) ** 2 + (x_YX - left) ** 2) / (2 * length**2))
        wave_YX = window_YX * np.cos(2 * np.pi / length * (np.cos(angle) * x_YX + np.sin(angle) * y_YX) + phase)
        tint_C = rng.normal(1, 0.5, 3)
        waves.append(wave_YX[..., None] * (tint_C - tint_C.mean() if rng.random() < COLOUR_SHARE else tint_C))
    return np.stack(waves, axis=-1)


def _patches(frames_FYXC: np.ndarray) -> np.ndarray:
    F, Y, X, C = frames_FYXC.shape
    split = frames_FYXC.reshape(F, Y // PATCH, PATCH, X // PATCH, PATCH, C)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH, PATCH, C)


def write_weights(directory: Path, raw: dict[str, Any], model: VLM) -> None:
    """Write `model.safetensors` in the chat format, float32, SlowFast included, and last of all `config.json`."""
    ours = {path: np.asarray(array) for path, array in arrays(model).items()}
    rules = (CHAT + slowfast(ROOTS[0])).rules
    tensors: dict[str, np.ndarray] = {}
    for each in link(rules, {path: array.shape for path, array in ours.items()}):
        values = [ours[path] if each.layer is None else ours[path][each.layer] for path in each.ours]
        theirs = zip(each.theirs, each.form.to_theirs(values), strict=True)
        tensors |= {name: np.ascontiguousarray(value) for name, value in theirs}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
