"""A config with any one setting bent is refused by one line a fault that names the setting, never by a traceback."""

import copy
import functools
import json
import re
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from tests.unit.model.test_config import CHAT_8B, NATIVE_8B
from vqathinker_jax.model.config import ModelConfig, MotionConfig, parse_config
from vqathinker_jax.records import CheckpointError, InputError

MOTION = {
    "motion_config": {
        "stem": 64,
        "beta": 8,
        "fusion": 2,
        "expansion": 4,
        "depths": [3, 4, 6, 3],
        "epsilon": 1e-5,
        "slow_pool": [8, 7, 7],
        "fast_pool": [32, 7, 7],
    }
}
VIEW = {"view": {"frames": 6, "image_size": 112}}
FULL = {"chat": CHAT_8B | MOTION | VIEW, "transformers": NATIVE_8B | MOTION | VIEW}

BAD = {
    "null": None,
    "true": True,
    "text": "x",
    "digits": "28",
    "blank": "",
    "minus": -4,
    "zero": 0,
    "fraction": 0.3,
    "nan": float("nan"),
    "infinity": float("inf"),
    "tiny": 1e-300,
    "huge": 10**400,
    "large": 2**31,
    "empty list": [],
    "list": [1],
    "pair": [448, 224],
    "triple": [99, 99, 99],
    "four": [1, 0, 1, 1],
    "list of text": ["x", "x"],
    "empty object": {},
    "object": {"x": 1},
    "two lines": "x\n\x1b[2J" * 50,
}

# Nothing is read from these.
UNREAD = {
    "architectures",
    "force_image_size",
    "template",
    "tie_word_embeddings",
    "image_seq_length",
    "image_token_id",
    "vision_config.model_type",
    "llm_config.architectures",
    "llm_config.rope_scaling.factor",
    "llm_config.rope_scaling.type",
    "text_config.architectures",
    "text_config.rope_scaling.factor",
    "text_config.rope_scaling.type",
    "text_config.sliding_window",
}

# What reads as absent, and is what the setting may be.
ALLOWED = {
    "llm_config.model_type": {"null"},
    "text_config.model_type": {"null"},
    "llm_config.use_sliding_window": {"null"},
    "text_config.use_sliding_window": {"null"},
    "llm_config.sliding_window": {"null"},
    "llm_config.rope_scaling": {"null", "empty object", "object"},
    "text_config.rope_scaling": {"null", "empty object", "object"},
    "llm_config.rope_theta": {"fraction", "large"},
    "text_config.rope_theta": {"fraction", "large"},
    "llm_config.rms_norm_eps": {"fraction", "large"},
    "text_config.rms_norm_eps": {"fraction", "large"},
    "vision_config": {"object"},
    "vision_config.layer_norm_eps": {"fraction", "large"},
    "motion_config": {"empty object"},
    "layer_types": {"null", "empty list"},
    "max_window_layers": {"zero"},
    "motion_config.epsilon": {"fraction", "large"},
    "tie_word_embeddings": {"true"},
    "vision_config.qkv_bias": {"true"},
    "vision_config.attention_bias": {"true"},
    "vision_config.qk_normalization": {"true"},
    "vision_config.use_qk_norm": {"true"},
    "vision_config.use_mean_pooling": {"true"},
    "vision_config.use_absolute_position_embeddings": {"true"},
}


def paths(raw: dict[str, Any], root: str = "") -> list[str]:
    """Every setting by its dotted path, those inside others included."""
    found = []
    for key, value in raw.items():
        found += [root + key, *(paths(value, f"{root}{key}.") if isinstance(value, dict) else [])]
    return found


def at(raw: dict[str, Any], path: str) -> Any:
    return functools.reduce(dict.__getitem__, path.split("."), raw)


