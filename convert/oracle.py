"""The PyTorch model of a checkpoint folder, taken apart into what a cross-check looks at.

`transformers` is `InternVLForConditionalGeneration`, for a folder in either format: chat format is brought under its
names here once more, after Transformers' own conversion script and not by our rules, which are on trial. Its weights
can stay on disk and be read as each layer is reached. `remote-code` is the model that the folder's own Python files
define; these run, so it must be asked for by name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convert import motion
from convert.tensors import Tensor, open_folder, open_slowfast
from vqathinker_jax.checkpoint import read_config
from vqathinker_jax.records import CheckpointError, InputError
from vqathinker_jax.stored import DTYPES

if TYPE_CHECKING:
    import torch

Reference = Literal["transformers", "remote-code"]

_FROM_CHAT = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (
        r"^vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.",
        r"model.vision_tower.encoder.layer.\1.attention.projection_layer.",
    ),
    (r"^vision_model\.encoder\.layers\.(\d+)\.attn\.", r"model.vision_tower.encoder.layer.\1.attention."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm1\.", r"model.vision_tower.encoder.layer.\1.layernorm_before."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm2\.", r"model.vision_tower.encoder.layer.\1.layernorm_after."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.ls", r"model.vision_tower.encoder.layer.\1.lambda_"),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)
_FROM_HUB = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)

Read = Callable[[], "torch.Tensor"]


@dataclass(frozen=True)
class Oracle:
    """The parts of a PyTorch model.

    see: normalised pixels [F, C, Y, X] to visual tokens [F, L, D]. weights: tensors by the names that they have in
    `whole`; those of the motion branch, which `whole` may lack, by the reference's. motion_settings: the config's
    `motion_config`. spelling: the key in `SPELLINGS` of those names.
    """

    whole: Any
    embedding: Any
    vision_layers: Sequence[Any]
    projector: Any
    words: Any
    decoder_layers: Sequence[Any]
    norm: Any
    language: Any
    see: Callable[["torch.Tensor"], "torch.Tensor"]
    weights: Mapping[str, Read]
    motion_settings: Mapping[str, Any]
    spelling: str

    @property
    def has_motion(self) -> bool:
        return any(name.startswith(motion.PROJECTOR) for name in self.weights)


def open_oracle(directory: Path, kind: Reference, slowfast: Path | None, dtype: str, *, on_disk: bool) -> Oracle:
    """The model of a folder in chat or Transformers' format. on_disk: read each layer's weights whenever it runs.

    Raises: InputError where torch or transformers is not installed. CheckpointError where the folder does not load.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        cure = "pip install torch==2.13.0 'transformers>=5.6', or run this half elsewhere and bring it with --against"
        raise InputError(f"crosscheck needs PyTorch for the reference ({error}); {cure}") from error
    if kind == "remote-code":
        if on_disk:
            raise InputError("remote code takes its weights into memory; leave --weights disk out")
        return _remote(directory, slowfast, getattr(torch, dtype), transformers)
    return _transformers(directory, slowfast, getattr(torch, dtype), transformers, on_disk=on_disk)


def _transformers(directory: Path, slowfast: Path | None, dtype: Any, transformers: Any, *, on_disk: bool) -> Oracle:
    import torch

    raw = read_config(directory)
    tensors = _tensors(directory, slowfast)
    weights = _renamed(tensors, chat=raw["model_type"] == "internvl_chat")
    config = transformers.InternVLConfig(**(_settings(raw) if raw["model_type"] == "internvl_chat" else raw))
    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    inner = model.model
    rotary = type(inner.language_model.rotary_emb)
    inner.language_model.rotary_emb = rotary(config.text_config)  # made of numbers, not of weights
    if config.tie_word_embeddings and "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    oracle = Oracle(
        whole=model,
        embedding=inner.vision_tower.embeddings,
        vision_layers=inner.vision_tower.encoder.layer,
        projector=inner.multi_modal_projector,
        words=inner.language_model.embed_tokens,
        decoder_layers=inner.language_model.layers,
        norm=inner.language_model.norm,
        language=model,
        see=lambda pixels: model.model.get_image_features(pixels, return_dict=True).pooler_output,
        weights=_in_dtype(weights, dtype),
        motion_settings=raw.get("motion_config", {}),
        spelling="transformers-state",
    )
    _place(oracle, on_disk=on_disk)
    if config.tie_word_embeddings and not on_disk:
        model.lm_head.weight = oracle.words.weight
    return oracle


