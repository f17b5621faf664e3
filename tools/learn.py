"""The learning experiment as one command: `python -m tools.learn --help`, or `make learn`.

Enters: nothing. Leaves, in the folder of results: `summary.json`, `curves.json` with every step of every run, and
figures. Synthetic videos are written; a tiny model is made for each seed, taught to see, warm-started on responses
whose words are true and whose ratings know nothing of the video, and then trained by GRPO; each is measured on scenes
that training did not see. The control does the same from the first seed's warm start with ratings that belong to other
videos.

What was stopped goes on where it was. Each process has a core; what is in the folder of the work is not made again, so
that `--ablations` can follow. The summary tells how long it took if it was done in one go.
"""

import json
import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from configs import learn_small, learn_tiny
from tools.curves import DRAWN, write_figures
from tools.disorder import COPIES, write_copies
from tools.responses import write_lessons
from tools.summary import CONTROL, STAGES, effort, summarise
from tools.tiny_model import SMALL, TINY
from vqathinker_jax.data.synthetic import SyntheticConfig, read_truth, write_set
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.rewards import RewardConfig

SHUFFLED = "train_shuffled.jsonl"
LESSONS = "train.jsonl", f"{COPIES}.jsonl"
"""What the warm start is taught about."""
ABLATIONS = {
    "without_ranking": RewardConfig(ranking=0.0),
    "without_regression": RewardConfig(regression=0.0),
    "without_temporal": RewardConfig(temporal_bonus=0.0),
}
"""What GRPO is rewarded by instead, from the first seed's warm start."""
DEAF = "without_motion_token"
TYPICAL = 100
"""Clips that the first filters are scaled by."""
BATCH = 32
"""Pictures a step of learning to see."""
TOOK = "took.json"
"""In the folder of the work: how long the whole of it took, and where."""
RECIPES = {"tiny": (TINY, 2e-3, learn_tiny), "small": (SMALL, 3e-4, learn_small)}
"""How large the model is, the rate at which it learns to see, and the module with `warm_start` and `config`."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    recipe: Literal["tiny", "small"] = "tiny"
    """Of `configs/`: tiny, for two cores; small, for one GPU, which wants processes 1."""
    work: Path = Path("runs/learn")
    """Folder for videos, checkpoints and runs."""
    results: Path = Path("benchmarks/learning")
    """Folder for the summary, curves and figures."""
    seeds: int = 3
    """Runs of the whole chain."""
    processes: int = os.cpu_count() or 1
    """Runs side by side, each on a core of its own."""
    ablations: bool = False
    """Also leave out one reward at a time, from the first seed's warm start, and the motion token, from before it."""
    train: int = 4000
    """Videos to train on."""
    held_out: int = 200
    """Videos of each held-out split."""
    seeing: int = 2000
    """Steps of learning to see."""
    warm_start: int | None = None
    """Steps of the supervised stage; None, as the recipe says."""
    grpo: int | None = None
    """Steps of GRPO; None, as the recipe says."""

    def __post_init__(self):
        for name in ("seeds", "processes", "warm_start", "grpo"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more")

    @property
    def first(self) -> TrainConfig:
        """The supervised stage."""
        recipe = RECIPES[self.recipe][2].warm_start
        return replace(recipe, steps=recipe.steps if self.warm_start is None else self.warm_start)

    @property
    def then(self) -> TrainConfig:
        """GRPO."""
        recipe = RECIPES[self.recipe][2].config
        return replace(recipe, steps=recipe.steps if self.grpo is None else self.grpo)

    @property
    def videos(self) -> Path:
        """Folder of the synthetic set."""
        return self.work / "videos"


def main(options: Options) -> None:
    """Do what is missing, and write the results."""
    began, fresh = time.monotonic(), not options.work.exists()
    spawn = multiprocessing.get_context("spawn")
    write_videos(options)
    taken = spawn.Value("i", 0)
    with ProcessPoolExecutor(options.processes, mp_context=spawn, initializer=_take_core, initargs=(taken,)) as pool:

        def begin(run: Callable[..., dict[str, Any]], *arguments: Any) -> Future[dict[str, Any]]:
            begun = pool.submit(run, options, *arguments)
            begun.add_done_callback(_end_all_where_one_failed)
            return begun

        runs = [begin(run_seed, seed) for seed in range(options.seeds)]
        # The others begin from the first seed's warm start, so they are asked for when that is there.
        runs[0].result()
        others = {CONTROL: begin(run_variant, CONTROL, SHUFFLED, options.then.rewards)}
        if options.ablations:
            others[DEAF] = begin(run_deaf)
            for name, rewards in ABLATIONS.items():
                others[name] = begin(run_variant, name, "train.jsonl", rewards)
        measured = [run.result() for run in runs]
        measured_others = {name: other.result() for name, other in others.items()}
    if fresh:
        _write_json(options.work / TOOK, effort(time.monotonic() - began, options.processes, options.ablations))
    write_results(options, measured, measured_others)


def write_videos(options: Options) -> None:
    """Write the synthetic set, copies of it out of order, and its training manifest with the ratings shuffled among the
    videos."""
    view = options.then.data
    held_out = {"in_domain": options.held_out, "out_of_domain": options.held_out}
    synthetic = SyntheticConfig(options.train, **held_out, size=view.size, frames=view.frames)
    write_set(options.videos, synthetic, workers=options.processes, progress=True)
    write_copies(options.videos, view.frames)
    rows = [json.loads(line) for line in (options.videos / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))
    turns = [rows[other]["conversations"] for other in order]
    lines = [json.dumps(row | {"conversations": said}) for row, said in zip(rows, turns, strict=True)]
    (options.videos / SHUFFLED).write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_seed(options: Options, seed: int) -> dict[str, Any]:
    """Make, warm-start, train and measure one model; returns the measurements by stage."""
    here = _home(options, seed)
    here.mkdir(parents=True, exist_ok=True)
    lessons = here / "lessons.jsonl"
    write_lessons([options.videos / name for name in LESSONS], lessons, seed)
    _once(here / "seeing" / "config.json", lambda: _write_seeing(options, here, lessons, seed))
    _teach(options, here, lessons, seed)
    return {stage: _measured(options, here / stage) for stage in STAGES}


def run_deaf(options: Options) -> dict[str, Any]:
    """The first seed's chain without the motion token, from learning to see on; returns its measurements."""
    source, here = _home(options, 0), options.work / DEAF
    _once(here / "seeing" / "config.json", lambda: _write_deaf(source / "seeing", here / "seeing"))
    _teach(options, here, source / "lessons.jsonl", 0)
    return _measured(options, here / "grpo")


def _teach(options: Options, here: Path, lessons: Path, seed: int) -> None:
    """The warm start, and GRPO from it, of what has learned to see."""
    first = replace(options.first, checkpoint=str(here / "seeing"))
    _train(_over(first, options, lessons, seed), here / "warm_start")
    _train(_reinforced(options, here, options.videos / "train.jsonl", seed), here / "grpo")


def run_variant(options: Options, name: str, manifest: str, rewards: RewardConfig) -> dict[str, Any]:
    """GRPO from the first seed's warm start by other ratings or rewards; returns its measurements."""
    settings = _reinforced(options, _home(options, 0), options.videos / manifest, seed=0)
    _train(replace(settings, rewards=rewards), options.work / name)
    return _measured(options, options.work / name)


def write_results(options: Options, measured: list[dict[str, Any]], others: dict[str, dict[str, Any]]) -> None:
    """Write the summary, the curves, and the figures drawn from them."""
    took = options.work / TOOK
    summary = json.loads(took.read_text(encoding="utf-8")) if took.exists() else {}
    summary |= summarise(measured, others)
    options.results.mkdir(parents=True, exist_ok=True)
    _write_json(options.results / "summary.json", summary)
    runs = {f"seed {seed}": _home(options, seed) for seed in range(options.seeds)}
    curves = {stage: {name: _curves(home / stage) for name, home in runs.items()} for stage in STAGES}
    curves["grpo"][CONTROL.replace("_", " ")] = _curves(options.work / CONTROL)
    write_figures(options.results, curves, summary)
    # Not drawn, for they would hide the others.
    ablations = {name: options.work / name / ("grpo" if name == DEAF else "") for name in others if name != CONTROL}
    curves["grpo"] |= {name.replace("_", " "): _curves(home) for name, home in ablations.items()}
    _write_json(options.results / "curves.json", curves, indent=None)
    shown = {stage: summary[stage] for stage in STAGES}
    controls = {name: summary[name] for name in ("blank_frames_srcc", "shuffled_reward_srcc")}
    print(json.dumps(shown | controls, indent=1))


def _home(options: Options, seed: int) -> Path:
    return options.work / f"seed{seed}"


def _reinforced(options: Options, home: Path, manifest: Path, seed: int) -> TrainConfig:
    """GRPO from the warm start of a chain."""
    return _over(replace(options.then, checkpoint=str(home / "warm_start" / "model")), options, manifest, seed)


def _over(settings: TrainConfig, options: Options, manifest: Path, seed: int) -> TrainConfig:
    """The settings, over the videos of a manifest, by a seed."""
    data = replace(settings.data, manifests=str(manifest), folders=str(options.videos), seed=seed)
    return replace(settings, data=data, seed=seed)


def _write_seeing(options: Options, here: Path, lessons: Path, seed: int) -> None:
    """Make a model that has learned to see damage and nothing else, as the checkpoint `seeing`."""
    from tools.measure import load_frames, manifest_rows
    from tools.see import learn_to_hear, learn_to_see, look_at
    from tools.tiny_model import fresh, settings, write_weights, write_words
    from vqathinker_jax.data import prompt

    rows = [json.loads(line) for line in lessons.read_text(encoding="utf-8").splitlines()]
    view, (size, rate, _) = options.first.data, RECIPES[options.recipe]
    question = prompt.render(prompt.scoring_question(view.frames, motion=True)).replace(prompt.SLOT, "")
    texts = [question, *(row["response"] for row in rows)]
    raw = settings(write_words(here / "seeing", texts), size, view.frames)
    frames_NFYXC = load_frames(manifest_rows(options.videos, "train"), view)
    model = fresh(raw, frames_NFYXC[:TYPICAL].reshape(-1, *frames_NFYXC.shape[2:]), seed)
    truths = list(read_truth(options.videos / "train.jsonl").values())
    clips = look_at(model, frames_NFYXC, truths, seed)
    seen = learn_to_see(model, clips, steps=options.seeing, batch=BATCH, rate=rate, seed=seed)
    heard = learn_to_hear(model, clips, seed=seed)
    _write_json(here / "seeing.json", {"seeing": seen, "hearing": heard})
    write_weights(here / "seeing", raw, model)


def _write_deaf(source: Path, target: Path) -> None:
    """Write a checkpoint once more, without its motion branch."""
    from convert.load import open_model
    from tools.tiny_model import write_weights

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    del raw["motion_config"]
    model = open_model(source, dtype="float32")
    model.motion = model.motion_projector = None
    write_weights(target, raw, model)


def _train(settings: TrainConfig, directory: Path) -> None:
    """Train as the settings say; the step at hand is printed now and then."""
    from convert.load import open_config, open_model
    from vqathinker_jax.train import train

    source = Path(settings.checkpoint)

    def display(done: int, steps: int, metrics: dict[str, float]) -> None:
        if done % 40 == 0:
            told = {name: round(metrics[name], 3) for name in ("loss", "reward", "kl") if name in metrics}
            print(f"{directory}: step {done} of {steps}, {told}", flush=True)

    def start(dtype: Any, mesh: Any) -> Any:
        return open_model(source, dtype=dtype, mesh=mesh)

    train(settings, directory, open_config(source), start, display)


def _measured(options: Options, directory: Path) -> dict[str, Any]:
    """Measurements of a run's model, kept beside it."""
    from tools.measure import measure

    file = directory / "measured.json"

    def make() -> None:
        view, room = options.then.data, options.then.rollout.max_new_tokens
        found = measure(directory / "model", options.videos, view, room)
        _write_json(file, found)
        print(f"{directory}: {json.dumps({name: found[name] for name in ('in_domain', 'temporal')})}", flush=True)

    _once(file, make)
    return json.loads(file.read_text(encoding="utf-8"))


def _once(file: Path, make: Callable[[], None]) -> None:
    if not file.exists():
        make()


def _end_all_where_one_failed(run: Future[dict[str, Any]]) -> None:
    """Tell what ended a run, and end the others: they would work on for most of an hour, and nobody would know."""
    if run.cancelled() or run.exception() is None or isinstance(run.exception(), BrokenProcessPool):
        return
    traceback.print_exception(run.exception())
    for child in multiprocessing.active_children():
        child.terminate()


def _take_core(taken: Any) -> None:
    """Keep this process to a core of its own, so that runs side by side do not wait for each other's threads."""
    with taken.get_lock():
        number = taken.value
        taken.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def _curves(directory: Path) -> list[dict[str, float]]:
    """What is drawn of a run's metrics, by step."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: float(f"{row[name]:.4g}") for name in DRAWN if name in row} for row in rows]


def _write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
