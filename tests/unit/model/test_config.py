import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import settings
from vqathinker_jax.model.config import (
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    VisionConfig,
    parse_config,
)
from vqathinker_jax.records import CheckpointError, InputError

# The settings that the released configs have, of OpenGVLab/InternVL3-8B, -38B (its tower) and -8B-hf.
ROPE = {"rope_theta": 1000000.0, "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}}
QWEN_8B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151674,
    **ROPE,
}
INTERNVIT_300M = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 448,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}
INTERNVIT_6B = {
    **INTERNVIT_300M,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "qk_normalization": True,
    "qkv_bias": False,
}
CHAT_8B = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "force_image_size": 448,
    "llm_config": QWEN_8B,
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "tie_word_embeddings": False,
    "vision_config": INTERNVIT_300M,
}
NATIVE_8B = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 256,
    "image_token_id": 151667,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": QWEN_8B,
    "tie_word_embeddings": False,
    "vision_config": {
        "attention_bias": True,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": [448, 448],
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}


@pytest.mark.parametrize("raw", [CHAT_8B, NATIVE_8B], ids=["chat", "transformers"])
def test_the_8b_models_are_the_defaults(raw: dict[str, Any]):
    assert parse_config(raw, motion=False) == ModelConfig(motion=None)
    assert parse_config(raw, motion=True) == ModelConfig()


def test_the_6b_tower_in_both_formats():
    tower = VisionConfig(3200, 45, 25, 12800, rms_norm=True, qkv_bias=False, qk_norm=True)
    assert parse_config({**CHAT_8B, "vision_config": INTERNVIT_6B}, motion=False).vision == tower
    settings_6b = {"hidden_size": 3200, "intermediate_size": 12800, "num_attention_heads": 25, "num_hidden_layers": 45}
    native = {**NATIVE_8B["vision_config"], **settings_6b, "norm_type": "rms_norm"}
    native |= {"attention_bias": False, "use_qk_norm": True}
    assert parse_config({**NATIVE_8B, "vision_config": native}, motion=False).vision == tower


def test_what_a_config_omits_is_what_its_own_code_takes():
    """Saved configs omit values that equal the defaults of the class that wrote them."""
    chat = parse_config({**CHAT_8B, "vision_config": {"num_hidden_layers": 45, "image_size": 448}}, motion=False)
    assert chat.vision == VisionConfig(3200, 45, 25, 12800, rms_norm=True, qkv_bias=False, qk_norm=True)
    native = parse_config({**NATIVE_8B, "vision_config": {"attention_bias": True}}, motion=False)
    assert native.vision == VisionConfig()
    qwen = {key: value for key, value in QWEN_8B.items() if not key.startswith("rope")}
    assert parse_config({**CHAT_8B, "llm_config": qwen}, motion=False).language == LanguageConfig(rope_theta=1e4)


def test_rope_theta_is_found_where_newer_configs_keep_it():
    qwen = {key: value for key, value in QWEN_8B.items() if not key.startswith("rope")}
    qwen["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert parse_config({**NATIVE_8B, "text_config": qwen}, motion=False).language.rope_theta == 5e5


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [(True, False, True), (False, True, False), (None, False, True), (None, True, True)],
)
def test_transformers_ties_the_head_by_the_outermost_setting(outer: bool | None, inner: bool, tied: bool):
    raw = {key: value for key, value in NATIVE_8B.items() if key != "tie_word_embeddings"}
    raw["text_config"] = {**QWEN_8B, "tie_word_embeddings": inner}
    raw |= {} if outer is None else {"tie_word_embeddings": outer}
    assert parse_config(raw, motion=False).language.tied == tied


@pytest.mark.parametrize(("inner", "tied"), [(True, True), (False, False), (None, False)])
def test_chat_ties_the_head_by_the_language_models_setting(inner: bool | None, tied: bool):
    qwen = QWEN_8B if inner is None else {**QWEN_8B, "tie_word_embeddings": inner}
    assert parse_config({**CHAT_8B, "llm_config": qwen}, motion=False).language.tied == tied


def test_chat_masks_by_the_sliding_window_wherever_one_is_set():
    narrow, silent = {**QWEN_8B, "sliding_window": 100}, {k: v for k, v in QWEN_8B.items() if k != "sliding_window"}
    windows = [
        parse_config({**CHAT_8B, "llm_config": c}, motion=False).language.window for c in (QWEN_8B, narrow, silent)
    ]
    assert windows == [None, 100, 4096]
    assert parse_config({**NATIVE_8B, "text_config": narrow}, motion=False).language.window is None


