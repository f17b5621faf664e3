"""Rows of rated videos go in; batches of P videos' frames come out, the same ones in the same order on every run.

A batch is a function of its number alone. Grain gives each place of the run a row and a random generator, whoever
decodes it: this process or workers, one host or many. So the state of a run is the number of its next batch, a resume
may change the number of workers or hosts, and a video that cannot be read changes its own place and no other.

Deviations from the reference: without `order="reference"`, every epoch has its own shuffle and drops other rows at its
end, and several lists can be mixed by weight; an unreadable video is replaced and counted, where the reference stops.
Source: the reference's `RepeatRandomSampler`, whose repeats of each index are the rollout's business here.
"""

import functools
import hashlib
import json
import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import grain
import numpy as np
from absl import flags

from vqathinker_jax.data.frames import Perturbation, perturb, resize
from vqathinker_jax.data.manifest import Row, read_training, split_absent
from vqathinker_jax.data.order import Kind, ordered
from vqathinker_jax.data.video import READERS, check_decoder, read_clip
from vqathinker_jax.data.workers import READ_AHEAD, check_shared_memory, start_worker
from vqathinker_jax.records import HIGHEST, LOWEST, InputError, VideoError

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What to train on, in which order, and who decodes it."""

    manifests: str
    """JSON-lines files, joined by ':'."""
    folders: str
    """For each manifest the folder of its videos, joined by ':'."""
    absent: Literal["refuse", "leave_out"] = "refuse"
    """For a video that does not exist: refuse stops before training, leave_out goes on without it and logs it."""
    weights: tuple[float, ...] = ()
    """Each manifest's share of an epoch, which ends when one has no more rows; without, an epoch holds all rows."""
    batch_size: int = 32
    """P, the videos of a step over all hosts."""
    epochs: int = 3
    """How often to go through the data."""
    order: Kind = "fresh"
    """A shuffle of ours each epoch, or the reference's very permutations for this seed."""
    seed: int = 42
    """Of the order and the perturbations."""
    frames: int = 6
    """F, frames of a video."""
    size: int = 448
    """Pixels a side of a frame."""
    decoder: str = "pyav"
    """What reads the videos: pyav, or decord as in the reference."""
    question: Literal["own", "scoring"] = "own"
    """Each row's own, as the reference trains; or the one that scoring puts to every video, spaces and all, for a model
    so small that it minds the difference."""
    perturb: bool = False
    """Draw a perturbation of each video's frames, for the temporal reward."""
    workers: int = 0
    """Processes that decode; with 0 this one does."""
    prefetch: int = 2
    """Whole batches made ready ahead of the step."""

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "epochs": 1, "frames": 1, "size": 1, "seed": 0, "workers": 0, "prefetch": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}: give {bound} or more")
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}: give less than {2**32}")
        if self.decoder not in READERS:
            raise InputError(f"decoder {self.decoder!r} is unknown; choose one of {', '.join(READERS)}")
        if self.weights and self.order == "reference":
            raise InputError("the reference's order knows no weights: leave them out, or choose order fresh")


class Sample(NamedTuple):
    """What stands at one place of a batch; see `Batch`. A tuple, so that grain finds its arrays and shares them."""

    row: Row
    frames_FYXC: np.ndarray
    perturbation: Perturbation | None
    health: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """P videos of one step, or this host's share of them, in the order of the step.

    rows:         whence each video comes, with its name and its question.
    mos_P:        float32, their scores.
    frames_PFYXC: uint8 RGB at the model's size.
    order_PF:     int32, which frame stands where in the perturbed copy of each video; None unless asked for.
    blank_PF:     bool, which places of the perturbed copy are zeros after normalising; None likewise.
    health:       for each video, what was wrong with a file that could be read all the same.
    unreadable:   what was wrong with each file that could not, and whose place another video has taken.
    """

    rows: tuple[Row, ...]
    mos_P: np.ndarray
    frames_PFYXC: np.ndarray
    order_PF: np.ndarray | None
    blank_PF: np.ndarray | None
    health: tuple[tuple[str, ...], ...]
    unreadable: tuple[str, ...]


def load_rows(config: DataConfig) -> list[tuple[Row, ...]]:
    """Return the checked rows of a config's manifests, one tuple a manifest.

    Raises:
        InputError: the report of every fault in them; or the decoder is not installed.
    """
    check_decoder(config.decoder)
    require = config.absent == "refuse"
    sets = read_training(config.manifests, config.folders, require_files=require)
    for rows in sets:
        off = [row for row in rows if not LOWEST <= row.mos <= HIGHEST]
        if off:
            _log.warning(
                "%d of %d answers are off the scale, such as %g of %s: rescale the set to %g..%g",
                *(len(off), len(rows), off[0].mos, off[0].name, LOWEST, HIGHEST),
            )
    return sets if require else [_without_absent(rows) for rows in sets]


