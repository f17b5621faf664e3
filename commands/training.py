"""Training, what it would take, and videos to train on: `train`, `plan` and `synthesize`."""

import os
import runpy
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from commands.options import AsJson, Flag, cache_compilations
from vqathinker_jax import console
from vqathinker_jax.hardware import SHARE_OF_GPU
from vqathinker_jax.processes import ALONE, Processes, is_first, join
from vqathinker_jax.records import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from vqathinker_jax.model.vlm import VLM
    from vqathinker_jax.recipe import TrainConfig

TOPOLOGY_HELP = "A slice or machine: v4:2x2x4, v5e:8x8, v5p:4x4x4, v6e:4x4, h100:8, h200:8, or cpu:8."


def train(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE.py")],
) -> int:
    """Teach a model by GRPO from score labels alone; the same command again goes on where it was stopped or killed.

    A recipe whose stage is sft teaches it to say given responses instead.

    For example:
      python run.py train configs/tiny_cpu.py
      python run.py train configs/grpo_lsvq_8b.py --run-dir runs/8b --data.batch-size 16 --loss.beta 0
      python run.py train configs/tiny_cpu.py --help     (every setting of that recipe)

    Args:
        recipe: Python file that defines `config`, a TrainConfig; options after it override its values.
    """
    return train_by(recipe, [])


def train_by(recipe: Path, overrides: list[str]) -> int:
    """The recipe's own command line: its values are the defaults."""
    from vqathinker_jax.recipe import TrainConfig
    from vqathinker_jax.train import NotFiniteError
    from vqathinker_jax.train import train as run

    recorded = _read_recipe(recipe)

    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = recorded,
        run_dir: Path = Path("runs") / recipe.stem,
        processes: Processes = ALONE,
    ) -> int:
        from convert.load import open_config, open_model

        if not os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"):
            os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(SHARE_OF_GPU))
        checkpoint, slowfast = Path(config.checkpoint), Path(config.slowfast) if config.slowfast else None

        def start(dtype: "DTypeLike | None", mesh: "Mesh") -> "VLM":
            return open_model(checkpoint, dtype=dtype, slowfast=slowfast, mesh=mesh, progress=is_first())

        cache_compilations()
        join(processes)
        with console.training(str(run_dir), shown=is_first()) as display:
            trained = run(config, run_dir, open_config(checkpoint, slowfast=slowfast), start, display)
        if is_first():
            print(
                f"wrote {trained}"
                if trained
                else f"stopped and saved in {run_dir}; run the same command again to go on"
            )
        return 0

    try:
        told = f"Every setting of {recipe}, with its value there as the default."
        return tyro.cli(command, prog=f"run.py train {recipe}", args=overrides, description=told)
    except NotFiniteError as error:
        console.print_error(error)
        return 1


def plan(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE.py")],
    topology: Annotated[str, tyro.conf.arg(help=TOPOLOGY_HELP)] = "",
    devices: int = 0,
    model: Literal["", "1B", "2B", "8B", "14B", "38B", "78B"] = "",
    search: Flag = False,
    quick: Flag = False,
    as_json: AsJson = False,
) -> int:
    """Compile a recipe for hardware that need not be here: what of it fits, how fast it would be, and what limits it.

    For example:
      python run.py plan configs/grpo_8b_v5e_64.py --topology v5e:8x8 --model 8B
      python run.py plan configs/tiny_cpu.py --devices 2

    Exit status 1 where it does not fit. Compilers come with pip install -e '.[plan,cuda]', for TPUs and for GPUs;
    without the latter, figures for GPUs are estimates.

    Args:
        recipe: Python file that defines `config`, a TrainConfig.
        devices: Plan for so many of the kind of device that this machine has.
        model: Plan for this InternVL3 with a motion branch; by default for the recipe's checkpoint, which is then read.
        search: Find the largest batch that fits too, which compiles again and again.
        quick: Compile programs with convolutions at the least effort: minutes where it takes a quarter of an hour.
    """
    from vqathinker_jax import plan as planning
    from vqathinker_jax.budget import table
    from vqathinker_jax.hardware import CHIPS, parse_target
    from vqathinker_jax.model.released import RELEASED

    if bool(topology) == bool(devices):
        raise InputError("plan: give either --topology, as v5e:8x8, or --devices, as 8")
    config = _read_recipe(recipe)
    kind = "" if topology else planning.kind_here()
    if kind and CHIPS[kind].platform == "tpu":
        raise InputError(f"--devices: a TPU slice is told by its shape; give --topology, as {kind}:4x4 or {kind}:2x2x4")
    target = parse_target(topology or f"{kind}:{devices}")
    if model:
        dimensions = RELEASED[model]
    else:
        from convert.load import open_config

        dimensions = open_config(Path(config.checkpoint), slowfast=Path(config.slowfast) if config.slowfast else None)
    found = planning.plan(config, dimensions, target, planning.Effort(search=search, quick=quick))
    if as_json:
        console.print_row(found.as_json())
    else:
        console.print_lines("\n".join(table(found)))
    return int(not found.fits)


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


def _read_recipe(path: Path) -> "TrainConfig":
    """The `config` that a Python file defines."""
    from vqathinker_jax.recipe import TrainConfig

    if not path.is_file():
        raise InputError(f"{path}: no such recipe; name a Python file such as configs/tiny_cpu.py")
    try:
        config = runpy.run_path(str(path)).get("config")
    except InputError:
        raise
    except Exception as error:  # a recipe is Python, which fails in any way
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{place}: {type(error).__name__}: {error}; correct the recipe") from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: defines no `config` that is a TrainConfig; configs/tiny_cpu.py shows how")
    return config
