"""Sets of videos and a judge go in; a row a video is on disk when it is over, whatever interrupted it in between.

Worker processes decode while the device works; the device's places are refilled as answers end. What is on disk already
is not done again.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vqathinker_jax.data import prompt
from vqathinker_jax.data.feed import Seen, content_of, feed
from vqathinker_jax.data.labels import Item, VideoSet
from vqathinker_jax.data.view import View
from vqathinker_jax.expectation import Expectation, expectation
from vqathinker_jax.fingerprint import fingerprint
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import Judge, prompt_ids
from vqathinker_jax.model.language import Cache
from vqathinker_jax.places import Prompt, answers
from vqathinker_jax.predictions import ALL, Predictions, Row, Share
from vqathinker_jax.processes import exchange, is_first
from vqathinker_jax.records import InputError
from vqathinker_jax.tasks import Task

FRAMES = "frames"
"""Folder, in the output, of the frames that the model saw: one picture a video, by the first half of its SHA-256."""


@dataclass(frozen=True)
class Pace:
    """How a run is worked off; nothing here changes a prediction by more than rounding.

    batch_size: P, places on the device. workers: processes that decode; 0 decodes here, between answers.
    """

    batch_size: int = 4
    workers: int = 2

    def __post_init__(self):
        if self.batch_size < 1 or self.workers < 0:
            raise InputError(f"batch size {self.batch_size}, workers {self.workers}: give at least 1 and at least 0")


@dataclass
class Progress:
    """What is done so far, counted in videos (or questions), and the time spent without any to work on."""

    total: int
    done: int = 0
    failed: int = 0
    absent: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0

    def note(self) -> str:
        """What of it stands beside a bar."""
        failed, waiting = self.failed + self.absent, self.waited_s / max(self.seconds, 1e-9)
        return f"{failed} failed, {waiting:.0%} of the time waiting for videos"


class Asked(NamedTuple):
    """An item of a set with its prompt's ids, not yet padded, and a mark of them."""

    set: str
    item: Item
    ids_T: np.ndarray
    mark: str


def settings(view: View, sampling: Sampling, cache: Cache, seed: int, task: Task) -> Row:
    """What every prediction depends on besides its video, its question and the checkpoint, as JSON values."""
    made_by = {"task": task.name} | asdict(view) | asdict(sampling) | {"never": list(sampling.never)}
    del made_by["watched"]  # which changes no prediction
    made_by |= {"cache": cache} if cache != "full" else {}
    return made_by | ({"seed": seed} if sampling.temperature else {})


def identity(judge: Judge, task: Task) -> Row:
    """What every prediction depends on besides its video and its question, as JSON values."""
    checkpoint = fingerprint(judge.state, judge.config, judge.tokenizer)
    return {"checkpoint": checkpoint} | settings(judge.view, judge.sampling, judge.cache, judge.seed, task)


