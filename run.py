"""How good does a video look, and why? VQAThinker-JAX rates videos from 1 to 5 with its reasoning, and learns to.

Exit status: 0 all well, 1 some input failed while the rest was done, 2 wrong usage or a checkpoint that does not load.
"""

# The command line, and nothing else: what a command does is a room's of its own.

import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vqathinker_jax import console
from vqathinker_jax.processes import ALONE, Processes, is_first, join
from vqathinker_jax.records import InputError, VideoError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from vqathinker_jax.judge import Judge, Verdict
    from vqathinker_jax.model.vlm import VLM
    from vqathinker_jax.recipe import TrainConfig

DEMO = Path(__file__).parent / "vqathinker_jax" / "assets"
DEMO_NOTICE = (
    "demonstration model: a tiny network that shows how everything fits together; its ratings mean little. "
    "Give --checkpoint a VQAThinker folder for real ones."
)
PATHS_HELP = "Files (a picture counts as a still video), folders (searched for videos and pictures) or globs."
META_HELP = "The reference's JSON, a CSV (video,mos), training JSON lines, a YAML list of these, or a folder of videos."
JSON_HELP = "One JSON object a line on standard output, and nothing else there."


Video = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
Source = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")]
Flag = tyro.conf.FlagCreatePairsOff[bool]
AsJson = Annotated[Flag, tyro.conf.arg(name="json", help=JSON_HELP, help_behavior_hint="")]
Videos = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    tyro.conf.arg(metavar="PATH…", help=PATHS_HELP, help_behavior_hint="(one or more)"),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model looks at the videos, and how."""

    checkpoint: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the bundled demonstration model)")] = (
        DEMO / "checkpoint"
    )
    """Folder of a checkpoint: one from Hugging Face (chat or Transformers format) or one made by `convert`."""
    slowfast: OptionalPath = None
    """SlowFast weights (SLOWFAST_8x8_R50.pyth), for a checkpoint that has a motion branch but not these."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic and weights; auto is bfloat16 on an accelerator, float32 on a CPU."""
    frames: int = 12
    """Frames taken from each video, evenly spread."""
    image_size: int = 560
    """Side, in pixels, of the square each frame is resized to."""
    decoder: Literal["pyav", "decord"] = "pyav"
    """pyav reads the right frames of every container; decord the reference's very frames, its seek errors included."""
    max_new_tokens: int = 1024
    """Longest answer; one that is cut off before its rating fails."""
    temperature: float = 0.0
    """0 takes the most probable token each time; above 0 tokens are drawn."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together are this probable."""
    seed: int = 0
    """Seed of the draws."""


def score(
    paths: Videos,
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = ModelOptions(),
    as_json: AsJson = False,
    window: float | None = None,
    stride: float = 0.0,
    curves: Path = Path("curves"),
) -> int:
    """Rate videos from 1 (very poor) to 5 (excellent), with the reasoning.

    For example:
      python run.py score clip.mp4
      python run.py score videos/ 'more/*.mkv' --checkpoint VQAThinker-8B --json > ratings.jsonl
      python run.py score film.mkv --window 10 --stride 5     (an extension: the rating over time)

    Args:
        window: Rate windows of so many seconds instead of whole videos, whatever their length.
        stride: Seconds from one window's beginning to the next's; 0 for one after another.
        curves: Folder for each video's rating over time, as NAME.json and NAME.png.
    """
    from vqathinker_jax.data.paths import expand

    if not paths:
        raise InputError("score: no paths given; name a video, a folder or a glob, as in: python run.py score clip.mp4")
    videos = expand(paths)
    if window is not None:
        return _score_windows(videos, model, window, stride, curves, as_json=as_json)
    judge = _open(model)
    verdicts = [_score_one(judge, video, index, len(videos), as_json=as_json) for index, video in enumerate(videos)]
    if not as_json and len(verdicts) > 1:
        console.print_table(verdicts)
    if not as_json and _is_demo(model):
        print(f"({DEMO_NOTICE})")
    return int(any(verdict.status == "failed" for verdict in verdicts))


def ask(
    video: Video,
    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")],
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = ModelOptions(),
    as_json: AsJson = False,
) -> int:
    """Ask a free question about a video's quality.

    For example:
      python run.py ask clip.mp4 "Is the motion smooth?" --checkpoint VQAThinker-8B

    Args:
        video: File of a video, or of a picture, which counts as a still video.
        question: What to ask, in quotes.
    """
    judge = _open(model, question)
    with console.progress(video.name, model.max_new_tokens) as progress:
        reply = judge.ask(video, question, progress)
    if as_json:
        console.print_row(reply.row())
    else:
        console.print_reply(reply)
    return int(reply.status == "failed")


