"""A batch of videos goes in; what the policy said about each, as arrays that an update learns from, comes out.

A video is encoded once and its prompt computed once for its G completions. Where the batch brings frames out of order,
as many completions are drawn about those copies, in the same pass. Text exists on the host only, between two jitted
functions: here it is read and becomes numbers.

Deviation from the reference: tokens that open, fill or close a slot for a picture are never drawn.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vqathinker_jax.data import prompt
from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.pipeline import Batch
from vqathinker_jax.generate import Completions, Sampling, encode, generate, look
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.vlm import VLM, Sight
from vqathinker_jax.parse import Reading, parse_rollout
from vqathinker_jax.processes import exchange
from vqathinker_jax.records import Answer, InputError
from vqathinker_jax.rewards import Ratings
from vqathinker_jax.sharding import put_videos
from vqathinker_jax.step import Rollout

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

_SHORTEST = 64
"""Least places for completions in an update; more come in doublings, so that few programs are compiled."""


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are drawn and read. The defaults are the reference's, its left-over top-k of 50 included."""

    completions: int = 4
    """G, completions of each video, which are compared with each other."""
    max_new_tokens: int = 2048
    """Longest completion; one that is cut off there is counted as truncated."""
    temperature: float = 1.0
    """Of the draws, and of the log-probs in the loss."""
    top_k: int = 50
    """Draw among the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together are this probable."""
    micro_batches: int = 1
    """The batch is completed in so many parts, one after the other, which bounds the memory of their caches."""
    trailing_zeros: bool = False
    """Count a written 3.50 as two decimals; the reference counts one, and punishes it."""
    random_fallback: bool = False
    """Read a random whole number from 1 to 5 where an answer has none, as the reference does; else it earns nothing."""

    def __post_init__(self):
        if self.completions < 2:
            raise InputError(f"completions is {self.completions}: a group of one has no spread; use 2 or more")
        if self.temperature == 0:
            raise InputError("temperature is 0: completions of a group would all be equal; use about 1")
        if self.micro_batches < 1:
            raise InputError(f"micro_batches is {self.micro_batches}: use 1 or more")
        self.sampling(())

    def sampling(self, never: tuple[int, ...]) -> Sampling:
        """The draws as `generate` takes them, of which the tokens `never` are left out."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, never)


class Prompts:
    """The training prompts of all rows of a run, padded on the left to one length, so that one program serves all."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: "Qwen2Tokenizer",
        model: ModelConfig,
        *,
        frames: int,
        size: int,
        question: Literal["own", "scoring"] = "own",
    ):
        """question: the rows' own, or that of scoring for all.

        Raises: InputError where a question cannot be put, with the line that asks it.
        """
        has_motion = model.motion is not None
        width = model.tokens_per_frame(size)

        def ids(row: Row) -> np.ndarray:
            asked = (
                prompt.scoring_question(frames, has_motion)
                if question == "scoring"
                else prompt.training_question(row.problem, frames, has_motion)
            )
            try:
                return prompt.encode(tokenizer, asked, width, frames, has_motion)
            except InputError as fault:
                raise InputError(f"{row.dataset}, line {row.line}, {row.name}: {fault}") from None

        self.tokenizer = tokenizer
        self.special = prompt.special_tokens(tokenizer)
        self.never = prompt.slot_tokens(tokenizer)
        asking = {row.problem: row for row in reversed(rows)}
        self._ids = {problem: ids(row) for problem, row in asking.items()}
        self._length = prompt.pad_left(list(self._ids.values()), self.special.pad)[0].shape[1]

    def check_room(self, new_tokens: int, positions: int) -> None:
        """Check that prompts and so many new tokens fit the model's positions.

        Raises: InputError with what would.
        """
        longest = max(len(ids) for ids in self._ids.values())
        if longest + new_tokens > positions:
            raise InputError(
                f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's {positions} positions: "
                "use fewer or smaller frames, or fewer new tokens"
            )

    def of(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [P, S] and mask bool [P, S] of the rows' prompts."""
        return prompt.pad_left([self._ids[row.problem] for row in rows], self.special.pad, self._length)


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time until the block ends, in which the device's work must be waited for."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class Drawn(NamedTuple):
    """A rollout as arrays on the mesh, and as text for people: G texts and readings of each of this host's videos."""

    rollout: Rollout
    texts_PG: list[list[str]]
    readings_PG: list[list[Reading]]


def roll_out(
    graph: nnx.GraphDef[VLM],
    state: nnx.State,
    batch: Batch,
    prompts: Prompts,
    config: RolloutConfig,
    mesh: Mesh,
    *,
    key: jax.Array,
    seeds: Sequence[int] = (),
    clock: Clock,
) -> Drawn:
    """Draw and read completions of a batch under the policy's weights. The rollout's sight is whole.

    key: seeds the draws. seeds: of what stands in for unreadable numbers, with `random_fallback` only. clock: gains the
    seconds of encode, rollout and reward.
    """
    parts = config.micro_batches
    ids_PS, mask_PS = prompts.of(batch.rows)
    disorder = () if batch.order_PF is None or batch.blank_PF is None else (batch.order_PF, batch.blank_PF)
    copies = 2 if disorder else 1

    made, sights = [], []
    for part, part_key in enumerate(jax.random.split(key, parts)):
        with clock("encode"):
            shown = put_videos([x[part::parts] for x in (batch.frames_PFYXC, *disorder)], mesh)
            sights.append(look(graph, state, shown[0]))
            visual_PLD = jax.block_until_ready(encode(graph, state, *shown, sight=sights[-1]))
        with clock("rollout"):
            ids_QS, mask_QS = put_videos([np.repeat(x[part::parts], copies, axis=0) for x in (ids_PS, mask_PS)], mesh)
            # A video's own draws are the same ones with and without its copy.
            keys_QG = jax.random.split(part_key, (copies, len(ids_QS) // copies, config.completions)).swapaxes(0, 1)
            made.append(
                generate(
                    graph,
                    state,
                    visual_PLD,
                    ids_QS,
                    mask_QS,
                    context_id=prompts.special.context,
                    stop_id=prompts.special.stop,
                    pad_id=prompts.special.pad,
                    sampling=config.sampling(prompts.never),
                    key=keys_QG.reshape(-1, config.completions),
                    # Nobody watches, and each slice may begin with a copy of the weights, layer by layer.
                    slice_length=config.max_new_tokens,
                )
            )
    with clock("reward"):
        straight, *out_of_order = (_joined(made, copy, copies) for copy in range(copies))
        texts_PG, readings_PG = _read(straight, batch.rows, prompts, config, seeds)
        perturbed = [_ratings(_read(copy, batch.rows, prompts, config, (*seeds, 1))[1]) for copy in out_of_order]
        room = _room(max(exchange(int(straight.lengths_PG.max()))), config.max_new_tokens)
        said = straight.ids_PGC[:, :, :room], straight.lengths_PG, straight.stopped_PG
        read = _ratings(readings_PG), batch.mos_P, perturbed[0] if perturbed else None
        rollout = Rollout(*put_videos((batch.frames_PFYXC, ids_PS, mask_PS, *said, *read), mesh))
    return Drawn(rollout._replace(sight=_seen_whole(sights)), texts_PG, readings_PG)


@jax.jit
def _seen_whole(sights: list[Sight]) -> Sight:
    """The sight of all parts' videos, in the order of the batch."""
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]), *sights)


