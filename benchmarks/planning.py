"""Plans of all recipes for slices and machines, of the 8B recipe from 16 to 256 chips, and of what saves memory.

    python -m benchmarks.planning                    # plans what is not in benchmarks/plans yet, then writes its tables
    python -m benchmarks.planning scaling_256        # plans these anew
    python -m benchmarks.planning --tables           # only writes the tables, benchmarks/plans/README.md

Needs `pip install -e '.[plan,cuda]'`. Compiling takes minutes a plan; each is written to benchmarks/plans/NAME.json.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vqathinker_jax.hardware import GIB, parse_target
from vqathinker_jax.model.released import RELEASED
from vqathinker_jax.optim import OptimizerConfig
from vqathinker_jax.plan import Effort, plan
from vqathinker_jax.recipe import ReferenceConfig, TrainConfig
from vqathinker_jax.records import InputError
from vqathinker_jax.sharding import MeshConfig

ROOT = Path(__file__).parent.parent
PLANS = ROOT / "benchmarks" / "plans"
STEP = "prefill", "decode", "update"
"""What takes next to all of a step."""


@dataclass(frozen=True)
class Question:
    """One plan: a recipe of configs/, a target, a model's name, what is changed of the recipe; phases, all if none."""

    recipe: str
    topology: str
    model: str
    change: Callable[[TrainConfig], TrainConfig] = lambda config: config
    only: tuple[str, ...] = ()