def evaluate(
    meta: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="META", help=META_HELP)],
    output: Path,
    videos: Path | None = None,
    preset: Literal["paper"] | None = None,
    task: Literal["score", "choice", "describe"] = "score",
    batch_size: int = 4,
    workers: int = 2,
    resume: bool = True,
    share: str = "1/1",
    processes: Processes = ALONE,
    compare: Path | None = None,
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = ModelOptions(),
) -> int:
    """Run the model over whole sets of videos, and hold its ratings against labels; interrupted, it goes on.

    For example:
      python run.py evaluate konvid.json --videos KoNViD_1k --output runs/konvid --checkpoint VQAThinker-8B
      python run.py evaluate videos/ --output runs/mine

    Args:
        output: Folder for predictions, figures and the report; the same command again does only what is missing.
        videos: Folder of the videos; by default the meta's own.
        preset: "paper" takes the paper's ten sets under its names (META: a folder of their metas) and its figures.
        task: What to ask: a rating, the questions of META (JSON lines), or a free description.
        batch_size: Videos on the device at a time.
        workers: Processes that decode videos; 0 decodes between answers.
        resume: Go on with what is in the output folder; without, start over.
        share: Which part to do, as 2/4 on the second of four hosts that cannot reach each other; run once without it
            afterwards. Those that can are told of each other by --processes, and share by themselves.
        compare: Output folder of another run over the same sets, to stand beside this one in the report.
    """
    from vqathinker_jax import evaluate as evaluation
    from vqathinker_jax import report, summary, tables
    from vqathinker_jax.data.labels import read_choices, read_sets
    from vqathinker_jax.data.paper import read_paper
    from vqathinker_jax.predictions import ALL, Share, check_folder, read_run
    from vqathinker_jax.tasks import TASKS

    pace = evaluation.Pace(batch_size, workers)
    if preset and task == "choice":
        raise InputError("--preset paper has no questions; leave it out, or ask for another --task")
    if meta.is_dir() and not preset and output.resolve().is_relative_to(meta.resolve()):
        raise InputError(f"{output}: lies among the videos, where its pictures would be rated too; name another folder")
    read = read_choices if task == "choice" else read_paper if preset == "paper" else read_sets
    sets = read(meta, videos)
    check_folder(output)
    others = read_run(compare) if compare else None
    part, together = Share.parse(share), processes != ALONE
    if together:
        if part != ALL:
            raise InputError(
                f"--share {share} is for hosts that do not know of each other; leave it or --processes out"
            )
        join(processes)
        part = evaluation.own_share()
    judge, run = _open(model), evaluation.evaluate_together if together else partial(evaluation.evaluate, share=part)
    with console.counting("looking at videos") as count:
        rows, made_by = run(
            judge,
            sets,
            output,
            TASKS[task],
            pace=pace,
            resume=resume,
            report=lambda now: count(now.done, now.total, now.note()),
        )
    results = summary.join(sets, rows, rated=task == "score")
    whole = part.number == 1 if together else part == ALL
    if whole:
        figures = summary.summarise(results, made_by)
        summary.write(output, results, figures)
        beside = None
        if compare and others is not None:
            beside = report.Beside(compare.name, summary.join(sets, others, rated=task == "score"))
        report.write(output / "report.html", results, figures, partial(evaluation.sheet_of, output), beside)
        console.print_lines(tables.markdown(tables.tables(figures)))
        print(f"wrote {output / 'report.html'}, summary.md, summary.json and predictions.csv")
    elif not together:
        print(f"share {share} is done; once all are, the same command without --share writes figures and report")
    if _is_demo(model):
        print(f"({DEMO_NOTICE})")
    entries = (ALL if whole else part).take([entry for result in results for entry in result.entries])
    return int(any(entry.status != "ok" for entry in entries))