def _remote(directory: Path, slowfast: Path | None, dtype: Any, transformers: Any) -> Oracle:
    if read_config(directory)["model_type"] != "internvl_chat" or "auto_map" not in read_config(directory):
        cure = "use --reference transformers"
        raise CheckpointError(f"{directory}: has no code of its own (no auto_map in a chat-format config.json); {cure}")
    model = transformers.AutoModel.from_pretrained(directory, trust_remote_code=True, dtype=dtype).eval()
    weights = {name: tensor for name, tensor in _tensors(directory, slowfast).items() if _is_motion(name)}
    return Oracle(
        whole=model,
        embedding=model.vision_model.embeddings,
        vision_layers=model.vision_model.encoder.layers,
        projector=model.mlp1,
        words=model.language_model.get_input_embeddings(),
        decoder_layers=model.language_model.model.layers,
        norm=model.language_model.model.norm,
        language=model.language_model,
        see=model.extract_feature,
        weights=_in_dtype(_renamed(weights, chat=True), dtype),
        motion_settings=read_config(directory).get("motion_config", {}),
        spelling="chat",
    )


def _tensors(directory: Path, slowfast: Path | None) -> dict[str, Tensor]:
    tensors = open_folder(directory)
    own, hub = motion.ROOTS
    added = {} if slowfast is None else open_slowfast(slowfast)
    return tensors | {re.sub(f"^{re.escape(hub)}", own, name): tensor for name, tensor in added.items()}


def _is_motion(name: str) -> bool:
    return name.startswith((motion.PROJECTOR, motion.ROOTS[0]))


def _renamed(tensors: Mapping[str, Tensor], *, chat: bool) -> dict[str, Read]:
    """The tensors under the names of a running Transformers model, not read yet."""
    weights: dict[str, Read] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in (*_FROM_CHAT, *_FROM_HUB) if chat else _FROM_HUB:
            new = re.sub(pattern, replacement, new)
        if chat and ".attention.qkv." in new:
            for number, part in enumerate("qkv"):
                weights[new.replace("qkv", f"{part}_proj")] = _third(tensor, number)
        else:
            weights[new] = lambda tensor=tensor: as_torch(tensor.read())
    return weights


def _third(tensor: Tensor, number: int) -> Read:
    def read() -> "torch.Tensor":
        return as_torch(tensor.read()).chunk(3)[number].clone()

    return read


def _in_dtype(weights: Mapping[str, Read], dtype: Any) -> dict[str, Read]:
    return {name: (lambda read=read: read().to(dtype)) for name, read in weights.items()}


def as_torch(array: np.ndarray) -> "torch.Tensor":
    """The array as a tensor that shares its memory."""
    import torch

    if array.dtype == DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Chat format's config, its classes' defaults included, as Transformers' own conversion script turns it around."""
    defaults = {"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800}
    vision = {**defaults, "norm_type": "rms_norm", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14}
    read = {key: raw["vision_config"].get(key, default) for key, default in vision.items()}
    read["attention_bias"] = raw["vision_config"].get("qkv_bias", False)
    read["use_qk_norm"] = raw["vision_config"].get("qk_normalization", True)
    language = {key: raw["llm_config"][key] for key in _LANGUAGE if key in raw["llm_config"]}
    # The reference's release masks by the window whatever use_sliding_window says; today's has to be told to.
    window = raw["llm_config"].get("sliding_window", 4096)
    language |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 0}
    return {
        "vision_config": {**read, "model_type": "internvl_vision"},
        "text_config": {**language, "model_type": "qwen2"},
        "downsample_ratio": raw.get("downsample_ratio", 0.5),
        "tie_word_embeddings": language.get("tie_word_embeddings", False),
    }


_LANGUAGE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def _place(oracle: Oracle, *, on_disk: bool) -> None:
    """Give the model its weights: all of them now, or those of each part whenever it runs, to be dropped after."""
    parts = [oracle.embedding, *oracle.vision_layers, oracle.projector, oracle.words, *oracle.decoder_layers]
    parts += [oracle.norm, oracle.whole.lm_head]
    prefixes = {module: name for name, module in oracle.whole.named_modules()}
    for part in parts:
        if on_disk:
            part.register_forward_pre_hook(lambda module, _: _fill(module, prefixes[module], oracle.weights))
            part.register_forward_hook(_drop)
        else:
            _fill(part, prefixes[part], oracle.weights)


def _drop(part: Any, *_: Any) -> None:
    part.to("meta")


def _fill(part: Any, prefix: str, weights: Mapping[str, Read]) -> None:
    import torch

    for name, _ in list(part.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, torch.nn.Parameter(weights[f"{prefix}.{name}"](), requires_grad=False))
