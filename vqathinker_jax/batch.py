"""Clips go in, verdicts come out as they are made: several at a time, each the same as alone."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.judge import Judge, Seen, Verdict, prompt_ids
from vqathinker_jax.places import Prompt, answers
from vqathinker_jax.records import Clip

Tag = TypeVar("Tag")


def rate(judge: Judge, clips: Iterable[tuple[Tag, int, str, Clip]], places: int = 4) -> Iterator[tuple[Tag, Verdict]]:
    """The verdict on each clip of tags, numbers, names and clips, under its tag, in the order in which answers end.

    Clips hold as many frames as the judge's view; their draws, where it samples, come from its seed and their number.
    The seconds of a verdict begin where `clips` is asked for its clip.
    """
    ids_PS, mask_PS = prompt.pad_left(
        [prompt_ids(judge.config, judge.tokenizer, judge.view, judge.sampling)], judge.tokens.pad
    )

    def prompts() -> Iterator[Prompt]:
        started = time.perf_counter()
        for tag, number, name, clip in clips:
            frames_FYXC = resize(clip.frames_FYXC, judge.view.image_size)
            draws = jax.random.fold_in(jax.random.key(judge.seed), number)
            yield Prompt((tag, name, clip, started), frames_FYXC, ids_PS[0], mask_PS[0], draws)
            started = time.perf_counter()

    ending = {"context_id": judge.tokens.context, "stop_id": judge.tokens.stop, "sampling": judge.sampling}
    for written in answers(judge.graph, judge.state, prompts(), places=places, **ending):
        tag, name, clip, started = written.tag
        seen = Seen(
            video=name,
            decoder=judge.view.decoder,
            seconds=round(time.perf_counter() - started, 3),
            text=prompt.decode(judge.tokenizer, written.ids_T),
            frame_indices=clip.indices,
            frame_times_s=tuple(round(time_s, 4) for time_s in clip.times_s),
            health=clip.health,
        )
        yield tag, judge.verdict(seen, written)