def convert(
    source: Source,
    target: Target,
    slowfast: OptionalPath = None,
    fresh_motion: Flag = False,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    force: Flag = False,
) -> int:
    """Write a Hugging Face checkpoint (either format) as a native one, which loads faster and onto any mesh.

    For example:
      python run.py convert VQAThinker-8B vqathinker-8b
      python run.py convert InternVL3-8B start-8b --fresh-motion --slowfast SLOWFAST_8x8_R50.pyth     (to train)

    Args:
        source: Folder with config.json, safetensors and tokenizer files.
        target: Folder to write.
        slowfast: SlowFast weights, for a checkpoint that does not have them.
        fresh_motion: Give a plain InternVL3 a motion branch, as training starts from; its projector knows nothing yet.
        dtype: Dtype of the written weights; stored keeps each tensor's own.
        force: Replace a checkpoint that is in target.
    """
    from convert.native import convert_checkpoint
    from vqathinker_jax.checkpoint import read_config
    from vqathinker_jax.data.prompt import load_tokenizer

    read_config(source)
    load_tokenizer(source)
    kind = None if dtype == "stored" else dtype
    notes = convert_checkpoint(source, target, slowfast=slowfast, fresh_motion=fresh_motion, dtype=kind, force=force)
    console.print_lines("\n".join([f"wrote {target}", *(f"note: {note}" for note in notes)]))
    return 0


def export(
    source: Source,
    target: Target,
    to: Annotated[Literal["chat", "transformers"], tyro.conf.arg(name="format")],
    slowfast: OptionalPath = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    force: Flag = False,
) -> int:
    """Write a checkpoint in a format of the PyTorch world: for vLLM, Transformers, or the original's own scripts.

    For example:
      python run.py export vqathinker-8b VQAThinker-8B-mine --format chat

    Args:
        source: Folder of a native checkpoint, or of one in either format.
        target: Folder to write.
        to: chat: all as the original has it; transformers: for its class, with the motion branch in a file beside.
        slowfast: SlowFast weights, for a checkpoint that has a motion branch but not these.
        dtype: Dtype of the written weights; stored keeps each tensor's own.
        force: Replace a checkpoint that is in target.
    """
    from convert.export import export_checkpoint

    kind = None if dtype == "stored" else dtype
    notes = export_checkpoint(source, target, to, slowfast=slowfast, dtype=kind, force=force)
    console.print_lines("\n".join([f"wrote {target}", *(f"note: {note}" for note in notes)]))
    return 0


def train(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE.py")],
) -> int:
    """Teach a model by GRPO from score labels alone; the same command again goes on where it was stopped or killed.

    For example:
      python run.py train configs/tiny_cpu.py
      python run.py train configs/grpo_lsvq_8b.py --run-dir runs/8b --data.batch-size 16 --loss.beta 0
      python run.py train configs/tiny_cpu.py --help     (every setting of that recipe)

    Args:
        recipe: Python file that defines `config`, a TrainConfig; options after it override its values.
    """
    return _train(recipe, [])


def _train(recipe: Path, overrides: list[str]) -> int:
    """The recipe's own command line: its values are the defaults."""
    from vqathinker_jax.recipe import TrainConfig
    from vqathinker_jax.train import NotFiniteError
    from vqathinker_jax.train import train as run

    recorded = _recipe(recipe)

    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = recorded,
        run_dir: Path = Path("runs") / recipe.stem,
        processes: Processes = ALONE,
    ) -> int:
        from convert.load import open_config, open_model

        checkpoint, slowfast = Path(config.checkpoint), Path(config.slowfast) if config.slowfast else None

        def start(dtype: "DTypeLike", mesh: "Mesh") -> "VLM":
            return open_model(checkpoint, dtype=dtype, slowfast=slowfast, mesh=mesh, progress=is_first())

        _cache_compilations()
        join(processes)
        with console.training(str(run_dir), shown=is_first()) as display:
            trained = run(config, run_dir, open_config(checkpoint, slowfast=slowfast), start, display)
        if is_first():
            print(f"wrote {trained}" if trained else f"stopped; {run_dir} holds what the same command needs to go on")
        return 0

    try:
        told = f"Every setting of {recipe}, with its value there as the default."
        return tyro.cli(command, prog=f"run.py train {recipe}", args=overrides, description=told)
    except NotFiniteError as error:
        console.print_error(error)
        return 1


TOPOLOGY_HELP = "A slice or machine: v4:2x2x4, v5e:8x8, v5p:4x4x4, v6e:4x4, h100:8, h200:8, or cpu:8."


