"""The demonstration model itself: its dimensions, its first weights, and its way into a checkpoint of the chat format.

Small and trained for minutes, it gets a head start where a large model has its pre-training: the patch embedding begins
as band-pass filters that answer equally strongly to typical clips, for noise and blur are a matter of the weakest
frequencies; and other weights are drawn as widely as narrow layers need.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from convert.formats import CHAT
from convert.motion import ROOTS, slowfast
from convert.rule import link
from vqathinker_jax.checkpoint import arrays
from vqathinker_jax.judge import View
from vqathinker_jax.model.config import parse_config
from vqathinker_jax.model.layers import Linear
from vqathinker_jax.model.vision import VisionLayer
from vqathinker_jax.model.vlm import VLM, normalise

PATCH = 28
LONGEST_WAVE, SHORTEST_WAVE = 40, 4
"""Wavelengths of the first filters, in pixels of a 560 x 560 frame; twice a clip's own pixel is about 4."""


def settings(vocabulary: int) -> dict[str, Any]:
    """The checkpoint's `config.json`."""
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "template": "internvl2_5",
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "force_image_size": View().image_size,
        "vision_config": {
            "model_type": "intern_vit_6b",
            "architectures": ["InternVisionModel"],
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": View().image_size,
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
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
        "motion_config": {"stem": 8, "depths": [1, 1, 1, 1]},
    }


def fresh(vocabulary: int, typical_FYXC: np.ndarray, seed: int) -> VLM:
    """A model that has learned nothing; `typical_FYXC` are uint8 RGB frames at the scale in which it will see them."""
    model = VLM(parse_config(settings(vocabulary), motion=True), rngs=nnx.Rngs(seed))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            module.kernel[...] *= 4.5
        elif isinstance(module, VisionLayer):
            module.scale1[...] = jnp.ones_like(module.scale1[...])
            module.scale2[...] = jnp.ones_like(module.scale2[...])
    patches = model.vision.patches
    kernel_YXCE = _band_passes(np.random.default_rng(seed), patches.kernel.shape[-1])
    answers_KE = np.tensordot(_patches(np.asarray(normalise(jnp.asarray(typical_FYXC)))), kernel_YXCE, 3)
    patches.kernel[...] = jnp.asarray(kernel_YXCE / answers_KE.std(0), jnp.float32)
    assert patches.bias is not None
    patches.bias[...] = jnp.asarray(-answers_KE.mean(0) / answers_KE.std(0), jnp.float32)
    return model


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
        waves.append(wave_YX[..., None] * rng.normal(1, 0.5, 3))
    return np.stack(waves, axis=-1)


def _patches(frames_FYXC: np.ndarray) -> np.ndarray:
    F, Y, X, C = frames_FYXC.shape
    split = frames_FYXC.reshape(F, Y // PATCH, PATCH, X // PATCH, PATCH, C)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH, PATCH, C)


def write_weights(directory: Path, model: VLM) -> None:
    """Write `model.safetensors` in the chat format, float32, SlowFast included."""
    ours = {path: np.asarray(array) for path, array in arrays(model).items()}
    rules = (CHAT + slowfast(ROOTS[0])).rules
    tensors: dict[str, np.ndarray] = {}
    for each in link(rules, {path: array.shape for path, array in ours.items()}):
        values = [ours[path] if each.layer is None else ours[path][each.layer] for path in each.ours]
        theirs = zip(each.theirs, each.form.to_theirs(values), strict=True)
        tensors |= {name: np.ascontiguousarray(value) for name, value in theirs}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
