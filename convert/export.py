"""A checkpoint of any kind out into the PyTorch world, one tensor in memory at a time.

`chat` holds everything in one set of shards, as the reference loads it. `transformers` is what
`InternVLForConditionalGeneration.from_pretrained` loads; that class has no motion branch, so the branch lies beside in
`motion.safetensors`, from where ours takes it again. What a checkpoint was published with and our model has no use for
(counters of batches, code of its own) goes back out with it. Adapters are merged before a native checkpoint is written,
so there are none here.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from convert import motion
from convert.formats import SPELLINGS
from convert.origin import Origin, open_origin
from convert.packing import ahead, packed
from convert.rule import Link, link
from convert.settings import chat_settings, transformers_settings, with_dtype
from convert.tensors import MOTION_FILE
from vqathinker_jax.checkpoint import read_config
from vqathinker_jax.checksums import write_checksums
from vqathinker_jax.data.prompt import load_tokenizer, special_tokens
from vqathinker_jax.folder import check_free, copy_beside, replacing
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, LIMIT, NAMES, Shape, Spec, Writer

Format = Literal["chat", "transformers"]


class Outgoing(NamedTuple):
    """A tensor of theirs that is about to be made."""

    shape: Shape
    dtype: str
    make: Callable[[], np.ndarray]


def export_checkpoint(
    source: Path,
    target: Path,
    kind: Format,
    *,
    slowfast: Path | None = None,
    dtype: DTypeLike | None = None,
    force: bool = False,
    limit: int = LIMIT,
) -> tuple[str, ...]:
    """Write the checkpoint in `source`, native or not, to `target` in a published format, with a bar in the terminal.

    slowfast: a file of SlowFast's weights, for a source that has the motion projector but not them. dtype: of every
    weight; None keeps those that the source was published or saved in. force: replace a checkpoint in `target`. limit:
    bytes a shard. Returns what the user should know of the result, in sentences.

    Raises: CheckpointError where `source` does not load, or `target` is taken.
    """
    check_free(target, force=force)
    if source.resolve().is_relative_to(target.resolve()):
        raise CheckpointError(f"{target}: holds {source}, which is still needed; name another folder")
    raw = read_config(source)
    special = special_tokens(load_tokenizer(source))
    origin = open_origin(source, slowfast)
    settings = _settings(raw, origin.config, kind, special.context)
    same = settings is raw
    tensors, notes = _outgoing(origin, origin.spelling if same else kind, None if dtype is None else jnp.dtype(dtype))
    if not same or dtype is not None:
        settings = with_dtype(settings, _widest(tensors))
    with replacing(target, force=force) as partial:
        sums = _write(tensors, partial, kind, limit, f"exporting {source.resolve().name}")
        copy_beside(source, partial)
        generation = partial / "generation_config.json"
        if not generation.exists():
            generation.write_text(_json({"eos_token_id": special.stop, "pad_token_id": special.pad}))
        write_checksums(partial, sums)
        if settings is not raw:
            (partial / "config.json").write_text(_json(settings))
    if origin.config.motion and kind == "transformers":
        notes.append(f"the motion branch is in {MOTION_FILE}: Transformers' class has none and leaves it where it is")
    return (*origin.left_out, *notes)


def _settings(raw: Mapping[str, Any], config: ModelConfig, kind: Format, image_token: int) -> Mapping[str, Any]:
    """The target's `config.json`: the source's own where the format stays."""
    if (raw["model_type"] == "internvl_chat") == (kind == "chat"):
        return raw
    return chat_settings(raw, config) if kind == "chat" else transformers_settings(raw, config, image_token)


_TORCH = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def _widest(tensors: Mapping[str, Outgoing]) -> str:
    """PyTorch's name of the widest dtype among the weights."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dtype in _TORCH}
    return _TORCH[max(kinds, key=lambda name: DTYPES[name].itemsize)]


def _outgoing(origin: Origin, spelling: str, dtype: np.dtype | None) -> tuple[dict[str, Outgoing], list[str]]:
    """Every tensor of the target by name, and what is left out of it."""
    table = SPELLINGS[spelling] + motion.slowfast(motion.ROOTS[0])
    links = link(table.rules, origin.shapes)
    tensors: dict[str, Outgoing] = {}
    for each in links:
        parts = [origin.rows[path, each.layer] for path in each.ours]
        stored = NAMES[np.dtype(dtype or DTYPES[parts[0].dtype])]
        for number, (name, shape) in enumerate(zip(each.theirs, each.their_shapes, strict=True)):
            tensors[name] = Outgoing(shape, stored, _maker(origin, each, number, DTYPES[stored]))
    if origin.repeated and spelling == origin.spelling:
        head, embedding = (table.theirs(ours) for ours in ("language.head.kernel", "language.embedding"))
        tensors[head] = tensors[embedding]
    counters = [name for name in motion.counters(tensors) if name not in origin.carried]
    tensors |= {name: Outgoing((), "I64", lambda: np.zeros((), np.int64)) for name in counters}
    notes = []
    for name, carried in origin.carried.items():
        if spelling == origin.spelling or name.startswith(motion.ROOTS[0]):
            tensors[name] = Outgoing(carried.shape, carried.dtype, carried.read)
        else:
            notes.append(f"{name}: left out, as it belongs to another format")
    return tensors, notes


def _maker(origin: Origin, each: Link, number: int, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        parts = [origin.rows[path, each.layer].read() for path in each.ours]
        return packed(each.form.to_theirs(parts)[number], dtype)

    return make


def _write(
    tensors: Mapping[str, Outgoing], folder: Path, kind: Format, limit: int, title: str
) -> dict[str, dict[str, str]]:
    """Write the shards and their index, and the motion branch where the format has it; returns the checksums."""
    apart = {
        name for name in tensors if kind == "transformers" and name.startswith((motion.PROJECTOR, motion.ROOTS[0]))
    }
    sums: dict[str, dict[str, str]] = {}
    with tqdm(total=len(tensors), desc=title, disable=None) as bar:
        for stem, beside in (("model", False), (MOTION_FILE.removesuffix(".safetensors"), True)):
            chosen = {name: tensor for name, tensor in tensors.items() if (name in apart) == beside}
            if not chosen:
                continue
            specs: dict[str, Spec] = {name: (tensor.shape, tensor.dtype) for name, tensor in chosen.items()}
            with Writer(folder, specs, stem=stem, limit=sys.maxsize if beside else limit) as writer:
                for name, array in zip(chosen, ahead(tensor.make for tensor in chosen.values()), strict=True):
                    writer.append(name, array)
                    bar.update()
                sums |= writer.finish()
    return sums


def _json(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
