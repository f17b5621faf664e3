"""Rating whole sets of videos, and holding the ratings against labels: `evaluate`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from commands.options import BUNDLED, DEMO_NOTICE, Model, chosen_sampling, chosen_view, is_demo, open_judge
from vqathinker_jax import console
from vqathinker_jax.processes import ALONE, Processes, join
from vqathinker_jax.records import InputError

if TYPE_CHECKING:
    from vqathinker_jax.predictions import Row
    from vqathinker_jax.report import Beside
    from vqathinker_jax.summary import SetResult

META_HELP = "The reference's JSON, a CSV (video,mos), training JSON lines, a YAML list of these, or a folder of videos."


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
    model: Model = BUNDLED,
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
    from vqathinker_jax import report, summary
    from vqathinker_jax.data.labels import read_choices, read_sets
    from vqathinker_jax.data.paper import read_paper
    from vqathinker_jax.folder import make_folder
    from vqathinker_jax.predictions import ALL, Share, check_folder, check_run, read_run
    from vqathinker_jax.tasks import TASKS

    pace = evaluation.Pace(batch_size, workers)
    if preset and task == "choice":
        raise InputError("--preset paper has no questions; leave it out, or ask for another --task")
    if meta.is_dir() and not preset and output.resolve().is_relative_to(meta.resolve()):
        raise InputError(f"{output}: lies among the videos, where its pictures would be rated too; name another folder")
    if videos is not None and not videos.is_dir():
        raise InputError(f"{videos}: no such folder; name the one that holds the videos")
    read = read_choices if task == "choice" else read_paper if preset == "paper" else read_sets
    sets = read(meta, videos)
    check_folder(output)
    if resume:
        # What a model has no part in, before it is loaded.
        chosen = evaluation.settings(chosen_view(model), chosen_sampling(model), model.cache, model.seed, TASKS[task])
        check_run(output, chosen, {found.name for found in sets})
    others = read_run(compare) if compare else None
    part, together = Share.parse(share), processes != ALONE
    if together:
        if part != ALL:
            raise InputError(
                f"--share {share} is for hosts that do not know of each other; leave it or --processes out"
            )
        join(processes)
        part = evaluation.own_share()
    make_folder(output)
    judge, run = (
        open_judge(model),
        evaluation.evaluate_together if together else partial(evaluation.evaluate, share=part),
    )
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
        beside = None
        if compare and others is not None:
            beside = report.Beside(compare.resolve().name, summary.join(sets, others, rated=task == "score"))
        _write_figures(output, results, made_by, beside)
    elif not together:
        print(f"share {share} is done; once all are, the same command without --share writes figures and report")
    if is_demo(model):
        print(f"({DEMO_NOTICE})")
    entries = (ALL if whole else part).take([entry for result in results for entry in result.entries])
    return int(any(entry.status != "ok" for entry in entries))


def _write_figures(output: Path, results: "Sequence[SetResult]", made_by: "Row", beside: "Beside | None") -> None:
    """Write a run's figures and report into its folder, and print its tables."""
    from vqathinker_jax import evaluate as evaluation
    from vqathinker_jax import report, summary, tables

    figures = summary.summarise(results, made_by)
    summary.write(output, results, figures)
    report.write(output / "report.html", results, figures, partial(evaluation.sheet_of, output), beside)
    console.print_lines(tables.markdown(tables.tables(figures)))
    print(f"wrote {output / 'report.html'}, summary.md, summary.json and predictions.csv")
