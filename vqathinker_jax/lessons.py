"""Rows that bring a response go in; batches of lessons, which supervised training learns from, come out.

The prompt is GRPO's, so what is learned is said where GRPO asks for it. The reference has no such stage.
"""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.pipeline import Batch
from vqathinker_jax.records import InputError
from vqathinker_jax.rollout import Prompts
from vqathinker_jax.sharding import put_videos
from vqathinker_jax.step import Lessons

_BUCKET = 16
"""Places for a response come in multiples of this."""


class Responses:
    """The responses of all rows of a run as tokens, with one number of places, so that one program serves all."""

    def __init__(self, rows: Sequence[Row], prompts: Prompts):
        """Raises: InputError where a row has no response."""
        silent = [row for row in rows if row.response is None]
        if silent:
            raise InputError(
                f"{len(silent)} of {len(rows)} rows have no response, the first for {silent[0].name}: "
                'give each line a "response", or train with stage grpo'
            )
        self.prompts = prompts
        stop = prompts.special.stop
        texts = {row.response for row in rows}
        self._ids = {text: [*prompts.tokenizer(text)["input_ids"], stop] for text in texts}
        self.places = -(-max(map(len, self._ids.values())) // _BUCKET) * _BUCKET

    def of(self, batch: Batch, mesh: Mesh) -> Lessons:
        """What is to be learned from a batch, on the mesh."""
        said = [self._ids[row.response] for row in batch.rows]
        ids_P1C = np.full((len(said), 1, self.places), self.prompts.special.pad, np.int32)
        for ids_1C, ids in zip(ids_P1C, said, strict=True):
            ids_1C[0, : len(ids)] = ids
        lengths_P1 = np.array([[len(ids)] for ids in said], np.int32)
        return Lessons(*put_videos((batch.frames_PFYXC, *self.prompts.of(batch.rows), ids_P1C, lengths_P1), mesh))
