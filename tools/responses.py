"""What the warm start teaches a model to say about a synthetic clip: every aspect by its damage, and any rating.

The words are true. The rating knows nothing of the clip: all of it is left for the reinforcement to find. (Where taught
ratings followed the truth by a tenth, greedy ones still looked like noise, and their expectation ranked clips at 0.72.)
It is told in quarters, for those few the reinforcement can all try out: where every second decimal is as likely as the
next, it learns the first digit, and the rest stays one habit. And it lies lower than the scale's middle, so that first
digits of 1, which few clips deserve, are tried out too.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vqathinker_jax.data.distortions import KINDS
from vqathinker_jax.data.synthetic import Truth, read_truth

SLOTS = {"Detail": "detail", "Light": "light", "Colour": "colour", "Grain": "grain", "Motion": "time"}
"""The aspects of `distortions.KINDS`, each with its name in the text."""
FINE = "fine"
MIDDLE, LEAST, MOST = 2.5, 1.25, 4.75
"""Of taught ratings, which deviate by a point."""
COARSE = 0.25
"""What taught ratings are whole multiples of."""


def response(truth: Truth, rng: np.random.Generator) -> str:
    """The reasoning and a rating to two decimals, in the form that training asks for."""
    said = [f"{name} {_look(truth, aspect)}." for name, aspect in SLOTS.items()]
    rating = np.clip(rng.normal(MIDDLE), LEAST, MOST)
    return f"<think>{' '.join(said)}</think><answer>{COARSE * round(rating / COARSE):.2f}</answer>"


def _look(truth: Truth, aspect: str) -> str:
    """The damage that spoils this aspect; one that spoils several is told where the first of them stands.

    What first, then how much: each word follows from the one before it and the picture, which is quickest to learn.
    """
    for damage in truth.distortions:
        spoilt = KINDS[damage.kind].aspects
        if aspect == next(known for known in SLOTS.values() if known in spoilt):
            degree, look = damage.description.split(" ", 1)
            return f"{look} {degree}"
    return FINE


def write_lessons(manifests: Iterable[Path], target: Path, seed: int) -> None:
    """Write the lines of synthetic training manifests once more, each with a response."""
    rng = np.random.default_rng(seed)
    lines = []
    for manifest in manifests:
        truths = read_truth(manifest)
        rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
        lines += [json.dumps(row | {"response": response(truths[row["id"]], rng)}) for row in rows]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
