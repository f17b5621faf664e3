"""VQAThinker in Python: load a model once, rate any number of videos, files or frames in memory.

    import vqathinker

    judge = vqathinker.load("VQAThinker-8B")
    verdicts = vqathinker.score(judge, ["a.mp4", frames_TYXC])
    rewards = [verdict.score for verdict in verdicts]  # 1..5; None where `verdict.reason` says why there is none

The same videos give the same verdicts on every call, whatever stands beside them in a batch: without sampling exactly,
up to how a device's sums are rounded; with a temperature, drawn from the seed and a video's place in the list.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np

from convert.load import open_config, open_model
from vqathinker_jax.batch import rate
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.data.view import View
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import Judge, Verdict, check, view_of
from vqathinker_jax.model.language import Cache
from vqathinker_jax.model.quantized import Weights
from vqathinker_jax.records import Clip, InputError, VideoError

GREEDY = Sampling()

__all__ = ["Judge", "Sampling", "Verdict", "View", "load", "score", "view_of"]


def load(
    checkpoint: str | Path,
    *,
    slowfast: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    weights: Weights = "full",
    cache: Cache = "full",
    attention: Literal["auto", "blocks"] = "auto",
    view: View | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    question: str | None = None,
    progress: bool = False,
) -> Judge:
    """A judge with the model of a checkpoint folder of any kind, ready to rate videos or to answer `question`.

    slowfast: its weights, for a checkpoint with a motion branch but not these. dtype: auto is bfloat16 on an
    accelerator, float32 on a CPU. weights: int8 or fp8 keep the decoder layers' matrices in a byte a weight, at a small
    cost in accuracy. cache: int8 keeps prompts' keys and values so. attention: auto is the kernel made for the device,
    blocks does without. view: None for what the checkpoint says it was made to see, or else 12 frames of 560 pixels.
    progress: a bar on standard error.

    Raises: InputError where checkpoint, tokenizer and settings do not fit, before any weight is read.
    """
    for name, value, known in (
        ("dtype", dtype, ("auto", "float32", "bfloat16")),
        ("weights", weights, get_args(Weights)),
        ("cache", cache, get_args(Cache)),
        ("attention", attention, ("auto", "blocks")),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}: choose one of {', '.join(known)}")
    folder, motion = Path(checkpoint), None if slowfast is None else Path(slowfast)
    config, tokenizer = open_config(folder, slowfast=motion), load_tokenizer(folder)
    view = view or view_of(config)
    check(config, tokenizer, view, sampling, seed, question)
    chosen = dtype if dtype != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = open_model(folder, dtype=chosen, weights=weights, slowfast=motion, unrolled=True, progress=progress)
    model.language.cache = cache
    if attention != "auto":
        model.lay_out(replace(model.layout, attention=attention))
    return Judge(model, tokenizer, view, sampling, seed)


def score(judge: Judge, videos: Iterable[str | Path | np.ndarray], batch_size: int = 4) -> list[Verdict]:
    """The verdict on each video, in the order given: a file, or all its frames as uint8 RGB [T, Y, X, 3].

    What is wrong with a file ends in its verdict. Frames given are named by their place, as `videos[3]`.

    Raises: InputError for what is no list of files and arrays, an array of another form, or a batch of none.
    """
    if isinstance(videos, str | Path | np.ndarray):
        raise InputError(f"videos is a {type(videos).__name__}: give a list, be it of one")
    videos = list(videos)
    for number, video in enumerate(videos):
        if not isinstance(video, str | Path | np.ndarray):
            raise InputError(f"videos[{number}] is a {type(video).__name__}: give a file, or frames as one array")
        if isinstance(video, np.ndarray) and (video.dtype != np.uint8 or video.shape[3:] != (3,) or not video.size):
            raise InputError(f"videos[{number}]: {video.dtype} {list(video.shape)}; give uint8 RGB frames [T, Y, X, 3]")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    verdicts: dict[int, Verdict] = {}

    def clips() -> Iterator[tuple[int, int, str, Clip]]:
        for number, video in enumerate(videos):
            name = f"videos[{number}]" if isinstance(video, np.ndarray) else str(video)
            started = time.perf_counter()
            try:
                clip = _clip(video, judge.view)
            except VideoError as fault:
                seconds = round(time.perf_counter() - started, 3)
                verdicts[number] = Verdict(name, judge.view.decoder, seconds, reason=str(fault))
            else:
                yield number, number, name, clip

    verdicts.update(rate(judge, clips(), batch_size))
    return [verdicts[number] for number in range(len(videos))]


def _clip(video: str | Path | np.ndarray, view: View) -> Clip:
    if not isinstance(video, np.ndarray):
        return read_clip(video, view.frames, view.decoder)
    indices = sample_indices(len(video) - 1, view.frames)
    return Clip(video[list(indices)], indices, ())
