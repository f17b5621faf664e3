"""Small random checkpoint folders in both published formats, as their own code would write them.

Names and shapes are spelled out here once more rather than taken from `convert`, whose rules they are there to test.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from tests.reference_weights import tensor

Format = Literal["chat", "transformers"]
Tower = Literal["300M", "6B"]
Dtype = Literal["float32", "bfloat16"]
Shapes = dict[str, tuple[int, ...]]

TOKENIZER = Path(__file__).parent / "golden" / "scoring"
VOCABULARY = 436
MOTION = {"stem": 8, "depths": [1, 2, 1, 1], "slow_pool": [8, 1, 1], "fast_pool": [32, 2, 2]}

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def settings(kind: Format, tower: Tower = "300M", *, tied: bool = False) -> dict[str, Any]:
    """A `config.json` of this format: vision and language of width 32, a 4 x 4 grid of positions."""
    plain = tower == "300M"
    vision = {**_SIZES, "image_size": 56, "patch_size": 14, "norm_type": "layer_norm" if plain else "rms_norm"}
    language = {
        **_SIZES,
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }
    if kind == "chat":
        vision |= {"qkv_bias": plain, "qk_normalization": not plain}
        outer = {"model_type": "internvl_chat", "ps_version": "v2", "motion_config": MOTION}
        return {**outer, "vision_config": vision, "llm_config": language}
    vision |= {"model_type": "internvl_vision", "attention_bias": plain, "use_qk_norm": not plain}
    outer = {"model_type": "internvl", "motion_config": MOTION, "tie_word_embeddings": tied}
    return {**outer, "vision_config": vision, "text_config": language}


def shapes(config: Mapping[str, Any], *, motion: bool) -> Shapes:
    """Name and shape of every tensor that a checkpoint with this config holds."""
    chat = config["model_type"] == "internvl_chat"
    language = config["llm_config" if chat else "text_config"]
    all_shapes = _chat_vision(config["vision_config"]) if chat else _native_vision(config["vision_config"])
    merged, D = 4 * config["vision_config"]["hidden_size"], language["hidden_size"]
    parts = ("mlp1.0", "mlp1.1", "mlp1.3")
    if not chat:
        parts = tuple(f"multi_modal_projector.{part}" for part in ("layer_norm", "linear_1", "linear_2"))
    all_shapes |= _projector(parts, merged, D) | _language(language)
    if motion:
        stem, depths = config["motion_config"]["stem"], config["motion_config"]["depths"]
        Z = stem * 32 + stem * 4
        all_shapes |= _projector(("motion_mlp.0", "motion_mlp.1", "motion_mlp.3"), Z, D)
        all_shapes |= slowfast("slowfast_model.feature_extraction.", stem, depths)
    return all_shapes


def write(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
) -> Path:
    """A checkpoint folder of these tensors, in one file or in shards with an index, and a tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory)
    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors")
        return directory
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    home = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if home[name] == file}, directory / file)
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": home}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def draw(names: Shapes, dtype: Dtype = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of these names and shapes; counters stay integers."""
    drawn = {name: tensor(seed, name, shape) for name, shape in names.items()}
    return {name: array if array.dtype == np.int64 else array.astype(jnp.dtype(dtype)) for name, array in drawn.items()}


