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
    lateral connection's width to the fast pathway's. The pools are the kernels (time, y, x) of the final average
    pooling. How many frames the slow pathway sees follows from how many there are: `motion.schedule`.
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
    """Qwen2.5. `window`: how many tokens back, itself included, a token sees; None for all."""

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
    window: int | None = None

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
    outer = _Section("", raw, faults)
    kind = raw.get("model_type")
    if kind == "internvl_chat":
        section = outer.inner("llm_config")
        # The reference's Transformers masks by this setting, 4096 where absent, whatever use_sliding_window says
        # (huggingface/transformers issue 38002). The released configs say null; a prompt of 12 frames is longer.
        window = section.values.get("sliding_window", 4096)
        vision, language = _chat_vision(outer), replace(_language(section), window=window)
    elif kind == "internvl":
        # Transformers looks at the outermost setting alone, and takes its absence for a yes.
        tied = bool(raw.get("tie_word_embeddings", True))
        vision, language = _native_vision(outer), replace(_language(outer.inner("text_config")), tied=tied)
    else:
        raise CheckpointError(f"{file}: model_type is {kind!r}; expected 'internvl_chat' or 'internvl'")
    shuffle = {0.5: 2, 1.0: 1}.get(outer.one_of("downsample_ratio", 0.5, [0.5, 1.0]), 0)
    narrowed = _motion(outer) if motion else None
    if faults:
        raise CheckpointError("\n".join(f"{file}: {fault}" for fault in faults))
    return ModelConfig(vision, language, narrowed, shuffle)


@dataclass(frozen=True)
class _Section:
    """An object of the config; what is wrong in it goes to `faults`, and reading goes on."""

    name: str
    values: Mapping[str, Any]
    faults: list[str]

    def inner(self, key: str) -> "_Section":
        """The object under `key`; where there is none, that is the one fault, and nothing is said of its inside."""
        found = self.values.get(key)
        if isinstance(found, Mapping) and found:
            return _Section(f"{self.name}{key}.", found, self.faults)
        self.faults.append(f"{self.name}{key} is missing")
        return _Section(f"{self.name}{key}.", {}, [])

    def one_of(self, key: str, default: Any, supported: list[Any]) -> Any:
        """The setting, which is a fault unless this model supports it."""
        found = self.values.get(key, default)
        if found not in supported:
            self.faults.append(f"{self.name}{key} is {found!r}; supported: {', '.join(map(repr, supported))}")
        return found

    def number(self, key: str, default: float | None = None, *, parts: str | None = None) -> Any:
        """The positive number under `key`, 0 where it is none; `parts` is the setting that must divide it."""
        found = self.values.get(key, default)
        found = found[0] if isinstance(found, list) and found else found  # native configs write square sizes as pairs
        if not isinstance(found, int | float) or found <= 0:
            what = "missing" if found is None else f"{found!r}; expected a positive number"
            self.faults.append(f"{self.name}{key} is {what}")
            return 0
        count = self.values.get(parts) if parts else None
        if isinstance(count, int) and count > 0 and found % count:
            self.faults.append(f"{self.name}{parts} is {count}, which does not divide {key}, {found}")
        return found


def _chat_vision(outer: _Section) -> VisionConfig:
    outer.one_of("ps_version", "v1", ["v2"])
    outer.one_of("select_layer", -1, [-1])
    section = outer.inner("vision_config")
    return _vision(
        section,
        {"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800},
        image_size=224,
        norm="rms_norm",
        qkv_bias=bool(section.values.get("qkv_bias", False)),
        qk_norm=bool(section.values.get("qk_normalization", True)),
    )


def _native_vision(outer: _Section) -> VisionConfig:
    outer.one_of("vision_feature_layer", -1, [-1])
    outer.one_of("vision_feature_select_strategy", "default", ["default"])
    outer.one_of("projector_hidden_act", "gelu", ["gelu"])
    section = outer.inner("vision_config")
    section.one_of("use_mean_pooling", True, [True])
    section.one_of("use_mask_token", False, [False])
    section.one_of("use_absolute_position_embeddings", True, [True])
    return _vision(
        section,
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        image_size=448,
        norm="layer_norm",
        qkv_bias=bool(section.values.get("attention_bias", False)),
        qk_norm=bool(section.values.get("use_qk_norm", False)),
    )


def _vision(
    section: _Section, defaults: Mapping[str, int], *, image_size: int, norm: str, qkv_bias: bool, qk_norm: bool
) -> VisionConfig:
    """The tower of either format; `defaults`, `image_size` and `norm` are those of the class that wrote the config,
    which omits what equals them."""
    section = replace(section, values={**defaults, **section.values})
    section.one_of("hidden_act", "gelu", ["gelu"])
    section.one_of("num_channels", 3, [3])
    patch = section.number("patch_size", 14)
    return VisionConfig(
        width=section.number("hidden_size", parts="num_attention_heads"),
        layers=section.number("num_hidden_layers"),
        heads=section.number("num_attention_heads"),
        mlp=section.number("intermediate_size"),
        patch=patch,
        grid=section.number("image_size", image_size) // (patch or 1),
        epsilon=section.number("layer_norm_eps", 1e-6),
        rms_norm=section.one_of("norm_type", norm, ["layer_norm", "rms_norm"]) == "rms_norm",
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def _language(section: _Section) -> LanguageConfig:
    values = section.values
    kind = values.get("model_type") or next(iter(values.get("architectures") or []), None)
    if kind not in ("qwen2", "Qwen2ForCausalLM"):
        cure = "the language model must be Qwen2.5, as in InternVL3 1B, 2B, 8B, 14B, 38B and 78B (the 9B has InternLM3)"
        section.faults.append(f"{section.name}model_type is {kind!r}; {cure}")
        return LanguageConfig()
    section.one_of("hidden_act", "silu", ["silu"])
    section.one_of("use_sliding_window", False, [False, None])
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "dynamic"):
        # Dynamic NTK, which the released configs name, changes nothing up to max_position_embeddings.
        section.faults.append(f"{section.name}rope_scaling is {dict(rope)!r}; supported: 'default', 'dynamic'")
    config = LanguageConfig(
        width=section.number("hidden_size", parts="num_attention_heads"),
        layers=section.number("num_hidden_layers"),
        heads=section.number("num_attention_heads", parts="num_key_value_heads"),
        kv_heads=section.number("num_key_value_heads"),
        mlp=section.number("intermediate_size"),
        vocabulary=section.number("vocab_size"),
        rope_theta=float(values.get("rope_theta", rope.get("rope_theta", 1e4))),
        epsilon=section.number("rms_norm_eps", 1e-6),
        max_positions=section.number("max_position_embeddings", 32768),
        tied=bool(values.get("tie_word_embeddings", False)),
    )
    if config.heads:
        section.one_of("head_dim", config.head, [config.head, None])
    return config


def _motion(outer: _Section) -> MotionConfig:
    narrowed = outer.values.get("motion_config", {})
    unknown = sorted(set(narrowed) - set(MotionConfig.__dataclass_fields__))
    if unknown:
        outer.faults.append(f"motion_config has unknown keys {', '.join(unknown)}")
        return MotionConfig()
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in narrowed.items()}
    return MotionConfig(**values)
