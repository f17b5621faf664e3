"""A model's dimensions, read from the checkpoint's `config.json` in either of its two published formats.

`chat` is the format of OpenGVLab's releases and of the reference (`model_type: internvl_chat`), `transformers` the
native one (`model_type: internvl`). Enters: the parsed JSON. Leaves: frozen dataclasses, or one `CheckpointError` that
lists everything this family of models does not support.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vqathinker_jax.records import CheckpointError, InputError


@dataclass(frozen=True)
class VisionConfig:
    """InternViT. `grid` is the side, in patches, of the learned position grid."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    patch: int = 14
    grid: int = 32
    epsilon: float = 1e-6
    rms_norm: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False

    @property
    def head(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class MotionConfig:
    """SlowFast-R50 8x8, with the widths and depths that a small checkpoint may narrow.

    `stem` is the slow pathway's width after the stem, `beta` the slow-to-fast ratio of widths, `fusion` the ratio of a
    lateral connection's width to the fast pathway's. `slow_stride` of the reference is 4 when scoring and 3 when
    training: the frames decide it (see `motion.slow_stride`). `pool` are the kernels (time, y, x) of the final average
    pooling.
    """

    stem: int = 64
    beta: int = 8
    fusion: int = 2
    expansion: int = 4
    depths: tuple[int, ...] = (3, 4, 6, 3)
    epsilon: float = 1e-5
    slow_pool: tuple[int, int, int] = (8, 7, 7)
    fast_pool: tuple[int, int, int] = (32, 7, 7)

    @property
    def features(self) -> int:
        slow = self.stem * self.expansion * 2 ** (len(self.depths) - 1)
        return slow + slow // self.beta


@dataclass(frozen=True)
class LanguageConfig:
    """Qwen2.5."""

    width: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    mlp: int = 18944
    vocabulary: int = 151674
    rope_theta: float = 1e6
    epsilon: float = 1e-6
    max_positions: int = 32768
    tied: bool = False

    @property
    def head(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """InternVL3 with or without VQAThinker's motion branch. The defaults are the 8B model's."""

    vision: VisionConfig = VisionConfig()
    language: LanguageConfig = LanguageConfig()
    motion: MotionConfig | None = MotionConfig()
    shuffle: int = 2

    def tokens_per_frame(self, image_size: int) -> int:
        """Visual tokens of one square frame of `image_size` pixels.

        Raises: InputError where the size is not a multiple of the patch times the pixel shuffle.
        """
        side, rest = divmod(image_size, self.vision.patch * self.shuffle)
        if rest or not side:
            step = self.vision.patch * self.shuffle
            raise InputError(f"image size {image_size}: not a multiple of {step}; try {max(side, 1) * step}")
        return side * side


def parse_config(raw: Mapping[str, Any], *, motion: bool, file: str = "config.json") -> ModelConfig:
    """The dimensions of a checkpoint of either format.

    `motion` says whether the checkpoint carries the motion branch, which the reference's own config does not tell; a
    narrowed branch has its widths under `motion_config`. `file` is what faults are said to be in.

    Raises: CheckpointError naming every unsupported or missing setting.
    """
    faults: list[str] = []
    kind = raw.get("model_type")
    if kind == "internvl_chat":
        vision, language = _chat_vision(raw, faults), _language(faults, raw, "llm_config")
    elif kind == "internvl":
        vision, language = _native_vision(raw, faults), _language(faults, raw, "text_config")
        # Transformers looks at the outermost setting alone, and takes its absence for a yes.
        language = replace(language, tied=bool(raw.get("tie_word_embeddings", True)))
    else:
        raise CheckpointError(f"{file}: model_type is {kind!r}; expected 'internvl_chat' or 'internvl'")
    shuffle = _shuffle(faults, raw)
    narrowed = _motion(faults, raw) if motion else None
    if faults:
        raise CheckpointError("\n".join(f"{file}: {fault}" for fault in faults))
    return ModelConfig(vision, language, narrowed, shuffle)


def _chat_vision(raw: Mapping[str, Any], faults: list[str]) -> VisionConfig:
    sub = _section(faults, raw, "vision_config")
    _refuse(faults, "ps_version", raw.get("ps_version", "v1"), ["v2"])
    _refuse(faults, "select_layer", raw.get("select_layer", -1), [-1])
    defaults = {"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800}
    return _vision(
        faults,
        {**defaults, "image_size": 224, "norm_type": "rms_norm", **sub},
        qkv_bias=bool(sub.get("qkv_bias", False)),
        qk_norm=bool(sub.get("qk_normalization", True)),
    )


def _native_vision(raw: Mapping[str, Any], faults: list[str]) -> VisionConfig:
    sub = _section(faults, raw, "vision_config")
    _refuse(faults, "vision_feature_layer", raw.get("vision_feature_layer", -1), [-1])
    _refuse(faults, "vision_feature_select_strategy", raw.get("vision_feature_select_strategy", "default"), ["default"])
    _refuse(faults, "projector_hidden_act", raw.get("projector_hidden_act", "gelu"), ["gelu"])
    _refuse(faults, "vision_config.use_mean_pooling", sub.get("use_mean_pooling", True), [True])
    _refuse(faults, "vision_config.use_mask_token", sub.get("use_mask_token", False), [False])
    positions = sub.get("use_absolute_position_embeddings", True)
    _refuse(faults, "vision_config.use_absolute_position_embeddings", positions, [True])
    defaults = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return _vision(
        faults,
        {**defaults, "image_size": 448, "norm_type": "layer_norm", **sub},
        qkv_bias=bool(sub.get("attention_bias", False)),
        qk_norm=bool(sub.get("use_qk_norm", False)),
    )


_VISION = {
    "width": ("hidden_size", None),
    "layers": ("num_hidden_layers", None),
    "heads": ("num_attention_heads", None),
    "mlp": ("intermediate_size", None),
    "patch": ("patch_size", 14),
    "epsilon": ("layer_norm_eps", 1e-6),
}
_LANGUAGE = {
    "width": ("hidden_size", None),
    "layers": ("num_hidden_layers", None),
    "heads": ("num_attention_heads", None),
    "kv_heads": ("num_key_value_heads", None),
    "mlp": ("intermediate_size", None),
    "vocabulary": ("vocab_size", None),
    "epsilon": ("rms_norm_eps", 1e-6),
    "max_positions": ("max_position_embeddings", 32768),
}


def _vision(faults: list[str], sub: Mapping[str, Any], *, qkv_bias: bool, qk_norm: bool) -> VisionConfig:
    _refuse(faults, "vision_config.hidden_act", sub.get("hidden_act", "gelu"), ["gelu"])
    _refuse(faults, "vision_config.norm_type", sub["norm_type"], ["layer_norm", "rms_norm"])
    _refuse(faults, "vision_config.num_channels", sub.get("num_channels", 3), [3])
    values = _take(faults, sub, "vision_config", _VISION)
    _divides(faults, "vision_config", "num_attention_heads", values["heads"], "hidden_size", values["width"])
    grid = _side(sub["image_size"]) // values["patch"]
    rms_norm = sub["norm_type"] == "rms_norm"
    return VisionConfig(**values, grid=grid, rms_norm=rms_norm, qkv_bias=qkv_bias, qk_norm=qk_norm)


def _language(faults: list[str], raw: Mapping[str, Any], key: str) -> LanguageConfig:
    sub = _section(faults, raw, key)
    kind = sub.get("model_type") or next(iter(sub.get("architectures") or []), None)
    if sub and kind not in ("qwen2", "Qwen2ForCausalLM"):
        cure = "the language model must be Qwen2.5, as in InternVL3 1B, 2B, 8B, 14B, 38B and 78B (the 9B has InternLM3)"
        faults.append(f"{key}.model_type is {kind!r}; {cure}")
        return LanguageConfig()
    _refuse(faults, f"{key}.hidden_act", sub.get("hidden_act", "silu"), ["silu"])
    _refuse(faults, f"{key}.use_sliding_window", bool(sub.get("use_sliding_window", False)), [False])
    rope = sub.get("rope_parameters") or {}
    scaling = sub.get("rope_scaling") or rope
    # Dynamic NTK, which the released configs name, changes nothing up to max_position_embeddings.
    _refuse(
        faults, f"{key}.rope_scaling", scaling.get("rope_type", scaling.get("type", "default")), ["default", "dynamic"]
    )
    theta = sub.get("rope_theta", rope.get("rope_theta", 1e4))
    tied = sub.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    values = _take(faults, sub, key, _LANGUAGE) if sub else {}
    config = LanguageConfig(**values, rope_theta=float(theta), tied=bool(tied))
    _divides(faults, key, "num_attention_heads", config.heads, "hidden_size", config.width)
    _divides(faults, key, "num_key_value_heads", config.kv_heads, "num_attention_heads", config.heads)
    _refuse(faults, f"{key}.head_dim", sub.get("head_dim") or config.head, [config.head])
    return config


def _motion(faults: list[str], raw: Mapping[str, Any]) -> MotionConfig:
    narrowed = raw.get("motion_config", {})
    unknown = sorted(set(narrowed) - set(MotionConfig.__dataclass_fields__))
    if unknown:
        faults.append(f"motion_config has unknown keys {', '.join(unknown)}")
        return MotionConfig()
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in narrowed.items()}
    return MotionConfig(**values)


def _section(faults: list[str], raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = raw.get(key)
    if isinstance(section, Mapping) and section:
        return section
    faults.append(f"{key} is missing")
    return {}


def _take(faults: list[str], sub: Mapping[str, Any], key: str, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The values of a section under our names; one missing or no positive number is a fault, and stands as 1."""
    values: dict[str, Any] = {}
    for ours, (theirs, default) in table.items():
        value = _side(sub.get(theirs, default))
        if not isinstance(value, int | float) or value <= 0:
            faults.append(
                f"{key}.{theirs} is {value!r}; expected a number" if theirs in sub else f"{key}.{theirs} is missing"
            )
            value = 1
        values[ours] = value
    return values


def _side(value: Any) -> Any:
    """Native configs write some square sizes as a pair."""
    return value[0] if isinstance(value, list | tuple) else value


def _shuffle(faults: list[str], raw: Mapping[str, Any]) -> int:
    ratio = raw.get("downsample_ratio", 0.5)
    _refuse(faults, "downsample_ratio", ratio, [0.5, 1.0])
    return round(1 / (ratio or 1))


def _divides(faults: list[str], key: str, part: str, parts: int, whole: str, size: int) -> None:
    if size % parts:
        faults.append(f"{key}.{part} is {parts}, which does not divide {whole}, {size}")


def _refuse(faults: list[str], key: str, value: Any, supported: list[Any]) -> None:
    if value not in supported:
        faults.append(f"{key} is {value!r}; supported: {', '.join(map(repr, supported))}")
