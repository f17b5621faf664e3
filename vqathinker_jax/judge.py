"""One video in, a verdict out: the rating with its reasoning, or a failure with its reason; or a reply to a question.

This is where the host side (files, frames, prompts) and the device side (the jitted model) meet for scoring. A failure
is a value: it carries the model's text and why no rating could be read from it. What is wrong with the settings is told
from the model's dimensions alone (`check`), before there is a model.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.data.view import View
from vqathinker_jax.expectation import digit_tokens, expectation
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.language import Cache
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.parse import parse_score
from vqathinker_jax.places import Written
from vqathinker_jax.records import Answer, Clip, InputError, VideoError

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer


@dataclass(frozen=True)
class Seen:
    """What one look at a video left behind, whatever was asked.

    `text` is the whole completion. `reason` says why the look failed, and is None where it did not. `seconds` is the
    wall time from file to text, or from its turn to text where the file was read ahead.
    """

    video: str
    decoder: str
    seconds: float
    text: str = ""
    reason: str | None = None
    frame_indices: tuple[int, ...] = ()
    frame_times_s: tuple[float, ...] = ()
    health: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "ok" or "failed"."""
        return "ok" if self.reason is None else "failed"

    def row(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"video": self.video, "status": self.status, **asdict(self)}


@dataclass(frozen=True)
class Verdict(Seen):
    """A rating: one row of `score --json`. `score` is None where `reason` says why; `thinking` and `answer` are the two
    parts of the text.

    expected, deviation: of the ratings that the model held likely, see `expectation`; None where they cannot be told.
    """

    score: float | None = None
    expected: float | None = None
    deviation: float | None = None
    thinking: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Reply(Seen):
    """An answer to a free question, `text`: the row of `ask --json`. `cut_off`: it would have gone on."""

    question: str = ""
    cut_off: bool = False


def view_of(
    config: ModelConfig, frames: int | None = None, image_size: int | None = None, decoder: str = "pyav"
) -> View:
    """What a model was made to see, but for what is given: else the reference's 12 frames of 560 x 560 pixels.

    Raises: InputError where there is no such view.
    """
    own = config.view
    return View(own.frames if frames is None else frames, own.image_size if image_size is None else image_size, decoder)


def check(
    config: ModelConfig,
    tokenizer: "Qwen2Tokenizer",
    view: View,
    sampling: Sampling,
    seed: int = 0,
    question: str | None = None,
) -> None:
    """Check that a model of these dimensions can be asked for a rating, or `question`, under these settings.

    Raises: InputError where the tokenizer is another model's, an image size, a question or the whole prompt does not
    fit, or the seed is none.
    """
    if len(tokenizer) > config.language.vocabulary:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.language.vocabulary}; "
            "use the tokenizer that came with the weights"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: give 0 to {2**32 - 1}")
    prompt_ids(config, tokenizer, view, sampling, question)


def prompt_ids(
    config: ModelConfig, tokenizer: "Qwen2Tokenizer", view: View, sampling: Sampling, question: str | None = None
) -> np.ndarray:
    """Ids, int32 [T], of the prompt that asks for a rating, or `question`.

    Raises: InputError where the image size does not fit the model, the question is blank or reads as markup, or prompt
    and completion exceed the model's positions.
    """
    motion, L = config.motion is not None, config.tokens_per_frame(view.image_size)
    _check_length(view.frames * L, config, sampling)  # so that no endless prompt is ever written
    asked = (
        prompt.scoring_question(view.frames, motion)
        if question is None
        else prompt.asking_question(question, view.frames, motion)
    )
    ids_T = prompt.encode(tokenizer, asked, L, view.frames, motion)
    _check_length(len(ids_T), config, sampling)
    return ids_T


def _check_length(tokens: int, config: ModelConfig, sampling: Sampling) -> None:
    positions = config.language.max_positions
    if tokens + sampling.max_new_tokens > positions:
        raise InputError(
            f"{tokens} prompt tokens and {sampling.max_new_tokens} new ones exceed the model's {positions} positions; "
            "take fewer or smaller frames, or fewer new tokens"
        )