def bent(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    outer, _, key = path.rpartition(".")
    (at(raw, outer) if outer else raw)[key] = value
    return raw


def tied(kind: str, path: str) -> bool:
    return kind == "transformers" and path == "tie_word_embeddings"


def faults(raw: dict[str, Any]) -> list[str]:
    """The lines that refuse a config; none where it is taken."""
    try:
        parse_config(raw, motion=True, file="there.json")
    except CheckpointError as error:
        return str(error).splitlines()
    return []


READ = [(kind, path) for kind, raw in FULL.items() for path in paths(raw) if path not in UNREAD or tied(kind, path)]


@pytest.mark.parametrize(("kind", "path"), READ, ids=[f"{kind}-{path}" for kind, path in READ])
def test_each_setting_refuses_each_bad_value_by_its_name(kind: str, path: str):
    for name, value in BAD.items():
        raw = bent(FULL[kind], path, value)
        if name in ALLOWED.get(path, ()):
            assert_sound(parse_config(raw, motion=True))
            continue
        lines = faults(raw)
        # Rotary settings are told as a whole, an object of other settings by those that it lacks.
        named = re.escape(path.removesuffix(".rope_type"))
        assert any(re.match(rf"there\.json: {named}[ .]", line) for line in lines), f"{path}, {name}: {lines}"
        for line in lines:
            assert re.fullmatch(r"there\.json: [\w.]+ .+[;,] .+", line), line
            assert line.isprintable()
            assert len(line) < 300


@pytest.mark.parametrize("kind", FULL)
def test_what_is_not_read_changes_nothing(kind: str):
    whole = parse_config(FULL[kind], motion=True)
    for path in set(paths(FULL[kind])) & UNREAD:
        if not tied(kind, path):
            for value in BAD.values():
                assert parse_config(bent(FULL[kind], path, value), motion=True) == whole


@pytest.mark.parametrize(("kind", "path"), READ, ids=[f"{kind}-{path}" for kind, path in READ])
def test_without_any_one_setting_it_is_read_or_refused(kind: str, path: str):
    raw = copy.deepcopy(FULL[kind])
    outer, _, key = path.rpartition(".")
    del (at(raw, outer) if outer else raw)[key]
    for line in faults(raw):
        assert re.match(rf"there.json: {path} is (missing|None|'v1'); ", line) or "divides" in line
    if not faults(raw):
        assert_sound(parse_config(raw, motion=True))


def assert_sound(config: Any) -> None:
    """Every value is of the kind that its neighbours count on."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            assert_sound(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            assert value >= 1, field.name


def test_a_config_of_text_alone_is_told_setting_by_setting():
    raw = json.loads(json.dumps(CHAT_8B), parse_int=str, parse_float=str)
    numbers = [path for path in paths(CHAT_8B) if path not in UNREAD and type(at(CHAT_8B, path)) in (int, float)]
    assert sorted(line.split(" ")[1] for line in faults(raw)) == sorted(numbers)
    assert len(numbers) == 19


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"slow_pool": [13, 7, 7]}, r"motion_config.slow_pool is \[13, 7, 7\]; expected at most 12 in time"),
        ({"fast_pool": [33, 7, 7]}, r"motion_config.fast_pool is \[33, 7, 7\]; expected at most 32 in time"),
        ({"stem": 12}, r"motion_config.beta is 8; expected a number that divides stem, 12"),
        ({"stems": 1, "\n": 1}, r"motion_config has unknown keys '\\n', 'stems'; take them out"),
    ],
)
def test_motion_settings_that_do_not_go_together(change: dict[str, Any], found: str):
    raw = {**CHAT_8B, "motion_config": MOTION["motion_config"] | change}
    with pytest.raises(CheckpointError, match=rf"\Aconfig.json: {found}") as fault:
        parse_config(raw, motion=True)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("key", ["layer_types", "max_window_layers", "sliding_window"])
def test_a_window_for_every_layer_refuses_whatever_else_is_set(key: str):
    window = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 100}
    raw = NATIVE_8B | {"text_config": NATIVE_8B["text_config"] | window}
    assert faults(raw) == []
    for name, value in BAD.items():
        told = faults(bent(raw, f"text_config.{key}", value))
        assert len(told) == (0 if name in ALLOWED.get(key, ()) else 1), f"{name}: {told}"


def test_heads_of_an_odd_size_cannot_be_rotated():
    raw = bent(bent(CHAT_8B, "llm_config.num_attention_heads", 512), "llm_config.num_key_value_heads", 4)
    with pytest.raises(CheckpointError, match="num_attention_heads is 512; expected one that leaves heads of an even"):
        parse_config(raw, motion=False)


def test_an_image_smaller_than_the_motion_branchs_pooling_is_refused_with_the_smallest_that_is_not():
    config = ModelConfig()
    assert config.tokens_per_frame(196) == 49
    for size in (28, 168):
        with pytest.raises(InputError, match=rf"image size {size}: too small for the motion branch; try 196"):
            config.tokens_per_frame(size)
    with pytest.raises(InputError, match="image size 30: not a multiple of 28; try 196"):
        config.tokens_per_frame(30)
    assert MotionConfig(slow_pool=(8, 1, 1), fast_pool=(32, 2, 2)).smallest_side == 33
