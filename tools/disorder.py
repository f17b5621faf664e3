"""Clips whose frames are out of order: how one is made, and copies of training clips that are, for the warm start.

What is only ever out of order in few clips is soon called by other names, or by none: ratings then no longer follow it.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from vqathinker_jax.data import encoder
from vqathinker_jax.data.distortions import KINDS, Distortion, true_mos
from vqathinker_jax.data.frames import shuffle
from vqathinker_jax.data.synthetic import FINAL_CRF, Truth, read_truth
from vqathinker_jax.data.video import read_clip

COPIES = "disordered"
"""The folder of the copies, and the name of their manifest."""
VISIBLE_MOTION = 0.03
"""From which mean difference of neighbouring frames (`Truth.motion`) on motion counts as visible."""


def disorder(frames: int, rng: np.random.Generator) -> np.ndarray:
    """An order [F] that runs neither forwards nor backwards."""
    while True:
        order_F = shuffle(frames, rng).order_F
        if not np.isin(np.abs(np.diff(order_F)), 1).all():
            return order_F


def orderly(truth: Truth) -> bool:
    """Whether no damage concerns time."""
    return not any("time" in KINDS[damage.kind].aspects for damage in truth.distortions)


def moves(truth: Truth) -> bool:
    """Whether the scene's motion is visible."""
    return truth.motion >= VISIBLE_MOTION


def strength(order_F: np.ndarray) -> float:
    """How strong a shuffling, as `distortions` has it, puts as many frames into other places."""
    moved = float((order_F != np.arange(len(order_F))).mean())
    return round(max(0.0, (moved - 0.25) / 0.75), 3)


def write_copies(videos: Path, frames: int) -> Path:
    """Write every other training clip that moves and has no damage to time once more, its frames out of order.

    Returns their manifest, whose lines are as those of the set, with the truth of the copy.
    """
    manifest, source = videos / f"{COPIES}.jsonl", videos / "train.jsonl"
    if manifest.exists():
        return manifest
    (videos / COPIES).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = {row["id"]: row for row in map(json.loads, source.read_text(encoding="utf-8").splitlines())}
    lines = []
    for truth in [truth for truth in read_truth(source).values() if moves(truth) and orderly(truth)][::2]:
        frames_FYXC = read_clip(videos / truth.id, frames, "pyav").frames_FYXC
        order_F = disorder(frames, rng)
        copy = _copy(truth, order_F)
        # One frame more than the sampling rule takes, as all files of the set have.
        encoder.write(videos / copy.id, frames_FYXC[[*order_F, -1]], FINAL_CRF)
        question = rows[truth.id]["conversations"][0]
        said = {"image": [copy.id], "conversations": [question, {"from": "gpt", "value": copy.mos}]}
        lines.append(json.dumps(rows[truth.id] | {"id": copy.id} | said | {"truth": asdict(copy)}))
    partial = manifest.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(manifest)
    return manifest


def _copy(truth: Truth, order_F: np.ndarray) -> Truth:
    damages = (*truth.distortions, Distortion("shuffle", strength(order_F)))
    mos = true_mos(damages)
    name = f"{COPIES}/{Path(truth.id).name}"
    return replace(truth, id=name, distortions=damages, true_mos=mos, mos=round(mos, 2))
