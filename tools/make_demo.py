"""Make the demonstration model and the two bundled clips from nothing: `python -m tools.make_demo --help`.

Enters: a seed. Leaves, under the folder of assets: `checkpoint/` (chat format), `clips/`, `expected.json` with the two
clips' recorded verdicts, and `held_out.json` with figures on clips that training did not see.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import rankdata
from tqdm import trange

from convert.load import open_model
from tools.demo_answers import lessons
from tools.demo_clips import Damage, draw_damages, rating, write_clip
from tools.demo_model import fresh, settings, write_weights
from tools.demo_train import VIEW, Collection, learn_to_see, learn_to_speak, motion_features, window
from tools.tiny_tokenizer import write_tokenizer
from vqathinker_jax.data import prompt
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import Judge, Verdict
from vqathinker_jax.records import Clip

ASSETS = Path(__file__).parents[1] / "vqathinker_jax" / "assets"
CLIPS = {"pristine.mp4": (), "damaged.mp4": (Damage("blocks", 0.7), Damage("blur", 0.4))}
"""The bundled clips: one scene, without damage and with it."""
SCENE = 1_000_000
HELD_OUT = 2_000_000
STAGES = ((168, 300, 8), (336, 80, 6))
"""Side of the window in pixels, steps and batch of each stage of learning to speak."""


def main() -> None:
    """Train, write the assets, and measure on held-out clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder to write to")
    parser.add_argument("--clips", type=int, default=600, help="clips to train on")
    parser.add_argument("--see", type=int, default=1000, help="steps of learning to see damage")
    parser.add_argument("--held-out", type=int, default=40, help="clips to measure on")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes, damages, weights and batches")
    parser.add_argument("--measure-only", action="store_true", help="keep the checkpoint that is there")
    options = parser.parse_args()

    directory = options.assets / "checkpoint"
    if not options.measure_only:
        train(directory, options.clips, options.see, options.seed)
    for name, damages in CLIPS.items():
        (options.assets / "clips").mkdir(parents=True, exist_ok=True)
        write_clip(options.assets / "clips" / name, SCENE + options.seed, damages)
    judge = Judge(
        open_model(directory, dtype="float32", unrolled=True), prompt.load_tokenizer(directory), VIEW, Sampling(128)
    )
    verdicts = {name: judge.score(options.assets / "clips" / name) for name in CLIPS}
    recorded = {name: {"score": v.score, "text": v.text} for name, v in verdicts.items()}
    _write_json(options.assets / "expected.json", {"jax": jax.__version__, "clips": recorded})
    figures = measure(judge, options.held_out, options.seed)
    _write_json(options.assets / "held_out.json", figures)
    print(json.dumps({**recorded, **figures}, indent=1))


def train(directory: Path, clips: int, see: int, seed: int) -> None:
    """Write a checkpoint trained on `clips` drawn clips."""
    read, damages = draw(clips, seed)
    texts = [answer for drawn in damages for _, answer in lessons(drawn, VIEW.frames)]
    texts += [prompt.render(question).replace(prompt.SLOT, "") for question, _ in lessons((), VIEW.frames)]
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, texts)
    tokenizer = prompt.load_tokenizer(directory)
    _write_json(directory / "config.json", settings(len(tokenizer)))
    rng = np.random.default_rng(seed)
    side = STAGES[0][0]
    typical_FYXC = np.concatenate([window(clip.frames_FYXC, side, rng)[:1] for clip in read[:100]])
    model = fresh(len(tokenizer), typical_FYXC, seed)
    frames = [clip.frames_FYXC for clip in read]
    collection = Collection(np.stack(frames), motion_features(model, frames), damages)
    learn_to_see(model, collection, side=side, steps=see, batch=48, seed=seed)
    for number, (side, steps, batch) in enumerate(STAGES):
        learn_to_speak(model, collection, tokenizer, side=side, steps=steps, batch=batch, seed=seed + number)
    write_weights(directory, model)


def draw(clips: int, seed: int) -> tuple[list[Clip], list[tuple[Damage, ...]]]:
    """Clips as the scoring view samples them, through real files, and the damages of each."""
    rng = np.random.default_rng(seed)
    damages = [draw_damages(rng) for _ in range(clips)]
    with tempfile.TemporaryDirectory() as folder, trange(clips, desc="drawing clips", unit=" clips") as numbers:
        file = Path(folder) / "clip.mp4"
        read = [read_clip(write_clip(file, seed + number, damages[number]), VIEW.frames) for number in numbers]
    return read, damages


def measure(judge: Judge, clips: int, seed: int) -> dict[str, Any]:
    """How the model does on clips of the same kind that training did not see."""
    rng = np.random.default_rng(HELD_OUT + seed)
    truth: list[float] = []
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder, trange(clips, desc="held-out clips", unit=" clips") as numbers:
        for number in numbers:
            damages = draw_damages(rng)
            truth.append(rating(damages))
            verdicts.append(judge.score(write_clip(Path(folder) / "clip.mp4", HELD_OUT + seed + number, damages)))
    rated = [(verdict.score, true) for verdict, true in zip(verdicts, truth, strict=True) if verdict.score is not None]
    return {"clips": clips, "in_form": len(rated) / clips, "srcc": round(_srcc(rated), 3)}


def _srcc(pairs: Sequence[tuple[float, float]]) -> float:
    scores, truth = np.array(pairs).T
    return float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
