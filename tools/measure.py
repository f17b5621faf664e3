"""A trained model and rated synthetic videos go in; how well it rates them, and sees disorder, comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tools.disorder import disorder, moves, orderly
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.data.prompt import decode, load_tokenizer
from vqathinker_jax.data.synthetic import Truth, read_truth
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.expectation import digit_tokens, expectation
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.metrics import Figure, agreement
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.parse import parse_score
from vqathinker_jax.records import Answer
from vqathinker_jax.rollout import Prompts

BATCH = 40
UNRATED = 3.0
"""What an answer without a rating counts as, in correlations; the share of such answers is given beside."""


@dataclass(frozen=True)
class Rater:
    """A model with all it takes to rate videos of one view, by the question that it was trained on."""

    model: VLM
    tokenizer: Any
    view: DataConfig
    max_new_tokens: int

    def rate(
        self,
        rows: Sequence[Row],
        frames_NFYXC: np.ndarray,
        orders_NF: np.ndarray | None = None,
        temperature: float = 0.0,
    ) -> "Ratings":
        """Rate N videos by their frames, put in another order where one is given."""
        view = {"frames": self.view.frames, "size": self.view.size, "question": self.view.question}
        prompts = Prompts(rows, self.tokenizer, self.model.config, **view)
        graph, state = nnx.split(self.model)
        sampling = Sampling(self.max_new_tokens, temperature, never=prompts.never, watched=digit_tokens(self.tokenizer))
        texts: list[str] = []
        expected: list[float] = []
        for start in range(0, len(rows), BATCH):
            # The last batch is filled up, so that one program serves all.
            chosen = np.minimum(np.arange(start, start + BATCH), len(rows) - 1)
            frames_PFYXC = frames_NFYXC[chosen]
            if orders_NF is not None:
                frames_PFYXC = np.take_along_axis(frames_PFYXC, orders_NF[chosen][:, :, None, None, None], 1)
            made = generate(
                graph,
                state,
                encode(graph, state, frames_PFYXC),
                *prompts.of([rows[number] for number in chosen]),
                context_id=prompts.special.context,
                stop_id=prompts.special.stop,
                pad_id=prompts.special.pad,
                sampling=sampling,
                key=jax.random.key(start),
            )
            for ids_C, length, watched_CW in zip(
                made.ids_PGC[:, 0], made.lengths_PG[:, 0], made.watched_PGCW[:, 0], strict=True
            ):
                texts.append(decode(self.tokenizer, ids_C[:length]))
                likely = expectation(self.tokenizer, ids_C[:length], watched_CW[:length])
                expected.append(likely.expected if likely else UNRATED)
        return read(texts[: len(rows)], expected[: len(rows)])


class Ratings(NamedTuple):
    """Ratings [N] as written and as expected, `UNRATED` where there is none, the share of valid answers, and texts."""

    scores_N: np.ndarray
    expected_N: np.ndarray
    valid: float
    texts: list[str]


def read(texts: Sequence[str], expected: Sequence[float]) -> Ratings:
    """The ratings in completions, read as scoring reads them, beside their expectations."""
    parsed = [parse_score(text) for text in texts]
    scores_N = np.array([each.score if isinstance(each, Answer) else UNRATED for each in parsed])
    return Ratings(
        scores_N, np.array(expected), float(np.mean([isinstance(each, Answer) for each in parsed])), list(texts)
    )


def load_frames(rows: Sequence[Row], view: DataConfig) -> np.ndarray:
    """uint8 RGB frames [N,F,Y,X,C] of the rows' videos, as training sees them."""
    clips = (read_clip(row.video, view.frames, view.decoder) for row in rows)
    return np.stack([resize(clip.frames_FYXC, view.size) for clip in clips])


def measure(checkpoint: Path, videos: Path, view: DataConfig, max_new_tokens: int) -> dict[str, Any]:
    """All that is told of a model: its quality on both held-out splits, pairs in time, and black frames."""
    from convert.load import open_model

    model = open_model(checkpoint, dtype="float32", unrolled=True)
    rater = Rater(model, load_tokenizer(checkpoint), view, max_new_tokens)
    found: dict[str, Any] = {}
    for split in ("in_domain", "out_of_domain"):
        rows = manifest_rows(videos, split)
        frames_NFYXC = load_frames(rows, view)
        found[split] = quality(rater, rows, frames_NFYXC)
        if split == "in_domain":
            found["temporal"] = temporal_pairs(rater, rows, read_truth(videos / f"{split}.jsonl"), frames_NFYXC)
            found["blank_frames"] = blank(rater, rows, frames_NFYXC)
    return found


def quality(rater: Rater, rows: Sequence[Row], frames_NFYXC: np.ndarray) -> dict[str, Any]:
    """Correlations of greedy ratings with the MOS, with 95 % intervals, and the share of valid answers."""
    rated = rater.rate(rows, frames_NFYXC)
    expected = correlations(rated.expected_N, rows)
    return {
        **correlations(rated.scores_N, rows),
        "expected": expected,
        "format_rate": rated.valid,
        "texts": rated.texts[:5],
    }


def correlations(scores_N: np.ndarray, rows: Sequence[Row]) -> dict[str, list[float]]:
    """SRCC and PLCC, each as value, low and high; ratings that are all equal tell nothing, which is 0."""
    found = agreement(scores_N, np.array([row.mos for row in rows]))
    return {"srcc": _numbers(found.srcc), "plcc": _numbers(found.plcc_raw)}


def blank(rater: Rater, rows: Sequence[Row], frames_NFYXC: np.ndarray) -> list[float]:
    """SRCC of what is said of black frames in place of each video, drawn at temperature 1, for greedy answers are all
    one."""
    rated = rater.rate(rows, np.zeros_like(frames_NFYXC), temperature=1.0)
    return correlations(rated.scores_N, rows)["srcc"]


def temporal_pairs(
    rater: Rater, rows: Sequence[Row], truths: Mapping[str, Truth], frames_NFYXC: np.ndarray
) -> dict[str, float]:
    """How often a video is rated above its copy with shuffled frames, and how often the same, over the videos with
    visible motion and no damage to it."""
    moving = [number for number, row in enumerate(rows) if moves(truths[row.id]) and orderly(truths[row.id])]
    if not moving:
        return dict.fromkeys(("pairs", "above", "same", "expected_above"), 0)
    chosen, frames = [rows[number] for number in moving], frames_NFYXC[moving]
    orders_NF = np.stack([disorder(frames.shape[1], np.random.default_rng(number)) for number in moving])
    straight, shuffled = rater.rate(chosen, frames), rater.rate(chosen, frames, orders_NF)
    return {
        "pairs": len(moving),
        "above": float((straight.scores_N > shuffled.scores_N).mean()),
        "same": float((straight.scores_N == shuffled.scores_N).mean()),
        "expected_above": float((straight.expected_N > shuffled.expected_N).mean()),
    }


def _numbers(figure: Figure) -> list[float]:
    return [0.0 if value is None else round(value, 4) for value in (figure.value, figure.low, figure.high)]


def manifest_rows(folder: Path, split: str) -> list[Row]:
    """The rows of one split of a synthetic set."""
    from vqathinker_jax.data.manifest import read_training

    return list(read_training(str(folder / f"{split}.jsonl"), str(folder))[0])