def plan(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE.py")],
    topology: Annotated[str, tyro.conf.arg(help=TOPOLOGY_HELP)] = "",
    devices: int = 0,
    model: Literal["", "1B", "2B", "8B", "14B", "38B", "78B"] = "",
    search: Flag = False,
    as_json: AsJson = False,
) -> int:
    """Compile a recipe for hardware that need not be here: what of it fits, how fast it would be, and what limits it.

    For example:
      python run.py plan configs/grpo_8b_v5e_64.py --topology v5e:8x8 --model 8B
      python run.py plan configs/tiny_cpu.py --devices 2

    Exit status 1 where it does not fit. TPUs need pip install -e '.[plan]'; figures for GPUs are estimates.

    Args:
        recipe: Python file that defines `config`, a TrainConfig.
        devices: So many of the kind of device that is here, in place of a topology.
        model: Plan for this InternVL3 with a motion branch; by default for the recipe's checkpoint, which is then read.
        search: Find the largest batch that fits too, which compiles again and again.
    """
    from vqathinker_jax import plan as planning
    from vqathinker_jax.budget import table
    from vqathinker_jax.hardware import parse_target
    from vqathinker_jax.model.released import RELEASED

    if bool(topology) == bool(devices):
        raise InputError("plan: give either --topology, as v5e:8x8, or --devices, as 8")
    config = _recipe(recipe)
    target = parse_target(topology or f"{planning.kind_here()}:{devices}")
    if model:
        dimensions = RELEASED[model]
    else:
        from convert.load import open_config

        dimensions = open_config(Path(config.checkpoint), slowfast=Path(config.slowfast) if config.slowfast else None)
    found = planning.plan(config, dimensions, target, search=search)
    if as_json:
        console.print_row(found.as_json())
    else:
        console.print_lines("\n".join(table(found)))
    return int(not found.fits)


def _recipe(path: Path) -> "TrainConfig":
    """The `config` that a Python file defines."""
    from vqathinker_jax.recipe import TrainConfig

    if not path.is_file():
        raise InputError(f"{path}: no such recipe; name a Python file such as configs/tiny_cpu.py")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: defines no `config` that is a TrainConfig; configs/tiny_cpu.py shows how")
    return config


def synthesize(
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")],
    train: int = 1500,
    in_domain: int = 200,
    out_of_domain: int = 200,
    size: int = 112,
    frames: int = 12,
    seed: int = 0,
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: one a core)")] = None,
) -> int:
    """Write videos with known damages and their ratings: a set to train on, and two to test on.

    For example:
      python run.py synthesize synthetic
      python run.py evaluate synthetic/in_domain.json --videos synthetic --output runs/synthetic

    Args:
        folder: Folder to write; one that holds this very set is left as it is.
        train: Videos to train on.
        in_domain: Videos of unseen scenes with the damages of training.
        out_of_domain: Videos of unseen scenes with unseen kinds or strengths of damage.
        size: Pixels a side; the side that the model will see, for fine damage does not survive a resize.
        frames: Frames that the model will sample; a file holds one more.
        seed: Of scenes, damages and raters.
        workers: Processes that make videos.
    """
    from vqathinker_jax.data.synthetic import SyntheticConfig, write_set

    truths = write_set(
        folder, SyntheticConfig(train, in_domain, out_of_domain, size, frames, seed), workers, progress=True
    )
    for split, made in truths.items():
        console.print_lines(f"{folder / split}.jsonl: {len(made)} videos")
    return 0


def crosscheck(
    checkpoint: Path,
    video: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: a bundled clip)")] = (
        DEMO / "clips" / "pristine.mp4"
    ),
    dtype: Literal["float32", "bfloat16"] = "float32",
    reference: Literal["transformers", "remote-code"] = "transformers",
    gradients: Flag = False,
    save: OptionalPath = None,
    against: OptionalPath = None,
    output: Path = Path("crosscheck"),
    weights: Literal["auto", "memory", "disk"] = "auto",
    slowfast: OptionalPath = None,
    frames: int = 6,
    image_size: int = 560,
    tokens: int = 32,
) -> int:
    """Hold this model against PyTorch's, stage by stage, on the same weights and video; exit status 1: they differ.

    For example:
      python run.py crosscheck --checkpoint VQAThinker-8B
      python run.py crosscheck --checkpoint VQAThinker-8B --save half       (where PyTorch is)
      python run.py crosscheck --checkpoint VQAThinker-8B --against half    (where the accelerator is)

    Args:
        checkpoint: Folder from Hugging Face, in chat or Transformers' format.
        video: What both look at.
        dtype: Of weights and activations on both sides; float32 tells faults from rounding best.
        reference: remote-code runs the Python files in the checkpoint's folder: only for folders you trust.
        gradients: Compare the gradient of a GRPO loss by every weight too.
        save: Record the reference's half in this folder, and stop.
        against: Take the reference's half from this folder, and what both look at; PyTorch is not needed.
        output: Folder for crosscheck.json and crosscheck.png.
        weights: disk reads each layer when it runs; auto does so where memory is short.
        slowfast: SlowFast weights, for a checkpoint that has a motion branch but not these.
        frames: Frames taken from the video.
        image_size: Side, in pixels, of the square each frame is resized to.
        tokens: How many tokens of the answer are compared; from disk each takes all layers once more.
    """
    from convert.crosscheck import Halves, make_task
    from convert.crosscheck import crosscheck as check

    halves = Halves(save, against, weights, reference, slowfast)
    inputs = {"frames": frames, "image_size": image_size, "tokens": tokens, "dtype": dtype, "gradients": gradients}

    def say(line: str) -> None:
        console.print_lines(line)
        sys.stdout.flush()  # a stage may take minutes

    agree = check(checkpoint, halves, lambda: make_task(checkpoint, video, **inputs, slowfast=slowfast), output, say)
    return int(not agree)


