"""One video in, a verdict out: the rating with its reasoning, or a failure with its reason.

This is where the host side (files, frames, prompts) and the device side (the jitted model) meet for scoring. A failure
is a value: it carries the model's text and why no rating could be read from it.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.parse import parse_score
from vqathinker_jax.records import Answer, Clip, InputError, VideoError

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer


@dataclass(frozen=True)
class View:
    """How much of a video the model sees: the reference scores 12 frames of 560 x 560 pixels."""

    frames: int = 12
    image_size: int = 560
    decoder: str = "pyav"

    def __post_init__(self):
        if self.frames < 1:
            raise InputError(f"frames is {self.frames}: at least one is needed")


@dataclass(frozen=True)
class Verdict:
    """What is known about one video after it was looked at: one row of `score --json`.

    `score` is None where the judgement failed, and then `reason` says why. `text` is the whole completion, `thinking`
    and `answer` its two parts. `seconds` is the wall time from file to verdict.
    """

    video: str
    decoder: str
    seconds: float
    score: float | None = None
    thinking: str = ""
    answer: str = ""
    text: str = ""
    reason: str | None = None
    frame_indices: tuple[int, ...] = ()
    frame_times_s: tuple[float, ...] = ()
    health: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "ok" or "failed"."""
        return "failed" if self.score is None else "ok"

    def row(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {"video": self.video, "status": self.status, **asdict(self)}


class Judge:
    """A model with its tokenizer, ready to look at videos; every video runs through the same compiled functions."""

    def __init__(self, model: VLM, tokenizer: "Qwen2Tokenizer", view: View, sampling: Sampling, seed: int = 0):
        """Raises: InputError where the image size does not fit the model's patches."""
        if len(tokenizer) > model.config.language.vocabulary:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.language.vocabulary}; "
                "use the tokenizer that came with the weights"
            )
        self.graph, self.state = nnx.split(model)
        self.tokenizer = tokenizer
        self.tokens = prompt.special_tokens(tokenizer)
        self.view = view
        self.sampling = sampling
        self.seed = seed
        self.positions = model.config.language.max_positions
        self.has_motion = model.motion is not None
        self.tokens_per_frame = model.config.tokens_per_frame(view.image_size)

    def score(self, video: Path, progress: Callable[[int], None] = lambda written: None) -> Verdict:
        """Rate one video (or picture) file; whatever is wrong with it ends in the verdict, not in an exception."""
        started = time.perf_counter()
        try:
            clip = read_clip(video, self.view.frames, self.view.decoder)
        except VideoError as error:
            return Verdict(str(video), self.view.decoder, _since(started), reason=str(error))
        ids_T = self._ids(prompt.scoring_question(self.view.frames, self.has_motion))
        text, ended = self._complete([clip], [ids_T], progress)[0]
        parsed = parse_score(text)
        cut = "" if ended else f" (cut off after {self.sampling.max_new_tokens} tokens)"
        return Verdict(
            video=str(video),
            decoder=self.view.decoder,
            seconds=_since(started),
            score=parsed.score if isinstance(parsed, Answer) else None,
            thinking=parsed.thinking,
            answer=parsed.answer,
            text=text,
            reason=None if isinstance(parsed, Answer) else parsed.reason + cut,
            frame_indices=clip.indices,
            frame_times_s=tuple(round(t, 4) for t in clip.times_s),
            health=clip.health,
        )

    def ask(self, video: Path, question: str, progress: Callable[[int], None] = lambda written: None) -> str:
        """The model's free answer to a question about one video.

        Raises: VideoError where no frame can be read; InputError for a question that reads as markup.
        """
        ids_T = self._ids(prompt.asking_question(question, self.view.frames, self.has_motion))
        return self._complete([read_clip(video, self.view.frames, self.view.decoder)], [ids_T], progress)[0][0]

    def _ids(self, question: str) -> np.ndarray:
        return prompt.encode(self.tokenizer, question, self.tokens_per_frame, self.view.frames, self.has_motion)

    def _complete(
        self, clips: list[Clip], ids_PT: list[np.ndarray], progress: Callable[[int], None]
    ) -> list[tuple[str, bool]]:
        """One completion a clip: its text, and whether it ended by itself."""
        ids_PS, mask_PS = prompt.pad_left(ids_PT, self.tokens.pad)
        longest = ids_PS.shape[1] + self.sampling.max_new_tokens
        if longest > self.positions:
            raise InputError(
                f"{ids_PS.shape[1]} prompt tokens and {self.sampling.max_new_tokens} new ones exceed the model's "
                f"{self.positions} positions; take fewer or smaller frames, or fewer new tokens"
            )
        frames_PFYXC = np.stack([resize(clip.frames_FYXC, self.view.image_size) for clip in clips])
        made = generate(
            self.graph,
            self.state,
            encode(self.graph, self.state, frames_PFYXC),
            ids_PS,
            mask_PS,
            context_id=self.tokens.context,
            stop_id=self.tokens.stop,
            pad_id=self.tokens.pad,
            sampling=self.sampling,
            key=jax.random.key(self.seed),
            progress=progress,
        )
        rows = zip(made.ids_PGC[:, 0], made.lengths_PG[:, 0], made.stopped_PG[:, 0], strict=True)
        return [(self._text(ids[:length]), bool(stopped)) for ids, length, stopped in rows]

    def _text(self, ids_T: np.ndarray) -> str:
        return prompt.decode(self.tokenizer, ids_T)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
