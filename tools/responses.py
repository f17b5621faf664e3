"""What the warm start teaches a model to say about a synthetic clip: every aspect by its damage, and a poor rating.

The words are true. The rating is not: it is drawn about a point that follows the truth only a little of the way, with
noise as wide as the scale allows, so that what a warm-started model rates well is left for the reinforcement to find.
It is told in quarters, for those few the reinforcement can all try out: where every second decimal is as likely as the
next, it learns the first digit, and the rest stays one habit.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqathinker_jax.data.distortions import KINDS
from vqathinker_jax.data.synthetic import Truth

SLOTS = {"Detail": "detail", "Light": "light", "Colour": "colour", "Grain": "grain", "Motion": "time"}
"""The aspects of `distortions.KINDS`, each with its name in the text."""
FINE = "fine"
FOLLOWS, NOISE = 0.1, 1.0
"""Of the true rating's distance to 3, how much the taught one keeps; and the deviation of its noise."""
COARSE = 0.25
"""What taught ratings are whole multiples of."""


def response(truth: Truth, rng: np.random.Generator) -> str:
    """The reasoning and a rating to two decimals, in the form that training asks for."""
    said = [f"{name} {_look(truth, aspect)}." for name, aspect in SLOTS.items()]
    rating = np.clip(3 + FOLLOWS * (truth.true_mos - 3) + NOISE * rng.standard_normal(), 1, 5)
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


def write_lessons(manifest: Path, truths: Mapping[str, Truth], target: Path, seed: int) -> None:
    """Write the lines of a training manifest once more, each with a response."""
    rng = np.random.default_rng(seed)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"response": response(truths[row["id"]], rng)}) for row in rows]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
