"""A model's dimensions, read from the checkpoint's `config.json` in either of its two published formats.

`chat` is the format of OpenGVLab's releases and of the reference (`model_type: internvl_chat`), `transformers` the
native one (`model_type: internvl`). Enters: the parsed JSON. Leaves: frozen dataclasses, or one `CheckpointError` that
lists everything this family of models does not support.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqathinker_jax.records import CheckpointError


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
            raise CheckpointError(f"image size {image_size}: not a multiple of {step}; try {max(side, 1) * step}")
        return side * side


def parse_config(raw: Mapping[str, Any], *, motion: bool) -> ModelConfig:
    """The dimensions of a checkpoint of either format.

    `motion` says whether the checkpoint carries the motion branch, which the reference's own config does not tell; a
    narrowed branch has its widths under `motion_config`.

    Raises: CheckpointError naming every unsupported or missing setting.
    """
    faults: list[str] = []
    kind = raw.get("model_type")
    if kind == "internvl_chat":
        vision, language, shuffle = _chat(raw, faults)
    elif kind == "internvl":
        vision, language, shuffle = _transformers(raw, faults)
    else:
        raise CheckpointError(f"config.json: model_type {kind!r}; expected 'internvl_chat' or 'internvl'")
    if faults:
        raise CheckpointError("\n".join(f"config.json: {fault}" for fault in faults))
    return ModelConfig(vision, language, _motion(raw) if motion else None, shuffle)


def _chat(raw: Mapping[str, Any], faults: list[str]) -> tuple[VisionConfig, LanguageConfig, int]:
    sub = raw.get("vision_config", {})
    _refuse(faults, "ps_version", raw.get("ps_version", "v1"), ["v2"])
    _refuse(faults, "select_layer", raw.get("select_layer", -1), [-1])
    _refuse(faults, "vision_config.hidden_act", sub.get("hidden_act", "gelu"), ["gelu"])
    norm = sub.get("norm_type", "rms_norm")
    _refuse(faults, "vision_config.norm_type", norm, ["layer_norm", "rms_norm"])
    vision = VisionConfig(
        **_take(faults, sub, "vision_config", _VISION),
        grid=_side(sub.get("image_size", 224)) // _side(sub.get("patch_size", 14)),
        rms_norm=norm == "rms_norm",
        qkv_bias=bool(sub.get("qkv_bias", False)),
        qk_norm=bool(sub.get("qk_normalization", True)),
    )
    return vision, _language(faults, raw, "llm_config"), _shuffle(raw)


def _transformers(raw: Mapping[str, Any], faults: list[str]) -> tuple[VisionConfig, LanguageConfig, int]:
    sub = raw.get("vision_config", {})
    _refuse(faults, "vision_feature_layer", raw.get("vision_feature_layer", -1), [-1])
    _refuse(faults, "projector_hidden_act", raw.get("projector_hidden_act", "gelu"), ["gelu"])
    _refuse(faults, "vision_config.hidden_act", sub.get("hidden_act", "gelu"), ["gelu"])
    _refuse(faults, "vision_config.use_mean_pooling", sub.get("use_mean_pooling", True), [True])
    norm = sub.get("norm_type", "layer_norm")
    _refuse(faults, "vision_config.norm_type", norm, ["layer_norm", "rms_norm"])
    vision = VisionConfig(
        **_take(faults, sub, "vision_config", _VISION),
        grid=_side(sub.get("image_size", 448)) // _side(sub.get("patch_size", 14)),
        rms_norm=norm == "rms_norm",
        qkv_bias=bool(sub.get("attention_bias", False)),
        qk_norm=bool(sub.get("use_qk_norm", False)),
    )
    return vision, _language(faults, raw, "text_config"), _shuffle(raw)


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


def _language(faults: list[str], raw: Mapping[str, Any], key: str) -> LanguageConfig:
    sub = raw.get(key, {})
    kind = sub.get("model_type") or next(iter(sub.get("architectures", [])), None)
    cure = "only InternVL3 with a Qwen2.5 language model is supported (the 9B uses InternLM3)"
    if kind not in ("qwen2", "Qwen2ForCausalLM"):
        faults.append(f"{key}.model_type is {kind!r}; {cure}")
    _refuse(faults, f"{key}.hidden_act", sub.get("hidden_act", "silu"), ["silu"])
    _refuse(faults, f"{key}.use_sliding_window", bool(sub.get("use_sliding_window", False)), [False])
    rope = sub.get("rope_parameters") or {}
    theta = sub.get("rope_theta", rope.get("rope_theta", 1e6))
    tied = sub.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    return LanguageConfig(**_take(faults, sub, key, _LANGUAGE), rope_theta=float(theta), tied=bool(tied))


def _motion(raw: Mapping[str, Any]) -> MotionConfig:
    narrowed = raw.get("motion_config", {})
    unknown = set(narrowed) - set(MotionConfig.__dataclass_fields__)
    if unknown:
        raise CheckpointError(f"config.json: motion_config has unknown keys {sorted(unknown)}")
    return MotionConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in narrowed.items()})


def _take(faults: list[str], sub: Mapping[str, Any], key: str, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for ours, (theirs, default) in table.items():
        value = sub.get(theirs, default)
        if value is None:
            faults.append(f"{key}.{theirs} is missing")
            value = 1
        values[ours] = _side(value)
    return values


def _side(value: Any) -> Any:
    """Native configs write some square sizes as a pair."""
    return value[0] if isinstance(value, list | tuple) else value


def _shuffle(raw: Mapping[str, Any]) -> int:
    return round(1 / raw.get("downsample_ratio", 0.5))


def _refuse(faults: list[str], key: str, value: Any, supported: list[Any]) -> None:
    if value not in supported:
        faults.append(f"{key} is {value!r}; supported: {', '.join(map(repr, supported))}")