def chips(count: int, copies: int = 1, **changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    """One video a chip, on so many copies of the model, and other settings."""
    return lambda config: replace(
        config, data=replace(config.data, batch_size=count), mesh=MeshConfig(data=copies, fsdp=-1), **changes
    )


def plain(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    """The recipe without what saves memory in its optimizer and its reference policy, and with other settings."""
    return lambda config: replace(config, **{"optimizer": OptimizerConfig(), "reference": ReferenceConfig(), **changes})


RECIPES = {
    "grpo_8b_v5e_64": Question("grpo_8b_v5e_64", "v5e:8x8", "8B"),
    "grpo_1b_v5e": Question("grpo_1b_v5e", "v5e:1x1", "1B"),
    "grpo_8b_v5p_16": Question("grpo_8b_v5p_16", "v5p:2x2x2", "8B"),
    "grpo_8b_v6e_16": Question("grpo_8b_v6e_16", "v6e:4x4", "8B"),
    "grpo_8b_h200_8": Question("grpo_8b_h200_8", "h200:8", "8B"),
    "lora_8b_h200": Question("lora_8b_h200", "h200:1", "8B"),
    "grpo_38b_v5p_64": Question("grpo_38b_v5p_64", "v5p:2x4x4", "38B"),
}
SAVING = {"optimizer": OptimizerConfig(moments="bfloat16"), "reference": ReferenceConfig(memory="host")}
"""With which 16 chips have room for a video each."""
SCALING = {
    f"scaling_{name}": Question("grpo_8b_v5e_64", f"v5e:{shape}", "8B", change, STEP)
    for name, shape, change in (
        ("16", "4x4", chips(16)),
        ("16_saving", "4x4", chips(16, **SAVING)),
        ("256", "16x16", chips(256)),
        ("256_in_4_copies", "16x16", chips(256, copies=4)),
    )
}
LEVERS = {
    f"lever_{name}": Question("grpo_1b_v5e", "v5e:1x1", "1B", change, ("update",))
    for name, change in (
        ("nothing", plain()),
        ("reference_on_host", plain(reference=ReferenceConfig(memory="host"))),
        ("moments_bfloat16", plain(optimizer=OptimizerConfig(moments="bfloat16"))),
        ("vision_frozen", plain(optimizer=OptimizerConfig(freeze_vision=True))),
        ("parameters_float32", plain(parameters="float32")),
        ("micro_batches_4", plain(micro_batches=4)),
        ("remat_layers", plain(remat="layers")),
        ("remat_products", plain(remat="products")),
        ("remat_none", plain(remat="none")),
        ("attention_blocks", plain(attention="blocks")),
    )
}
QUESTIONS = RECIPES | SCALING | LEVERS


def ask(name: str) -> None:
    """Make one plan and write it."""
    question = QUESTIONS[name]
    config = question.change(runpy.run_path(str(ROOT / "configs" / f"{question.recipe}.py"))["config"])
    found = plan(
        config, RELEASED[question.model], parse_target(question.topology), Effort(quick=True, only=question.only)
    )
    made = {"made": f"{date.today()}", "jax": version("jax")}
    if question.topology.startswith("v"):
        made["libtpu"] = version("libtpu")
    (PLANS / f"{name}.json").write_text(json.dumps(made | found.as_json(), indent=1) + "\n")


def tables() -> Iterator[str]:
    """Lines of the README of all plans there are."""
    made = {name: json.loads(path.read_text()) for name in QUESTIONS if (path := PLANS / f"{name}.json").is_file()}
    yield "# Plans\n"
    yield "Until 2026-11-28 prefill made all tokens of its last layer, 3.5 % more work, and plans for GPUs were"
    yield "estimates; until then, completions were decoded by a scan over layers, and without a kernel.\n"
    yield "Written by `python -m benchmarks.planning` from the JSON files beside it; what its columns mean, and what is"
    yield "assumed, is in `docs/planning.md`. Nothing here was measured on the hardware it is about: memory is what the"
    yield "compiler says, time is the roofline of what it made, which nothing is faster than. \\* compiled quickly, so"
    yield "that bytes moved are more than they would be. ‡ estimates from a CPU's buffers. † with attention in blocks,"
    yield "where a run has a kernel, so that memory and bytes are above a run's.\n"
    yield "## Recipes\n"
    columns = "recipe | target | mesh | videos | fullest phase | GiB | of | fits | decode s | update s | step s | MFU"
    yield f"| {columns} | made |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    yield from (_recipe(name, made[name]) for name in RECIPES if name in made)
    yield "\n## From 16 to 256 chips\n"
    yield "The 8B recipe on v5e, one video (4 completions, and 4 of its copy) a chip; prefill, decode and update."
    yield "Saving: moments in bfloat16, the reference policy in the hosts' memory. Sent: of the time that arithmetic,"
    yield "memory and network would take one after the other, the network's share.\n"
    times = "| ".join(f"{phase} s | bound by | sent " for phase in ("decode", "update"))
    yield f"| chips | copies | recipe | peak GiB | fits | {times}| videos/s | videos/h a chip | made |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    # The recipe itself is one video a chip, on 64.
    scaled = ["scaling_16", "scaling_16_saving", "grpo_8b_v5e_64", "scaling_256", "scaling_256_in_4_copies"]
    yield from (_scale(name, made[name]) for name in scaled if name in made)
    yield "\n## What saves memory\n"
    yield "The update of the 1B model on one v5e chip: the recipe with all weights moving and moments in float32, then"
    yield "with one setting changed, and last as it is.\n"
    yield "| change | arguments GiB | temporary GiB | peak GiB | fits | TFLOP | s |"
    yield "|---|---|---|---|---|---|---|"
    yield from (_lever(name, made[name]) for name in [*LEVERS, "grpo_1b_v5e"] if name in made)


def _recipe(name: str, made: dict[str, Any]) -> str:
    marks = ("\\*" if made["quick"] else "") + ("‡" if made["estimate"] else _in_blocks(made))
    if made["refused"]:
        asked = f"{name}{marks} | {made['target']} | | {made['batch_size']}"
        return f"| {asked} | {made['refused'][:120]} | | | no | | | | | {made['made']} |"
    fullest = max(made["rows"], key=lambda row: row["peak"] / row["capacity"])
    times = {row["phase"]: row["times"] * row["roofline"] for row in made["rows"]}
    mesh = " × ".join(f"{axis} {size}" for axis, size in made["mesh"].items() if size > 1) or "one device"
    memory = f"{fullest['phase']} | {fullest['peak'] / GIB:.1f} | {fullest['capacity'] / GIB:.1f}"
    took = f"{times['decode']:.1f} | {times['update']:.1f} | {made['step_seconds']:.1f} | {100 * made['mfu']:.0f}%"
    fits = "yes" if made["fits"] else "no"
    asked = f"{name}{marks} | {made['target']} | {mesh} | {made['batch_size']}"
    return f"| {asked} | {memory} | {fits} | {took} | {made['made']} |"


def _scale(name: str, made: dict[str, Any]) -> str:
    rows = {row["phase"]: row for row in made["rows"] if row["phase"] in STEP}
    cells = [str(made["devices"]), str(made["mesh"]["data"]), "saving" if name.endswith("saving") else "as it is"]
    if made["refused"]:
        return f"| {' | '.join(cells)} | {made['refused'][:120]} | **no** |{' |' * 9}"
    fullest = max(rows.values(), key=lambda row: row["peak"])
    cells += [f"{fullest['peak'] / GIB:.1f} of {fullest['capacity'] / GIB:.1f}", "yes" if made["fits"] else "**no**"]
    for phase in ("decode", "update"):
        parts = {part: rows[phase][part] for part in ("compute", "memory", "network")}
        bound, share = max(parts, key=lambda part: parts[part]), parts["network"] / sum(parts.values())
        cells += [f"{rows[phase]['roofline']:.1f}", bound, f"{100 * share:.0f}%"]
    seconds = sum(row["times"] * row["roofline"] for row in rows.values())
    cells += [f"{made['batch_size'] / seconds:.2f}", f"{3600 / seconds:.0f}", made["made"]]
    return f"| {' | '.join(cells)} |"


def _lever(name: str, made: dict[str, Any]) -> str:
    label = name.removeprefix("lever_").replace("_", " ") + _in_blocks(made)
    if made["refused"]:
        temporary = re.search(r"temporaries \(([\d.]+)G\)", made["refused"])
        largest = re.search(r"in GiB: (\S+) ", made["refused"])
        assert temporary, made["refused"]
        assert largest, made["refused"]
        return f"| {label} | | {temporary[1]}, above all {largest[1]} | | no | | |"
    row = made["rows"][-1]
    memory = " | ".join(f"{row[part] / GIB:.2f}" for part in ("argument", "temporary", "peak"))
    fits = "yes" if row["fits"] else "no"
    return f"| {label} | {memory} | {fits} | {row['flops'] / 1e12:.0f} | {row['roofline']:.1f} |"


def _in_blocks(made: dict[str, Any]) -> str:
    """The mark of a plan without the kernels that a run has."""
    return "†" if made.get("attention", "blocks") == "blocks" else ""


def main(names: list[str]) -> int:
    """Plan what is named, or what is missing, and write the tables; the exit status."""
    if unknown := set(names) - QUESTIONS.keys() - {"--tables"}:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    missing = [name for name in QUESTIONS if not (PLANS / f"{name}.json").is_file()]
    failed = 0
    for name in [] if "--tables" in names else names or missing:
        try:
            ask(name)
            print(name, flush=True)
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
    (PLANS / "README.md").write_text("\n".join(tables()) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