def _without_absent(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    present, absent = split_absent(rows)
    for row in absent:
        _log.warning("left out: %s does not exist", row.video)
    if absent:
        _log.warning("%d of %d videos are left out", len(absent), len(rows))
    return present


class Batches(Iterator[Batch]):
    """Batches of `sets` for one host, which gets places process_index·P/process_count onwards of each step's P.

    `get_state` and `set_state` save and resume; `close` ends its workers before the last batch does.
    """

    def __init__(
        self, sets: Sequence[Sequence[Row]], config: DataConfig, process_index: int = 0, process_count: int = 1
    ) -> None:
        """Prepare the batches of `config`; nothing is read yet.

        Raises:
            InputError: the batch cannot be split over the hosts or filled, or weights and manifests do not match.
        """
        share, rest = divmod(config.batch_size, process_count)
        if rest:
            below = share * process_count
            nearest = f"{below} or {below + process_count}" if below else f"{process_count}"
            raise InputError(
                f"batch_size {config.batch_size} cannot be split over {process_count} processes: give {nearest}"
            )
        places = ordered(sets, config.weights, config.batch_size, config.order, config.seed)
        self.batches_per_epoch = len(places) // config.batch_size
        self._config = config
        self._share = share
        self._samples = _samples(places, config, process_index * share, share)
        self._fingerprint = _fingerprint(sets, config)
        self._next = 0
        self._running: grain.DatasetIterator[Batch] | None = None
        self._stop: weakref.finalize | None = None

    def __len__(self) -> int:
        """Batches in all epochs."""
        return self.batches_per_epoch * self._config.epochs

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            VideoError: no video in the epoch that could stand at some place can be read.
        """
        if self._next >= len(self):
            self.close()
            raise StopIteration
        if self._running is None:
            self._running = iter(self._from(self._next))
            self._stop = weakref.finalize(self, self._running.close)  # at exit too, which a thread at work would abort
        batch = next(self._running)
        self._next += 1
        for fault in batch.unreadable:
            _log.warning("replaced by the next video: %s", fault)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return what a resume needs, as JSON: the number of the next batch, and a mark of the data it is one of."""
        return {"next_batch": self._next, "data": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of `get_state`, of whatever process.

        Raises:
            InputError: the state belongs to other rows or another order.
        """
        if state["data"] != self._fingerprint:
            raise InputError(
                "the checkpoint was trained on other rows, or with another order, seed, batch_size or weights: "
                "go back to those, or start a new run"
            )
        self.close()
        self._next = state["next_batch"]

    def close(self) -> None:
        """End the workers; the next batch, if asked for, starts new ones."""
        if self._stop is not None:
            self._stop()
        self._running = self._stop = None

    def _from(self, batch: int) -> grain.IterDataset[Batch]:
        """Batches from number `batch` on."""
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads flags of its own, which absl refuses outside its own programs
        check_shared_memory(self._config.workers, self._share, self._config.frames * self._config.size**2 * 3)
        options = grain.MultiprocessingOptions(self._config.workers, per_worker_buffer_size=READ_AHEAD)
        batches = (
            self._samples[batch * self._share :]
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            .mp_prefetch(options, worker_init_fn=start_worker)
            .batch(self._share, batch_fn=_stack)
        )
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=self._config.prefetch)


def _samples(places: grain.MapDataset[Row], config: DataConfig, first: int, share: int) -> grain.MapDataset[Sample]:
    """Samples of one host: of each batch `share` places from the `first` on."""
    everyones = grain.MapDataset.range(len(places) * config.epochs).random_map(
        functools.partial(_read, places, config), seed=config.seed
    )

    def own(index: int) -> Sample:
        batch, place = divmod(index, share)
        return _present(everyones[batch * config.batch_size + first + place])

    return grain.MapDataset.range(len(everyones) // config.batch_size * share).map(own)


def _read(places: grain.MapDataset[Row], config: DataConfig, place: int, rng: np.random.Generator) -> Sample:
    """The sample at a place: its own video or, where that cannot be read, the one that the next batch has there.

    Next in the same epoch, round its end: so no two places of a batch ever show the same video.

    Raises:
        VideoError: none of them can be read.
    """
    epoch, first = divmod(place, len(places))
    faults: list[str] = []
    for candidate in range(first, first + len(places), config.batch_size):
        row = _present(places[epoch * len(places) + candidate % len(places)])
        try:
            clip = read_clip(row.video, config.frames, config.decoder)
        except VideoError as fault:
            faults.append(str(fault))
            continue
        return Sample(
            row=row,
            frames_FYXC=resize(clip.frames_FYXC, config.size),
            perturbation=perturb(config.frames, rng) if config.perturb else None,
            health=clip.health,
            unreadable=tuple(faults),
        )
    raise VideoError(
        f"{faults[0]}; nor can any of the {len(faults) - 1} videos that might replace it: check the folder"
    )


def _present(element: T | None) -> T:
    """The element of a dataset from which nothing is filtered away, which is grain's None."""
    assert element is not None
    return element


def _stack(samples: Sequence[Sample]) -> Batch:
    drawn = [sample.perturbation for sample in samples if sample.perturbation]
    return Batch(
        rows=tuple(sample.row for sample in samples),
        mos_P=np.array([sample.row.mos for sample in samples], np.float32),
        frames_PFYXC=np.stack([sample.frames_FYXC for sample in samples]),
        order_PF=np.stack([perturbation.order_F for perturbation in drawn]) if drawn else None,
        blank_PF=np.stack([perturbation.blank_F for perturbation in drawn]) if drawn else None,
        health=tuple(sample.health for sample in samples),
        unreadable=tuple(fault for sample in samples for fault in sample.unreadable),
    )


def _fingerprint(sets: Sequence[Sequence[Row]], config: DataConfig) -> str:
    """A mark of all that decides which row stands where."""
    rows = [[[row.dataset, row.id, row.name, row.problem, row.mos, row.response] for row in rows] for rows in sets]
    order = [config.batch_size, config.order, config.seed, config.weights]
    return hashlib.sha256(json.dumps([rows, order]).encode()).hexdigest()[:16]
