"""`config.json` of one published format from that of the other.

Enters: the parsed config of a source and what it means to us. Leaves: the settings of the target, those alone that its
classes read.
"""

from collections.abc import Mapping
from typing import Any

from vqathinker_jax.model.config import ModelConfig

_LANGUAGE = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "rope_scaling", "use_cache")
"""What our model does not depend on and PyTorch's classes read, taken over where the source has it."""


def chat_settings(raw: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Settings in chat format from Transformers'."""
    vision = {
        "model_type": "intern_vit_6b",
        "architectures": ["InternVisionModel"],
        **_vision(config),
        "image_size": config.vision.grid * config.vision.patch,
        "patch_size": config.vision.patch,
        "qkv_bias": config.vision.qkv_bias,
        "qk_normalization": config.vision.qk_norm,
    }
    settings = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "template": "internvl2_5",
        "ps_version": "v2",
        "select_layer": -1,
        "downsample_ratio": 1 / config.shuffle,
        "force_image_size": vision["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "tie_word_embeddings": config.language.tied,
        "vision_config": vision,
        "llm_config": {
            **_language(raw["text_config"], config),
            "architectures": ["Qwen2ForCausalLM"],
            "use_sliding_window": False,
            "sliding_window": config.language.window,
        },
    }
    return settings | _ours(raw)


def transformers_settings(raw: Mapping[str, Any], config: ModelConfig, image_token: int) -> dict[str, Any]:
    """Settings in Transformers' format from chat format; `image_token` is the id that stands for a visual token."""
    image_size = config.vision.grid * config.vision.patch
    seen = raw.get("force_image_size") or image_size
    # The reference masks by this setting alone; Transformers asks for it to be switched on, layer by layer.
    masked = config.language.window is not None
    window = {"use_sliding_window": masked, "sliding_window": config.language.window, "max_window_layers": 0}
    settings = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "image_token_id": image_token,
        "image_seq_length": (seen // (config.vision.patch * config.shuffle)) ** 2,
        "downsample_ratio": 1 / config.shuffle,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": config.language.tied,
        "vision_config": {
            "model_type": "internvl_vision",
            **_vision(config),
            "image_size": [image_size, image_size],
            "patch_size": [config.vision.patch, config.vision.patch],
            "attention_bias": config.vision.qkv_bias,
            "use_qk_norm": config.vision.qk_norm,
            "use_mean_pooling": True,
        },
        "text_config": _language(raw["llm_config"], config) | window,
    }
    return settings | _ours(raw)


def with_dtype(settings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The settings, saying that the weights are of this dtype."""
    inner = {
        key: {**settings[key], "torch_dtype": dtype}
        for key in ("vision_config", "text_config", "llm_config")
        if key in settings
    }
    changed = {**settings, **inner, "torch_dtype": dtype}
    return {**changed, "dtype": dtype} if "dtype" in settings else changed


def _vision(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.vision.width,
        "num_hidden_layers": config.vision.layers,
        "num_attention_heads": config.vision.heads,
        "intermediate_size": config.vision.mlp,
        "norm_type": "rms_norm" if config.vision.rms_norm else "layer_norm",
        "layer_norm_eps": config.vision.epsilon,
        "hidden_act": "gelu",
        "num_channels": 3,
    }


def _language(raw: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    language = config.language
    return {key: raw[key] for key in _LANGUAGE if key in raw} | {
        "model_type": "qwen2",
        "hidden_size": language.width,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "intermediate_size": language.mlp,
        "vocab_size": language.vocabulary,
        "rope_theta": language.rope_theta,
        "rms_norm_eps": language.epsilon,
        "max_position_embeddings": language.max_positions,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": language.tied,
    }


def _ours(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is written the same in both."""
    return {key: raw[key] for key in ("motion_config", "view") if key in raw}