def test_a_narrowed_motion_branch():
    config = parse_config(settings("chat"), motion=True)
    expected = MotionConfig(stem=8, depths=(1, 2, 1, 1), slow_pool=(8, 1, 1), fast_pool=(32, 2, 2))
    assert config.motion == expected
    assert expected.features == 256 + 32
    assert MotionConfig().features == 2304


def test_internlm3_is_refused_in_one_line():
    internlm = {**QWEN_8B, "model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"], "head_dim": 128}
    with pytest.raises(CheckpointError) as fault:
        parse_config({**CHAT_8B, "llm_config": internlm}, motion=False)
    assert str(fault.value).count("\n") == 0
    assert "llm_config.model_type is 'internlm3'" in str(fault.value)
    assert "8B" in str(fault.value)


CHANGES = {
    "ps_version": ("", "ps_version", "v1"),
    "select_layer": ("", "select_layer", -4),
    "downsample_ratio": ("", "downsample_ratio", 0.3),
    "vision_config.hidden_act": ("vision_config", "hidden_act", "gelu_new"),
    "vision_config.norm_type": ("vision_config", "norm_type", "batch_norm"),
    "vision_config.num_channels": ("vision_config", "num_channels", 1),
    "vision_config.num_attention_heads": ("vision_config", "num_attention_heads", 3),
    "vision_config.hidden_size": ("vision_config", "hidden_size", "wide"),
    "llm_config.hidden_act": ("llm_config", "hidden_act", "relu"),
    "llm_config.use_sliding_window": ("llm_config", "use_sliding_window", True),
    "llm_config.rope_scaling": ("llm_config", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    "llm_config.head_dim": ("llm_config", "head_dim", 64),
    "llm_config.num_key_value_heads": ("llm_config", "num_key_value_heads", 5),
    "llm_config.vocab_size": ("llm_config", "vocab_size", None),
    "motion_config": ("", "motion_config", {"stems": 8}),
}


@pytest.mark.parametrize("named", CHANGES)
def test_each_unsupported_setting_is_named(named: str):
    section, key, value = CHANGES[named]
    raw = json.loads(json.dumps(CHAT_8B))
    (raw[section] if section else raw)[key] = value
    with pytest.raises(CheckpointError, match=rf"\Athere.json: {named} ") as fault:
        parse_config(raw, motion=True, file="there.json")
    assert str(fault.value).count("\n") == 0


def test_all_faults_come_together():
    raw = {**CHAT_8B, "ps_version": "v1", "vision_config": {}, "llm_config": {**QWEN_8B, "hidden_act": "relu"}}
    del raw["llm_config"]["hidden_size"]
    with pytest.raises(CheckpointError) as fault:
        parse_config(raw, motion=False)
    assert [line.split(" ")[1] for line in str(fault.value).splitlines()] == [
        "ps_version",
        "vision_config",
        "llm_config.hidden_act",
        "llm_config.hidden_size",
    ]


@pytest.mark.parametrize("raw", [{}, {"model_type": "llava"}])
def test_another_family_is_refused(raw: dict[str, Any]):
    with pytest.raises(CheckpointError, match=r"model_type is .*; expected 'internvl_chat' or 'internvl'"):
        parse_config(raw, motion=False)


def test_the_recorded_case(scoring_case: Path):
    raw = json.loads((scoring_case / "config.json").read_text())
    config = parse_config(raw, motion=True)
    assert config.vision.width == raw["vision_config"]["hidden_size"]
    assert config.language.vocabulary == raw["llm_config"]["vocab_size"]


def test_tokens_of_a_frame():
    assert ModelConfig().tokens_per_frame(448) == 256
    assert ModelConfig().tokens_per_frame(560) == 400
    with pytest.raises(InputError, match="image size 500: not a multiple of 28; try 476"):
        ModelConfig().tokens_per_frame(500)


def test_transformers_format_masks_by_a_window_that_is_switched_on_for_every_layer():
    on = {"use_sliding_window": True, "sliding_window": 100}
    ways = ({"max_window_layers": 0}, {"layer_types": ["sliding_attention"] * 2})
    for way in ways:
        text = {**NATIVE_8B["text_config"], **on, **way}
        assert parse_config({**NATIVE_8B, "text_config": text}, motion=False).language.window == 100
    for way in ({}, {"layer_types": ["sliding_attention", "full_attention"]}):
        text = {**NATIVE_8B["text_config"], **on, **way}
        with pytest.raises(CheckpointError, match="use_sliding_window is set for some layers only"):
            parse_config({**NATIVE_8B, "text_config": text}, motion=False)
