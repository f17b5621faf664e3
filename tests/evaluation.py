"""An evaluation with a small random model, in this process or as one that a test may kill.

Such a model never writes a rating, so the rating is made up of what it did write: a number that another text changes.
"""

import sys
import zlib
from pathlib import Path

from convert.load import open_model
from vqathinker_jax.data.labels import Item, read_sets
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.data.view import View
from vqathinker_jax.evaluate import Pace, evaluate
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import Judge
from vqathinker_jax.tasks import Reading, Task

FRAMES, SIZE = 4, 56
SAMPLING = Sampling(max_new_tokens=8)


def open_judge(checkpoint: Path, **sampling) -> Judge:
    model = open_model(checkpoint, unrolled=True)
    return Judge(model, load_tokenizer(checkpoint), View(FRAMES, SIZE), Sampling(**{**vars(SAMPLING), **sampling}))


def rate_by_text() -> Task:
    """The scoring task, but for how a rating is read."""

    def read(_: Item, text: str) -> Reading:
        return Reading({"score": 1 + zlib.crc32(text.encode()) % 400 / 100, "thinking": "", "answer": ""}, None)

    return Task("score", lambda _: None, read)


if __name__ == "__main__":
    checkpoint, labels, output, workers = sys.argv[1:]
    pace = Pace(batch_size=3, workers=int(workers))
    evaluate(open_judge(Path(checkpoint)), read_sets(Path(labels)), Path(output), rate_by_text(), pace=pace)
