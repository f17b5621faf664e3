"""From a question to token ids, byte for byte as the reference writes it.

In goes a question in which every frame, and last of all the motion feature, stands as `<image>`; out come the ids of
the whole conversation, where each `<image>` has become `<img>` + n×`<IMG_CONTEXT>` + `</img>`.

Deviation from the reference: text that the tokenizer would read as a special token, or one `<image>` too many, is
refused instead of opening a slot that no frame fills.
Source: the reference's `conversation.py` (template `internvl2_5`) and its scoring script.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqathinker_jax.records import CheckpointError, InputError

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
TASK = "You are doing the video quality assessment task. Here is the question: "
RATING = (
    "What is your overall rating on the quality of this video? The rating should be a float between 1 and 5, rounded "
    "to two decimal places, with 1 representing very poor quality and 5 representing excellent quality."
)
FORM = (
    "First output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags."
)

SLOT = "<image>"
OPEN, CONTEXT, CLOSE = "<img>", "<IMG_CONTEXT>", "</img>"
TURN, STOP = "<|im_start|>", "<|im_end|>"

BUCKET = 128
"""Prompts are padded to whole multiples of so many tokens."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the device side must know: where visual tokens go, where a turn ends, what fills a row on the left."""

    context: int
    stop: int
    pad: int


def scoring_question(frames: int, motion: bool) -> str:
    """The question that asks for a rating of `frames` frames and, with `motion`, the motion feature."""
    return _preamble(frames, motion) + TASK + RATING + FORM


def asking_question(question: str, frames: int, motion: bool) -> str:
    """The same frames with a free `question` in place of the rating, and no form imposed on the answer.

    Raises: InputError where the question is blank.
    """
    if not question.strip():
        raise InputError('the question is empty: put it in quotes after the video, as in "Is this video blurry?"')
    return _preamble(frames, motion) + TASK + question


def training_question(problem: str, frames: int, motion: bool) -> str:
    """The question of training: a data file's `problem`, less any `<image>` in it, after its frames.

    Quirk of the reference: newlines and spaces differ from those of `scoring_question`.

    Raises: InputError where the problem is blank.
    Source: the reference's `grpo_jsonl.py` and `internvl_module.py`.
    """
    problem = problem.replace(SLOT, "")
    if not problem.strip():
        raise InputError("the human turn asks nothing: write the question that training is to put")
    names = [f"Frame{number}" for number in range(1, frames + 1)] + ["Motion Feature"] * motion
    slots = "".join(f"{name}:{SLOT}\n" for name in names)
    return f"Now you will receive a video:\n{slots}{problem} {FORM}"


def _preamble(frames: int, motion: bool) -> str:
    """The scoring preamble, which runs on without newlines (the training prompt has them)."""
    slots = "".join(f"Frame{number}: {SLOT}" for number in range(1, frames + 1))
    return "Now you will receive a video:" + slots + (f"Motion Feature: {SLOT}" if motion else "")


def render(question: str) -> str:
    """The conversation up to where the answer begins: system turn, the user's `question`, the assistant's opening."""
    return f"{TURN}system\n{SYSTEM}{STOP}\n{TURN}user\n{question}{STOP}\n{TURN}assistant\n"


def encode(tokenizer: Qwen2Tokenizer, question: str, tokens_per_frame: int, frames: int, motion: bool) -> np.ndarray:
    """Token ids, int32 [T], of the conversation around `question`, every `<image>` widened to its visual tokens.

    The first `frames` slots hold `tokens_per_frame` context tokens each, the motion feature's, if any, one.

    Raises: InputError where the question holds more or fewer slots than that, or text that reads as a special token.
    """
    widths = [tokens_per_frame] * frames + [1] * motion
    _refuse_stray_tokens(question, len(widths), tokenizer.all_special_tokens)
    first, *rest = render(question).split(SLOT)
    text = first + "".join(
        OPEN + CONTEXT * width + CLOSE + between for width, between in zip(widths, rest, strict=True)
    )
    return np.asarray(tokenizer(text)["input_ids"], np.int32)


def _refuse_stray_tokens(question: str, slots: int, special_tokens: Sequence[str]) -> None:
    found = question.count(SLOT)
    if found != slots:
        raise InputError(f"the question holds {SLOT} {found} times where {slots} are filled: take the others out")
    for token in special_tokens:
        if token in question:
            raise InputError(f"the question holds {token}, which the model reads as markup: take it out")


def decode(tokenizer: Qwen2Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """The text of a completion's ids, special tokens (the stop that ends it among them) left out."""
    return str(tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True))


def pad_left(prompts_PT: Sequence[np.ndarray], pad: int, bucket: int = BUCKET) -> tuple[np.ndarray, np.ndarray]:
    """P prompts of unequal length as ids int32 [P, S] and a mask bool [P, S], True on tokens, padded on the left.

    S is the longest length rounded up to a multiple of `bucket`, so that nearby lengths share one compiled program.
    """
    longest = max(len(ids_T) for ids_T in prompts_PT)
    shape = len(prompts_PT), -(-longest // bucket) * bucket
    ids_PS, mask_PS = np.full(shape, pad, np.int32), np.zeros(shape, bool)
    for row, ids_T in enumerate(prompts_PT):
        ids_PS[row, -len(ids_T) :] = ids_T
        mask_PS[row, -len(ids_T) :] = True
    return ids_PS, mask_PS


def load_tokenizer(directory: Path) -> Qwen2Tokenizer:
    """The tokenizer of a checkpoint folder, read from its own files: nothing is fetched and no code in it runs.

    Raises: CheckpointError where the files are missing, unreadable, or of another kind of tokenizer, or the vocabulary
    lacks a token of the template.
    """
    if not ((directory / "tokenizer.json").is_file() or (directory / "vocab.json").is_file()):
        raise CheckpointError(
            f"{directory}: no tokenizer found: copy tokenizer.json, or vocab.json and merges.txt, from the checkpoint"
        )
    # Imported here because it takes seconds, and the folder may already have been refused. By name, not through
    # AutoTokenizer, which guesses from config.json and would run a checkpoint's own code if told to.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of torch, which a tokenizer does not need
    from transformers import Qwen2Tokenizer

    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the Rust side raises bare Exception, TypeError and more for damaged files
        found = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}: the tokenizer files cannot be read ({found}): copy them from the checkpoint again"
        ) from error
    missing = sorted({OPEN, CONTEXT, CLOSE, TURN, STOP} - tokenizer.get_vocab().keys())
    if missing:
        raise CheckpointError(
            f"{directory}: the tokenizer lacks {', '.join(missing)}: use the tokenizer of an InternVL3 checkpoint"
        )
    text = render(scoring_question(1, motion=True))
    if tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) != text:
        raise CheckpointError(
            f"{directory}: the tokenizer loses text, as no Qwen2 one does: use the tokenizer of an InternVL3 checkpoint"
        )
    return tokenizer


def slot_tokens(tokenizer: Qwen2Tokenizer) -> tuple[int, ...]:
    """The ids of a slot for visual tokens, which an answer has no use for."""
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[token] for token in (OPEN, CONTEXT, CLOSE))


def special_tokens(tokenizer: Qwen2Tokenizer) -> SpecialTokens:
    """The ids that the device side needs of a tokenizer from `load_tokenizer`; without a pad token, stop fills rows."""
    vocabulary = tokenizer.get_vocab()
    pad = vocabulary[str(tokenizer.pad_token or STOP)]
    return SpecialTokens(context=vocabulary[CONTEXT], stop=vocabulary[STOP], pad=pad)