def doctor(checkpoint: OptionalPath = None, slowfast: OptionalPath = None) -> int:
    """Check this installation: versions, devices, decoders, and a bundled clip scored against its recorded result.

    Args:
        checkpoint: Check this folder instead: its config, its tokenizer, and every tensor against its checksum.
        slowfast: SlowFast weights, for a checkpoint that has a motion branch but not these.
    """
    from vqathinker_jax.doctor import examine, report

    if checkpoint is None and slowfast:
        raise InputError(f"doctor: {slowfast} belongs to a checkpoint; name that one with --checkpoint")
    if checkpoint is None:
        return examine(DEMO, lambda: _open(ModelOptions()))
    from convert.integrity import examine_checkpoint

    return report(examine_checkpoint(checkpoint, slowfast))


def _open(options: ModelOptions, question: str | None = None) -> "Judge":
    """Load the model that is to rate videos, or to answer `question`; progress and notices go to standard error."""
    from vqathinker import Sampling, View, load

    _backend()
    _cache_compilations()
    if _is_demo(options):
        print(DEMO_NOTICE, file=sys.stderr)
    return load(
        options.checkpoint,
        slowfast=options.slowfast,
        dtype=options.dtype,
        view=View(options.frames, options.image_size, options.decoder),
        sampling=Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p),
        seed=options.seed,
        question=question,
        progress=True,
    )


def _backend() -> str:
    import jax

    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where CUDA is asked for and there is none
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"jax finds no device for JAX_PLATFORMS={asked!r}; unset it, or see: run.py doctor") from None


def _cache_compilations() -> None:
    """Keep what XLA compiles for the next run."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vqathinker-jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))


def _score_one(judge: "Judge", video: Path, index: int, count: int, *, as_json: bool) -> "Verdict":
    with console.progress(f"[{index + 1}/{count}] {video.name}", judge.sampling.max_new_tokens) as progress:
        verdict = judge.score(video, progress)
    if as_json:
        console.print_row(verdict.row())
    else:
        console.print_verdict(verdict)
    return verdict


def _score_windows(
    videos: Sequence[Path], model: ModelOptions, window: float, stride: float, curves: Path, *, as_json: bool
) -> int:
    """Rate each video's windows; returns the exit status."""
    from vqathinker_jax import timeline
    from vqathinker_jax.data.windows import Span

    if model.decoder != "pyav":
        raise InputError(f"--decoder {model.decoder} cannot read windows; use pyav")
    span, judge, failed = Span(window, stride), _open(model), False
    for name, video in zip(timeline.names(videos), videos, strict=True):
        try:
            with console.counting(video.name) as count:
                moments = []
                for moment in timeline.rate_windows(judge, video, span):
                    moments.append(moment)
                    count(len(moments), None, "windows")
        except VideoError as fault:
            console.print_error(fault)
            failed = True
            continue
        told = timeline.write(curves, name, video, span, moments)
        failed |= any(moment.score is None for moment in moments)
        if as_json:
            console.print_row(told)
        else:
            console.print_lines(timeline.describe(told))
            print(f"wrote {curves / name}.json and .png")
    return int(failed)


def _is_demo(options: ModelOptions) -> bool:
    return options.checkpoint.resolve() == (DEMO / "checkpoint").resolve()


def main() -> int:
    """Run one command; a fault in what the user gave is one line on standard error."""
    commands = {
        "score": score,
        "ask": ask,
        "evaluate": evaluate,
        "train": train,
        "plan": plan,
        "synthesize": synthesize,
        "convert": convert,
        "export": export,
        "crosscheck": crosscheck,
        "doctor": doctor,
    }
    try:
        if sys.argv[1:2] == ["train"] and len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
            return _train(Path(sys.argv[2]), sys.argv[3:])
        return tyro.extras.subcommand_cli_from_dict(commands, prog="run.py", description=__doc__)
    except BrokenPipeError:  # whoever reads our output has seen enough; Python would flush the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as error:
        console.print_error(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
