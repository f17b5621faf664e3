"""A folder and a seed go in; synthetic rated videos come out, as files with the manifests of a real data set.

Three splits. `train`; `in_domain`: families of scenes that training does not see, with its kinds and strengths of
damage; `out_of_domain`: those families, with kinds that training does not see, and its kinds at other strengths. Each
split has a training manifest (`train.jsonl`, see `manifest.read_training`) and an evaluation meta (`train.json`),
which name videos relative to the folder.

Clip number i of a split is a function of the seed, the split and i: a larger set begins with the smaller one. Nothing
but the pictures and their order tells the rating: names are numbers, and every file has the same length, size, rate and
encoding; compression is done and undone before. Only the size of a file in bytes goes with what it shows.

The true MOS is `distortions.true_mos`; the MOS is the mean of `RATERS` raters who err by `RATER_ERROR` each and, as a
scale has ends, never leave 1..5.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vqathinker_jax.data import actors, distortions, encoder, scenes, textures
from vqathinker_jax.data.distortions import KINDS, Distortion
from vqathinker_jax.data.prompt import RATING, TASK
from vqathinker_jax.records import InputError

DATASET = "synthetic"
SEAL = "set.json"
SPLITS = ("train", "in_domain", "out_of_domain")
STRENGTHS = ((0.1, 0.4), (0.55, 0.85))
"""What training sees of its kinds of damage."""
OTHER_STRENGTHS = ((0.4, 0.55), (0.85, 1.0))
"""What the out-of-domain test sees of them."""
COUNTS = (0.1, 0.45, 0.35, 0.1)
"""How often a clip has no damage, one, two, three."""
RATERS, RATER_ERROR = 20, 0.5
FINAL_CRF = 8
"""Of every file, so fine that it adds no damage of its own."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What a synthetic set is; the same config gives the same videos."""

    train: int = 1500
    """Videos to train on."""
    in_domain: int = 200
    """Videos of unseen scenes with the damages of training."""
    out_of_domain: int = 200
    """Videos of unseen scenes with unseen kinds or strengths of damage."""
    size: int = 112
    """Pixels a side, even: the side that the model will see, for fine damage does not survive a resize."""
    frames: int = 12
    """Frames the model will sample. A file holds one more, for then the sampling rule takes each of these once."""
    seed: int = 0
    """Of scenes, damages and raters."""

    def __post_init__(self) -> None:
        least = {"train": 1, "in_domain": 1, "out_of_domain": 1, "size": 32, "frames": 4, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}: give {bound} or more")
        if self.size % 2:
            raise InputError(f"size is {self.size}: give an even number, as H.264 needs")


@dataclass(frozen=True)
class Truth:
    """What is known of one video.

    id:          its place, "train/000042.mp4", which is its id in manifests too.
    family:      the scene's, a key of `scenes.FAMILIES`.
    distortions: the damages, the most harmful first.
    true_mos:    what raters without noise say.
    mos:         what raters say, to two decimals.
    motion:      mean difference of two neighbouring frames of the undamaged scene, in shares of the range.
    """

    id: str
    family: str
    distortions: tuple[Distortion, ...]
    true_mos: float
    mos: float
    motion: float