def _chat_vision(config: Mapping[str, Any]) -> Shapes:
    E, M, grid = _vision_sizes(config)
    embeddings = "vision_model.embeddings."
    found: Shapes = {
        embeddings + "class_embedding": (1, 1, E),
        embeddings + "position_embedding": (1, 1 + grid * grid, E),
        embeddings + "patch_embedding.weight": (E, 3, config["patch_size"], config["patch_size"]),
        embeddings + "patch_embedding.bias": (E,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}."
        found |= _linear(at + "attn.qkv", 3 * E, E, bias=config["qkv_bias"])
        found |= _linear(at + "attn.proj", E, E) | _linear(at + "mlp.fc1", M, E) | _linear(at + "mlp.fc2", E, M)
        found |= _norms([at + "norm1", at + "norm2"], E, bias=config["norm_type"] == "layer_norm")
        found |= _norms([at + "attn.q_norm", at + "attn.k_norm"] if config["qk_normalization"] else [], E, bias=False)
        found |= {at + "ls1": (E,), at + "ls2": (E,)}
    return found


def _native_vision(config: Mapping[str, Any]) -> Shapes:
    E, M, grid = _vision_sizes(config)
    embeddings = "vision_tower.embeddings."
    found: Shapes = {
        embeddings + "cls_token": (1, 1, E),
        embeddings + "position_embeddings": (1, 1 + grid * grid, E),
        embeddings + "patch_embeddings.projection.weight": (E, 3, config["patch_size"], config["patch_size"]),
        embeddings + "patch_embeddings.projection.bias": (E,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"vision_tower.encoder.layer.{layer}."
        attention = at + "attention."
        for part in "qkv":
            found |= _linear(f"{attention}{part}_proj", E, E, bias=config["attention_bias"])
        found |= _linear(attention + "projection_layer", E, E)
        found |= _linear(at + "mlp.fc1", M, E) | _linear(at + "mlp.fc2", E, M)
        norms = [at + "layernorm_before", at + "layernorm_after"]
        found |= _norms(norms, E, bias=config["norm_type"] == "layer_norm")
        found |= _norms([attention + "q_norm", attention + "k_norm"] if config["use_qk_norm"] else [], E, bias=False)
        found |= {at + "lambda_1": (E,), at + "lambda_2": (E,)}
    return found


def _vision_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    return config["hidden_size"], config["intermediate_size"], config["image_size"] // config["patch_size"]


def _language(config: Mapping[str, Any]) -> Shapes:
    D, M, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = D // config["num_attention_heads"] * config["num_key_value_heads"]
    found: Shapes = {"language_model.model.embed_tokens.weight": (V, D), "language_model.model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        found["language_model.lm_head.weight"] = (V, D)
    for layer in range(config["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}."
        for part, outs in (("q", D), ("k", kv), ("v", kv)):
            found |= _linear(f"{at}self_attn.{part}_proj", outs, D)
        found |= _linear(at + "self_attn.o_proj", D, D, bias=False)
        found |= _linear(at + "mlp.gate_proj", M, D, bias=False) | _linear(at + "mlp.up_proj", M, D, bias=False)
        found |= _linear(at + "mlp.down_proj", D, M, bias=False)
        found |= _norms([at + "input_layernorm", at + "post_attention_layernorm"], D, bias=False)
    return found


def slowfast(root: str, stem: int, depths: Iterable[int]) -> Shapes:
    """SlowFast as pytorchvideo names it, its blocks 0 to 4 under `root`; slow is 8 times as wide as fast."""
    fast = stem // 8
    found = _conv(f"{root}0.multipathway_blocks.0.conv", f"{root}0.multipathway_blocks.0.norm", stem, 3, (1, 7, 7))
    found |= _conv(f"{root}0.multipathway_blocks.1.conv", f"{root}0.multipathway_blocks.1.norm", fast, 3, (5, 7, 7))
    found |= _fusion(f"{root}0.", fast)
    slow_in, fast_in = stem + 2 * fast, fast
    for stage, depth in enumerate(depths):
        inner = stem * 2**stage
        at = f"{root}{stage + 1}."
        for block in range(depth):
            slow_at, fast_at = (f"{at}multipathway_blocks.{pathway}.res_blocks.{block}." for pathway in (0, 1))
            kernel = 1 if stage < 2 else 3
            found |= _block(slow_at, slow_in if block == 0 else 4 * inner, inner, kernel, projected=block == 0)
            found |= _block(fast_at, fast_in if block == 0 else inner // 2, inner // 8, 3, projected=block == 0)
        fast_in, slow_in = inner // 2, 4 * inner + inner
        if stage < 3:
            found |= _fusion(at, fast_in)
    return found


def _fusion(at: str, fast: int) -> Shapes:
    fusion = at + "multipathway_fusion."
    return _conv(fusion + "conv_fast_to_slow", fusion + "norm", 2 * fast, fast, (7, 1, 1))


def _block(at: str, ins: int, inner: int, kernel: int, *, projected: bool) -> Shapes:
    found = _conv(at + "branch1_conv", at + "branch1_norm", 4 * inner, ins, (1, 1, 1)) if projected else {}
    found |= _conv(at + "branch2.conv_a", at + "branch2.norm_a", inner, ins, (kernel, 1, 1))
    found |= _conv(at + "branch2.conv_b", at + "branch2.norm_b", inner, inner, (1, 3, 3))
    return found | _conv(at + "branch2.conv_c", at + "branch2.norm_c", 4 * inner, inner, (1, 1, 1))


def _conv(conv: str, norm: str, outs: int, ins: int, kernel: tuple[int, int, int]) -> Shapes:
    vectors: Shapes = {f"{norm}.{part}": (outs,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {conv + ".weight": (outs, ins, *kernel), **vectors, norm + ".num_batches_tracked": ()}


def _linear(name: str, outs: int, ins: int, *, bias: bool = True) -> Shapes:
    weight: Shapes = {name + ".weight": (outs, ins)}
    return weight | ({name + ".bias": (outs,)} if bias else {})


def _norms(names: Iterable[str], width: int, *, bias: bool) -> Shapes:
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{name}.{part}": (width,) for name in names for part in parts}


def _projector(parts: tuple[str, ...], ins: int, outs: int) -> Shapes:
    norm, up, down = parts
    return _norms([norm], ins, bias=True) | _linear(up, outs, ins) | _linear(down, outs, outs)
