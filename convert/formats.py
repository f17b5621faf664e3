"""The published formats, each as one table of names, and the settlement of what `config.json` leaves open.

Enters: a checkpoint's folder. Leaves: a `Source`, in which the config, the rules and the tensors agree on whether there
is a motion branch, where SlowFast's weights are, and whether the head is tied. No weight is read yet, but for a head
that is stored although the config ties it, and the embedding it is compared with.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert import language, motion, vision
from convert.rule import Ignored, Table
from convert.tensors import Tensor, open_folder, open_slowfast
from vqathinker_jax.checkpoint import read_config
from vqathinker_jax.model.config import ModelConfig, parse_config
from vqathinker_jax.records import CheckpointError

CHAT = vision.chat() + language.qwen("language_model.model.", "language_model.lm_head.weight") + motion.projector()
"""OpenGVLab's releases and the reference's checkpoints, without SlowFast."""

TRANSFORMERS = (
    vision.transformers("")
    + language.qwen("language_model.model.", "language_model.lm_head.weight")
    + motion.projector()
)
"""What Transformers' `save_pretrained` writes."""

TRANSFORMERS_STATE = (
    vision.transformers("model.") + language.qwen("model.language_model.", "lm_head.weight") + motion.projector()
)
"""What the parameters are called in a running Transformers model, and in files written from its state dict."""

SPELLINGS = {"chat": CHAT, "transformers": TRANSFORMERS, "transformers-state": TRANSFORMERS_STATE}


@dataclass(frozen=True)
class Source:
    """A checkpoint of the PyTorch world, understood but not yet read."""

    directory: Path
    config: ModelConfig
    spelling: str
    table: Table
    tensors: Mapping[str, Tensor]


def open_source(directory: Path, slowfast: Path | None = None, *, fresh_motion: bool = False) -> Source:
    """The source in a folder; `slowfast` is the file of SlowFast's weights where the checkpoint lacks them.

    fresh_motion: give a checkpoint without a motion branch one whose projector is still to be trained.

    Raises: CheckpointError where a file is missing or damaged, the config is unsupported, SlowFast's weights are
    nowhere or in two places, or a motion branch is there already.
    """
    raw = read_config(directory)
    config = parse_config(raw, motion=True, file=str(directory / "config.json"))
    tensors = open_folder(directory)
    moving = any(name.startswith((motion.PROJECTOR, motion.ROOTS[0])) for name in tensors)
    if fresh_motion and moving:
        raise CheckpointError(f"{directory}: has a motion branch already; leave --fresh-motion out")
    if fresh_motion and config.motion:
        tensors |= motion.fresh(config.motion.features, config.language.width)
    elif not moving:
        config = replace(config, motion=None)
    spelling = recognise(raw, tensors)
    source = Source(directory, config, spelling, SPELLINGS[spelling], tensors)
    return _settle_head(_settle_slowfast(source, slowfast), lenient=raw["model_type"] == "internvl")


def recognise(raw: Mapping[str, Any], names: Iterable[str]) -> str:
    """The key in `SPELLINGS` of the format that the config names, as the tensors spell it."""
    if raw["model_type"] == "internvl_chat":
        return "chat"
    return "transformers-state" if any(name.startswith("model.") for name in names) else "transformers"


def _settle_slowfast(source: Source, path: Path | None) -> Source:
    """With the rules of SlowFast and, where they come in a file of their own, its tensors."""
    where, own = source.directory, any(name.startswith(motion.ROOTS[0]) for name in source.tensors)
    if source.config.motion is None:
        if path:
            cure = "leave --slowfast out, or convert it with --fresh-motion to train one"
            raise CheckpointError(f"{where}: has no motion branch, so {path} has no place in it; {cure}")
        return source
    if own and path:
        raise CheckpointError(
            f"{where}: brings SlowFast's weights itself, so {path} is not needed; leave --slowfast out"
        )
    if own:
        return replace(source, table=source.table + motion.slowfast(motion.ROOTS[0]))
    if path is None:
        cure = "give the file of torch hub with --slowfast SLOWFAST_8x8_R50.pyth"
        raise CheckpointError(f"{where}: has the motion projector but not SlowFast's weights; {cure}")
    added = open_slowfast(path)
    root = next((root for root in motion.ROOTS if any(name.startswith(root) for name in added)), None)
    if root is None:
        raise CheckpointError(f"{path}: no SlowFast weights; expected tensors named {' or '.join(motion.ROOTS)}*")
    return replace(source, table=source.table + motion.slowfast(root), tensors={**source.tensors, **added})


def _settle_head(source: Source, *, lenient: bool) -> Source:
    """With a head that is tied to the embedding only where none of its own is stored beside it.

    `lenient`: a stored head that differs from the embedding is the model's, whatever the config says. So Transformers
    loads it, whose own default for this setting is "tied"; in chat format the contradiction is the user's to solve.
    """
    head, embedding = (source.table.theirs(ours) for ours in ("language.head.kernel", "language.embedding"))
    if not source.config.language.tied or not {head, embedding} <= source.tensors.keys():
        return source
    if np.array_equal(source.tensors[head].read(), source.tensors[embedding].read()):
        equal = Ignored(re.escape(head), "equals the embedding that it is tied to", carried=False)
        return replace(source, table=source.table + Table((), (equal,)))
    if lenient:
        untied = replace(source.config.language, tied=False)
        return replace(source, config=replace(source.config, language=untied))
    cure = "if the head is right, set llm_config.tie_word_embeddings to false in config.json"
    raise CheckpointError(f"{source.directory}: {head} differs from {embedding} though the config ties them; {cure}")