class Judge:
    """A model with its tokenizer, ready to look at videos; every video runs through the same compiled functions."""

    def __init__(self, model: VLM, tokenizer: "Qwen2Tokenizer", view: View, sampling: Sampling, seed: int = 0):
        """Raises: InputError where `check` does."""
        check(model.config, tokenizer, view, sampling, seed)
        self.graph, self.state = nnx.split(model)
        self.config = model.config
        self.cache: Cache = model.language.cache
        self.tokenizer = tokenizer
        self.tokens = prompt.special_tokens(tokenizer)
        self.view = view
        self.sampling = replace(sampling, watched=digit_tokens(tokenizer))
        self.seed = seed

    def read(self, video: Path) -> Clip:
        """What the model is to see of a video (or picture) file, at the video's own size.

        Raises: VideoError where it cannot be read.
        """
        return read_clip(video, self.view.frames, self.view.decoder)

    def score(
        self,
        video: Path,
        progress: Callable[[int], None] = lambda written: None,
        read: Callable[[], Clip] | None = None,
    ) -> Verdict:
        """Rate one video (or picture) file; whatever is wrong with it ends in the verdict, not in an exception.

        read: gives what `Judge.read` would, where that has begun before.
        """
        return self.verdict(*self._look(video, None, progress, read))

    def verdict(self, seen: Seen, written: Written | None) -> Verdict:
        """The rating that a completion holds, or why there is none."""
        if written is None:
            return Verdict(**vars(seen))
        parsed = parse_score(seen.text)
        verdict = Verdict(**vars(seen), thinking=parsed.thinking, answer=parsed.answer)
        if isinstance(parsed, Answer):
            held_likely = expectation(self.tokenizer, written.ids_T, written.watched_TW)
            return replace(verdict, score=parsed.score, **held_likely._asdict() if held_likely else {})
        cut = "" if written.stopped else f" (cut off after {self.sampling.max_new_tokens} tokens)"
        return replace(verdict, reason=parsed.reason + cut)

    def ask(self, video: Path, question: str, progress: Callable[[int], None] = lambda written: None) -> Reply:
        """Answer a free question about one video (or picture) file, whose own faults end in the reply.

        Raises: InputError for a question that is blank, too long, or reads as markup.
        """
        seen, written = self._look(video, question, progress, None)
        return Reply(**vars(seen), question=question, cut_off=written is not None and not written.stopped)

    def _look(
        self, video: Path, question: str | None, progress: Callable[[int], None], read: Callable[[], Clip] | None
    ) -> tuple[Seen, Written | None]:
        """The completion about one video, or why there is none."""
        started = time.perf_counter()
        ids_T = prompt_ids(self.config, self.tokenizer, self.view, self.sampling, question)
        try:
            clip = read() if read else self.read(video)
        except VideoError as error:
            return Seen(str(video), self.view.decoder, _since(started), reason=str(error)), None
        ids_PS, mask_PS = prompt.pad_left([ids_T], self.tokens.pad)
        made = generate(
            self.graph,
            self.state,
            encode(self.graph, self.state, resize(clip.frames_FYXC, self.view.image_size)[None]),
            ids_PS,
            mask_PS,
            context_id=self.tokens.context,
            stop_id=self.tokens.stop,
            pad_id=self.tokens.pad,
            sampling=self.sampling,
            key=jax.random.key(self.seed),
            progress=progress,
        )
        length, stopped = int(made.lengths_PG[0, 0]), bool(made.stopped_PG[0, 0])
        written = Written(video, made.ids_PGC[0, 0, :length], stopped, made.watched_PGCW[0, 0, :length])
        seen = Seen(
            video=str(video),
            decoder=self.view.decoder,
            seconds=_since(started),
            text=prompt.decode(self.tokenizer, written.ids_T),
            frame_indices=clip.indices,
            frame_times_s=tuple(round(t, 4) for t in clip.times_s),
            health=clip.health,
        )
        return seen, written


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