def write_set(
    folder: Path, config: SyntheticConfig = SyntheticConfig(), workers: int | None = None, progress: bool = False
) -> dict[str, dict[str, Truth]]:
    """Write the videos and manifests of a set, unless the folder holds them; return the truths by split and id.

    `workers` processes make the videos (default: one a core); with 1 this one does.

    Raises:
        InputError: the folder holds another set or a damaged seal, or there are no workers.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    if not _stands(folder, config):
        folder.mkdir(parents=True, exist_ok=True)
        # First, so that a set cut short is known for one.
        _write_json(folder / SEAL, _identity(config) | {"whole": False})
        jobs = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
        made = _made(partial(_write_clip, folder, config), jobs, workers)
        truths = list(tqdm(made, total=len(jobs), desc="synthetic clips", unit=" clips", disable=not progress))
        for split in SPLITS:
            _write_manifests(folder, split, [truth for truth in truths if truth.id.startswith(f"{split}/")])
        # Last, so that it stands for a whole set.
        _write_json(folder / SEAL, _identity(config) | {"whole": True})
    return {split: read_truth(folder / f"{split}.jsonl") for split in SPLITS}


def read_truth(manifest: Path) -> dict[str, Truth]:
    """Return the truth of each video of a training manifest that `write_set` wrote, by id.

    Raises:
        InputError: the manifest cannot be read, or another hand wrote it.
    """
    try:
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: _truth(row["truth"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: no manifest of synthetic videos ({error!r}): write one by synthesize") from None


def plan(config: SyntheticConfig, split: str, index: int) -> Truth:
    """Return what clip `index` of a split will be; its motion, which takes pictures to know, is NaN."""
    rng = _generator(config, split, index, "plan")
    families = scenes.TRAINED if split == "train" else scenes.UNSEEN
    family = str(rng.choice(list(families)))
    damages = _draw_distortions(rng, out_of_domain=split == "out_of_domain")
    true_mos = distortions.true_mos(damages)
    opinions = np.clip(true_mos + rng.normal(0, RATER_ERROR, RATERS), 1, 5)
    return Truth(f"{split}/{index:06d}.mp4", family, damages, true_mos, round(float(opinions.mean()), 2), math.nan)


def render(
    config: SyntheticConfig, split: str, index: int, damages: tuple[Distortion, ...]
) -> tuple[np.ndarray, float]:
    """Return uint8 RGB frames [F+1,Y,X,C] of the scene of a clip with these damages, and the scene's motion."""
    rng = _generator(config, split, index, "scene")
    scene = scenes.draw_scene(plan(config, split, index).family, rng, config.size, config.frames + 1)
    times_F = np.arange(config.frames + 1.0)
    pair_2YXC = scene.show(times_F[:2] + config.frames // 2).astype(np.float32)
    motion = float(np.abs(pair_2YXC[1] - pair_2YXC[0]).mean() / 255)
    rng = _generator(config, split, index, "damage")
    return distortions.spoiled(scene.show(distortions.retimed(times_F, damages, rng)), damages, rng), motion


def _generator(config: SyntheticConfig, split: str, index: int, use: str) -> np.random.Generator:
    """One for each use, so that a clip's scene does not hang on its damages."""
    return np.random.default_rng([config.seed, SPLITS.index(split), index, *use.encode()])


def _draw_distortions(rng: np.random.Generator, out_of_domain: bool) -> tuple[Distortion, ...]:
    drawn: list[Distortion] = []
    spoilt: frozenset[str] = frozenset()
    for _ in range(rng.choice(len(COUNTS), p=COUNTS)):
        free = [name for name, kind in KINDS.items() if (kind.trained or out_of_domain) and not kind.aspects & spoilt]
        name = str(rng.choice(free))
        spoilt |= KINDS[name].aspects
        ranges = OTHER_STRENGTHS if out_of_domain else STRENGTHS
        if not KINDS[name].trained:
            ranges = STRENGTHS + OTHER_STRENGTHS
        widths = np.array([high - low for low, high in ranges])
        low, high = ranges[rng.choice(len(ranges), p=widths / widths.sum())]
        drawn.append(Distortion(name, round(float(rng.uniform(low, high)), 3)))
    return tuple(sorted(drawn, key=lambda damage: -KINDS[damage.kind].harm * damage.strength))


def _made(make: partial[Truth], jobs: list[tuple[str, int]], workers: int) -> Iterator[Truth]:
    """The truths in the order of the jobs."""
    if workers == 1:
        yield from map(make, jobs)
        return
    # Spawned: forking a process in which jax runs threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, jobs, chunksize=16)


def _write_clip(folder: Path, config: SyntheticConfig, job: tuple[str, int]) -> Truth:
    truth = plan(config, *job)
    frames_FYXC, motion = render(config, *job, truth.distortions)
    encoder.write(folder / truth.id, frames_FYXC, FINAL_CRF)
    return replace(truth, motion=round(motion, 4))


def _write_manifests(folder: Path, split: str, truths: list[Truth]) -> None:
    """The split as a training manifest, with each truth in a key of its own, and as an evaluation meta."""
    lines = [json.dumps(_training_line(truth)) for truth in truths]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scores = [{"image_id": truth.id, "ann_type": "score", "score": f"{truth.mos:.2f}"} for truth in truths]
    _write_json(folder / f"{split}.json", {"annotations": scores})


def _training_line(truth: Truth) -> dict[str, Any]:
    return {
        "id": truth.id,
        "dataset_name": DATASET,
        "image": [truth.id],
        "conversations": [{"from": "human", "value": TASK + RATING}, {"from": "gpt", "value": truth.mos}],
        "truth": asdict(truth),
    }


def _truth(entry: dict[str, Any]) -> Truth:
    return Truth(**{**entry, "distortions": tuple(Distortion(**damage) for damage in entry["distortions"])})


def _stands(folder: Path, config: SyntheticConfig) -> bool:
    """Whether the folder holds this very set, whole.

    Raises:
        InputError: it holds another one or other things, or its seal is damaged.
    """
    seal = folder / SEAL
    try:
        found = dict(json.loads(seal.read_bytes()))
    except FileNotFoundError:
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {f"{SEAL}.partial"}:
            fault = "holds other things than a synthetic set; name an empty or a new folder"
            raise InputError(f"{folder}: {fault}") from None
        return False
    except (ValueError, TypeError) as error:
        raise InputError(f"{seal}: damaged ({error}): delete it, and the set is written anew") from None
    due = _identity(config)
    other = ", ".join(f"{key} {found.get(key)}, not {value}" for key, value in due.items() if found.get(key) != value)
    if other:
        raise InputError(f"{folder}: holds another synthetic set ({other}): choose another folder or delete it")
    return bool(found.get("whole"))


def _identity(config: SyntheticConfig) -> dict[str, Any]:
    """The config, and a digest of the code that turns it into videos."""
    modules = __file__, *(module.__file__ for module in (actors, distortions, encoder, scenes, textures))
    code = b"".join(Path(file).read_bytes() for file in modules if file)
    return {**asdict(config), "generator": hashlib.sha256(code).hexdigest()[:16]}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