def evaluate(
    judge: Judge,
    sets: Sequence[VideoSet],
    output: Path,
    task: Task,
    *,
    pace: Pace = Pace(),
    resume: bool = True,
    share: Share = ALL,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[dict[tuple[str, str], Row], Row]:
    """Predict what is missing in the folder `output`; returns the rows by (set, name) and the run's identity.

    A file that is absent or cannot be opened has no row, and is tried again by the next run. `report` is called after
    every video.

    Raises: InputError where `output` holds something else, or prompts and answers exceed the model's positions.
    """
    asked = _ask_all(judge, sets, task)
    run = identity(judge, task)
    with Predictions(output, run, {found.name for found in sets}, resume=resume, share=share) as predictions:
        (output / FRAMES).mkdir(exist_ok=True)
        todo = _missing(share.take(asked), predictions.rows, run)
        _Run(judge, task, run, todo, predictions, report).work(pace)
        return predictions.rows, run


def own_share() -> Share:
    """The share of this one of jax's processes."""
    return Share(jax.process_index() + 1, jax.process_count())


def evaluate_together(
    judge: Judge,
    sets: Sequence[VideoSet],
    output: Path,
    task: Task,
    *,
    pace: Pace = Pace(),
    resume: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[dict[tuple[str, str], Row], Row]:
    """`evaluate` by all of jax's processes, each its share of the videos; the first returns the rows of all.

    `output` is a folder that all of them see; the other processes return what they have seen of it.

    Raises: InputError where `evaluate` does, or the first process does not find the rows of another.
    """
    count = jax.process_count()
    if count == 1:
        return evaluate(judge, sets, output, task, pace=pace, resume=resume, report=report)
    run, names = identity(judge, task), {found.name for found in sets}
    if not resume:
        if is_first():
            Predictions(output, run, names, resume=False).close()
        exchange("started over")
    rows, run = evaluate(judge, sets, output, task, pace=pace, share=own_share(), report=report)
    exchange("on disk")
    if is_first():
        files = [Share(number, count).file for number in range(1, count + 1)]
        gone = [file for file in files if not (output / file).is_file()]
        if gone:
            raise InputError(f"{output}: holds no {', '.join(gone)}; name a folder that all processes share")
        with Predictions(output, run, names) as whole:
            rows = whole.rows
    return rows, run


class _Run:
    """The predictions that are missing, on their way to the folder."""

    def __init__(
        self,
        judge: Judge,
        task: Task,
        run: Row,
        todo: Sequence[Asked],
        predictions: Predictions,
        report: Callable[[Progress], None],
    ):
        self.judge, self.task, self.run, self.todo = judge, task, run, todo
        self.predictions, self.report = predictions, report
        longest_T = max((one.ids_T for one in todo), key=len, default=np.zeros(1, np.int32))
        self.padded = prompt.pad_left([longest_T], judge.tokens.pad)[0].shape[1]
        self.progress, self.started = Progress(len(todo)), time.perf_counter()
        self.in_work: dict[int, Seen] = {}
        # The same content under another name is answered already.
        self.answered = {row["key"]: row for row in predictions.rows.values() if "text" in row}

    def work(self, pace: Pace) -> None:
        """Do it all."""
        judge = self.judge
        tokens, sampling = judge.tokens, judge.sampling
        ending = {"context_id": tokens.context, "stop_id": tokens.stop, "sampling": sampling}
        prompts = self._prompts(pace.workers)
        for written in answers(judge.graph, judge.state, prompts, places=pace.batch_size, **ending):
            text = prompt.decode(judge.tokenizer, written.ids_T)
            answer: Row = {"text": text, "tokens": len(written.ids_T), "cut_off": not written.stopped}
            if held_likely := expectation(judge.tokenizer, written.ids_T, written.watched_TW):
                answer |= held_likely._asdict()
            self._record(self.in_work.pop(written.tag), answer)

    def _prompts(self, workers: int) -> Iterator[Prompt | None]:
        """Prompts about the files that can be read, as they are; the others are recorded on the way."""
        judge = self.judge
        files = feed([one.item.video for one in self.todo], judge.view, workers)
        while True:
            before = time.perf_counter()
            seen = next(files, _END)
            self.progress.waited_s += time.perf_counter() - before
            if seen is _END:
                return
            if seen is None:
                yield None
            elif seen.clip is None or seen.content is None:
                self._record(seen, {})
            elif earlier := self.answered.get(key := self._key(seen)):
                self._record(seen, {name: earlier[name] for name in _ANSWER if name in earlier})
            else:
                self.in_work[seen.place] = seen
                ids_PS, mask_PS = prompt.pad_left([self.todo[seen.place].ids_T], judge.tokens.pad, self.padded)
                draws = jax.random.fold_in(jax.random.key(judge.seed), int(key[:8], 16))
                yield Prompt(seen.place, seen.clip.frames_FYXC, ids_PS[0], mask_PS[0], draws)

    def _key(self, seen: Seen) -> str:
        assert seen.content is not None, "a file that cannot be opened has no key"
        return _key(seen.content.sha256, self.todo[seen.place].mark, self.run)

    def _record(self, seen: Seen, answer: Mapping[str, Any]) -> None:
        """Put what came of one file on disk, unless it cannot even be opened."""
        asked, progress = self.todo[seen.place], self.progress
        if seen.content is None:
            progress.absent += 1
            self.predictions.rows.pop((asked.set, asked.item.name), None)  # of a file that was there once
        else:
            row = {"set": asked.set, "video": asked.item.name, "key": self._key(seen), **seen.content._asdict()}
            row |= self._said(asked, seen, answer)
            if seen.clip is not None:
                sheet_of(self.predictions.folder, row).write_bytes(seen.sheet)
            self.predictions.add(row)
            if answer:
                self.answered[row["key"]] = row
            progress.failed += row["status"] == "failed"
        progress.done += 1
        progress.seconds = time.perf_counter() - self.started
        self.report(progress)

    def _said(self, asked: Asked, seen: Seen, answer: Mapping[str, Any]) -> Row:
        if seen.clip is None:
            return {"status": "failed", "reason": seen.fault}
        reading = self.task.read(asked.item, answer["text"])
        if reading.fields.get("score") is None:
            answer = {name: value for name, value in answer.items() if name not in Expectation._fields}
        cut = f" (cut off after {answer['tokens']} tokens)" if answer["cut_off"] else ""
        return {
            "status": "failed" if reading.reason else "ok",
            "reason": reading.reason and reading.reason + cut,
            **reading.fields,
            **answer,
            "frame_indices": seen.clip.indices,
            "frame_times_s": [round(time_s, 4) for time_s in seen.clip.times_s],
            "health": seen.clip.health,
        }


_END: Any = object()
_ANSWER = ("text", "tokens", "cut_off", *Expectation._fields)


def sheet_of(output: Path, row: Mapping[str, Any]) -> Path:
    """The picture of the frames that the model saw of a row's video."""
    return output / FRAMES / f"{row['sha256'][:32]}.webp"


def _ask_all(judge: Judge, sets: Sequence[VideoSet], task: Task) -> list[Asked]:
    @cache
    def encoded(question: str | None) -> tuple[np.ndarray, str]:
        ids_T = prompt_ids(judge.config, judge.tokenizer, judge.view, judge.sampling, question)
        return ids_T, sha256(ids_T.tobytes()).hexdigest()

    def ask(found: VideoSet, item: Item) -> Asked:
        try:
            return Asked(found.name, item, *encoded(task.question(item)))
        except InputError as fault:
            raise InputError(f"{found.name}, {item.name}: {fault}") from None

    return [ask(found, item) for found in sets for item in found.items]


def _missing(asked: Sequence[Asked], rows: Mapping[tuple[str, str], Row], run: Row) -> list[Asked]:
    """Those without a row, or with one of another question or another content of the file."""

    def done(one: Asked) -> bool:
        row = rows.get((one.set, one.item.name))
        if row is None or row["key"] != _key(row["sha256"], one.mark, run):
            return False
        try:
            status = one.item.video.stat()
        except OSError:
            return False
        if (row["size"], row["modified_ns"]) == (status.st_size, status.st_mtime_ns):
            return True
        content = content_of(one.item.video)
        return content is not None and content.sha256 == row["sha256"]

    with ThreadPoolExecutor() as pool:
        return [one for one, is_done in zip(asked, pool.map(done, asked), strict=True) if not is_done]


def _key(content: str, question: str, run: Row) -> str:
    """A mark of all that a prediction depends on: 32 hexadecimal digits."""
    return sha256(json.dumps([content, question, run], sort_keys=True).encode()).hexdigest()[:32]
