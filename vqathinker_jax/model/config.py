"""A model's dimensions, read from the checkpoint's `config.json` in either of its two published formats.

`chat` is the format of OpenGVLab's releases and of the reference (`model_type: internvl_chat`), `transformers` the
native one (`model_type: internvl`). Enters: the parsed JSON. Leaves: frozen dataclasses, or one `CheckpointError` that
lists everything this family of models does not support.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vqathinker_jax.model.section import FEW, Section
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

    @property
    def smallest_side(self) -> int:
        """Pixels a side from which the last feature map, halved by the stem twice, fills a window of the pooling."""
        return (max(*self.slow_pool[1:], *self.fast_pool[1:]) - 1) * 2 ** (1 + len(self.depths)) + 1


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
class ViewConfig:
    """How much of a video the model is made to see: so many frames, as squares of so many pixels a side.

    An addition of ours, under `view`; a checkpoint without it is shown what the reference scores.
    """

    frames: int = 12
    image_size: int = 560


@dataclass(frozen=True)
class ModelConfig:
    """InternVL3 with or without VQAThinker's motion branch. The defaults are the 8B model's."""

    vision: VisionConfig = VisionConfig()
    language: LanguageConfig = LanguageConfig()
    motion: MotionConfig | None = MotionConfig()
    shuffle: int = 2
    view: ViewConfig = ViewConfig()

    def tokens_per_frame(self, image_size: int) -> int:
        """Visual tokens of one square frame of `image_size` pixels.

        Raises: InputError where the size is not a multiple of the patch times the pixel shuffle, or too small for the
        motion branch.
        """
        step = self.vision.patch * self.shuffle
        smallest = -(-(self.motion.smallest_side if self.motion else 1) // step)
        side, rest = divmod(image_size, step)
        if rest or side < 1:
            raise InputError(f"image size {image_size}: not a multiple of {step}; try {max(side, smallest) * step}")
        if side < smallest:
            raise InputError(f"image size {image_size}: too small for the motion branch; try {smallest * step}")
        return side * side


def parse_config(raw: Mapping[str, Any], *, motion: bool, file: str = "config.json") -> ModelConfig:
    """The dimensions of a checkpoint of either format.

    `motion` says whether the checkpoint carries the motion branch, which the reference's own config does not tell; a
    narrowed branch has its widths under `motion_config`. `file` is what faults are said to be in.

    Raises: CheckpointError naming every unsupported or missing setting.
    """
    faults: list[str] = []
    outer = Section("", raw, faults)
    kind = raw.get("model_type")
    if kind == "internvl_chat":
        section = outer.inner("llm_config")
        section.one_of("use_sliding_window", False, [False, None])
        # The reference's Transformers masks by this setting, 4096 where absent, whatever use_sliding_window says
        # (huggingface/transformers issue 38002). The released configs say null; a prompt of 12 frames is longer.
        set_to = section.values.get("sliding_window", 4096)
        window = None if set_to is None else section.whole("sliding_window", 4096)
        vision, language = _chat_vision(outer), replace(_language(section), window=window)
    elif kind == "internvl":
        # Transformers looks at the outermost setting alone, and takes its absence for a yes.
        tied = outer.flag("tie_word_embeddings", True)
        section = outer.inner("text_config")
        vision, language = _native_vision(outer), replace(_language(section), tied=tied, window=_native_window(section))
    else:
        raise CheckpointError(f"{file}: model_type is {reprlib.repr(kind)}; expected 'internvl_chat' or 'internvl'")
    shuffle = 1 if outer.one_of("downsample_ratio", 0.5, [0.5, 1.0]) == 1.0 else 2
    narrowed, view = _motion(outer) if motion else None, _view(outer)
    if faults:
        raise CheckpointError("\n".join(f"{file}: {fault}" for fault in faults))
    return ModelConfig(vision, language, narrowed, shuffle, view)


def _chat_vision(outer: Section) -> VisionConfig:
    outer.one_of("ps_version", "v1", ["v2"])
    outer.one_of("select_layer", -1, [-1])
    section = outer.inner("vision_config")
    return _vision(
        section,
        {"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800},
        image_size=224,
        norm="rms_norm",
        qkv_bias=section.flag("qkv_bias", False),
        qk_norm=section.flag("qk_normalization", True),
    )


def _native_vision(outer: Section) -> VisionConfig:
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
        qkv_bias=section.flag("attention_bias", False),
        qk_norm=section.flag("use_qk_norm", False),
    )


def _vision(
    section: Section, defaults: Mapping[str, int], *, image_size: int, norm: str, qkv_bias: bool, qk_norm: bool
) -> VisionConfig:
    """The tower of either format; `defaults`, `image_size` and `norm` are those of the class that wrote the config,
    which omits what equals them."""
    section = replace(section, values={**defaults, **section.values})
    section.one_of("hidden_act", "gelu", ["gelu"])
    section.one_of("num_channels", 3, [3])
    config = VisionConfig(
        width=section.whole("hidden_size"),
        layers=section.whole("num_hidden_layers", most=FEW),
        heads=section.whole("num_attention_heads"),
        mlp=section.whole("intermediate_size"),
        patch=section.side("patch_size", 14),
        grid=0,
        epsilon=section.real("layer_norm_eps", 1e-6),
        rms_norm=section.one_of("norm_type", norm, ["layer_norm", "rms_norm"]) == "rms_norm",
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )
    section.divides("num_attention_heads", config.heads, config.width, "hidden_size")
    size = section.side("image_size", image_size)
    if 0 < size < config.patch:
        section.refuse("image_size", f"at least patch_size, {config.patch}")
    return replace(config, grid=size // (config.patch or 1))


def _native_window(section: Section) -> int | None:
    """The window of Transformers' format, which may be there for the layers above some number."""
    if section.one_of("use_sliding_window", False, [False, True, None]) is not True:
        return None
    kinds = section.values.get("layer_types")
    if kinds is None:
        every = section.values.get("max_window_layers", 28) == 0
    else:
        every = isinstance(kinds, list) and all(kind == "sliding_attention" for kind in kinds)
    if not every:
        section.faults.append(f"{section.name}use_sliding_window is set for some layers only; supported: all or none")
    return section.whole("sliding_window", 4096)