def _joined(made: list[Completions], copy: int, copies: int) -> Completions:
    """The completions of every part's rows of one copy, in the order of the batch."""
    fields = []
    for arrays in zip(*made, strict=True):
        each = [array[copy::copies] for array in arrays]
        # Counted, for what nobody watched has no elements to tell the number of rows by.
        fields.append(np.stack(each, axis=1).reshape(len(each) * len(each[0]), *each[0].shape[1:]))
    return Completions(*fields)


def _read(
    made: Completions, rows: Sequence[Row], prompts: Prompts, config: RolloutConfig, seeds: Sequence[int]
) -> tuple[list[list[str]], list[list[Reading]]]:
    texts_PG = [
        [prompt.decode(prompts.tokenizer, ids_C[:length]) for ids_C, length in zip(ids_GC, lengths_G, strict=True)]
        for ids_GC, lengths_G in zip(made.ids_PGC, made.lengths_PG, strict=True)
    ]
    readings_PG = []
    for row, texts_G in zip(rows, texts_PG, strict=True):
        # A video's own, whoever reads it.
        rng = np.random.default_rng([*seeds, zlib.crc32(f"{row.dataset}/{row.id}".encode())])
        options = {
            "trailing_zeros": config.trailing_zeros,
            "reference_fallback": rng if config.random_fallback else None,
        }
        readings_PG.append([parse_rollout(text, **options) for text in texts_G])
    return texts_PG, readings_PG


def _ratings(readings_PG: list[list[Reading]]) -> Ratings:
    parsed_PG = [[reading.parsed for reading in readings_G] for readings_G in readings_PG]
    scores_PG = [[p.score if isinstance(p, Answer) else 0.0 for p in parsed_G] for parsed_G in parsed_PG]
    # Still on the host: `put_videos` lays them out.
    on_host: dict[str, Any] = {
        "scores_PG": np.array(scores_PG, np.float32),
        "valid_PG": np.array([[isinstance(p, Answer) for p in parsed_G] for parsed_G in parsed_PG]),
        "decimals_PG": np.array([[reading.decimals for reading in readings_G] for readings_G in readings_PG], np.int32),
        "formatted_PG": np.array([[reading.formatted for reading in readings_G] for readings_G in readings_PG]),
    }
    return Ratings(**on_host)


def _room(longest: int, most: int) -> int:
    """Places for completions of which the longest has so many tokens."""
    room = _SHORTEST
    while room < longest:
        room *= 2
    return min(room, most)