def _language(section: Section) -> LanguageConfig:
    values = section.values
    kind, named = values.get("model_type"), values.get("architectures")
    if kind is None and isinstance(named, list) and named:
        kind = named[0]
    if kind not in ("qwen2", "Qwen2ForCausalLM"):
        cure = "the language model must be Qwen2.5, as in InternVL3 1B, 2B, 8B, 14B, 38B and 78B (the 9B has InternLM3)"
        section.faults.append(f"{section.name}model_type is {reprlib.repr(kind)}; {cure}")
        return LanguageConfig()
    section.one_of("hidden_act", "silu", ["silu"])
    config = LanguageConfig(
        width=section.whole("hidden_size"),
        layers=section.whole("num_hidden_layers", most=FEW),
        heads=section.whole("num_attention_heads"),
        kv_heads=section.whole("num_key_value_heads"),
        mlp=section.whole("intermediate_size"),
        vocabulary=section.whole("vocab_size"),
        rope_theta=_rope_theta(section),
        epsilon=section.real("rms_norm_eps", 1e-6),
        max_positions=section.whole("max_position_embeddings", 32768),
        tied=section.flag("tie_word_embeddings", False),
    )
    section.divides("num_key_value_heads", config.kv_heads, config.heads, "num_attention_heads")
    if section.divides("num_attention_heads", config.heads, config.width, "hidden_size"):
        section.one_of("head_dim", config.head, [config.head, None])
        if config.head % 2:
            section.refuse("num_attention_heads", "one that leaves heads of an even size, for their rotation")
    return config


def _rope_theta(section: Section) -> float:
    """The base of the rotary angles, which newer configs keep among `rope_parameters`."""
    key = "rope_scaling" if section.values.get("rope_parameters") in (None, {}) else "rope_parameters"
    rope = {} if section.values.get(key) is None else section.values[key]
    if not isinstance(rope, Mapping):
        section.refuse(key, "an object of settings, or null")
        rope = {}
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "dynamic"):
        # Dynamic NTK, which the released configs name, changes nothing up to max_position_embeddings.
        section.faults.append(f"{section.name}{key} is {reprlib.repr(dict(rope))}; supported: 'default', 'dynamic'")
    inner = replace(section, name=f"{section.name}{key}.", values=rope)
    return (section if "rope_theta" in section.values else inner).real("rope_theta", 1e4)


def _view(outer: Section) -> ViewConfig:
    if "view" not in outer.values:
        return ViewConfig()
    section = outer.inner("view")
    return ViewConfig(section.whole("frames", most=FEW), section.whole("image_size"))


def _motion(outer: Section) -> MotionConfig:
    if "motion_config" not in outer.values or outer.values["motion_config"] == {}:
        return MotionConfig()
    full, section = MotionConfig(), outer.inner("motion_config")
    unknown = sorted(section.values.keys() - MotionConfig.__dataclass_fields__.keys())
    if unknown:
        outer.faults.append(f"motion_config has unknown keys {', '.join(map(reprlib.repr, unknown))}; take them out")
        return full
    config = MotionConfig(
        stem=section.whole("stem", full.stem, FEW),
        beta=section.whole("beta", full.beta, FEW),
        fusion=section.whole("fusion", full.fusion, FEW),
        expansion=section.whole("expansion", full.expansion, FEW),
        depths=section.wholes("depths", full.depths),
        epsilon=section.real("epsilon", full.epsilon),
        slow_pool=section.wholes("slow_pool", full.slow_pool),
        fast_pool=section.wholes("fast_pool", full.fast_pool),
    )
    section.divides("beta", config.beta, config.stem, "stem")
    for key, span, steps in (("slow_pool", config.slow_pool[0], 12), ("fast_pool", config.fast_pool[0], 32)):
        if span > steps:
            section.refuse(key, f"at most {steps} in time, the steps that every video is repeated to (motion.schedule)")
    return config
