"""Rating videos, and asking about them: `score` and `ask`."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from commands.options import BUNDLED, DEMO_NOTICE, AsJson, Model, ModelOptions, is_demo, open_judge
from vqathinker_jax import console
from vqathinker_jax.records import InputError, VideoError

if TYPE_CHECKING:
    from vqathinker_jax.judge import Judge
    from vqathinker_jax.records import Clip

PATHS_HELP = "Files (a picture counts as a still video), folders (searched for videos and pictures) or globs."

Video = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
Videos = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    tyro.conf.arg(metavar="PATH…", help=PATHS_HELP, help_behavior_hint="(one or more)"),
]


def score(
    paths: Videos,
    model: Model = BUNDLED,
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
    if stride and window is None:
        raise InputError("--stride is from one window to the next; give --window too")
    if window is not None:
        return _score_windows(videos, model, window, stride, curves, as_json=as_json)
    judge = open_judge(model)
    verdicts = []
    for index, (video, read) in enumerate(_reading_ahead(judge, videos)):
        with console.progress(f"[{index + 1}/{len(videos)}] {video.name}", model.max_new_tokens) as progress:
            verdict = judge.score(video, progress, read)
        verdicts.append(verdict)
        if as_json:
            console.print_row(verdict.row())
        else:
            console.print_verdict(verdict)
    if not as_json and len(verdicts) > 1:
        console.print_table(verdicts)
    if not as_json and is_demo(model):
        print(f"({DEMO_NOTICE})")
    return int(any(verdict.status == "failed" for verdict in verdicts))


def ask(
    video: Video,
    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")],
    model: Model = BUNDLED,
    as_json: AsJson = False,
) -> int:
    """Ask a free question about a video's quality.

    For example:
      python run.py ask clip.mp4 "Is the motion smooth?" --checkpoint VQAThinker-8B

    Args:
        video: File of a video, or of a picture, which counts as a still video.
        question: What to ask, in quotes.
    """
    judge = open_judge(model, question)
    with console.progress(video.name, model.max_new_tokens) as progress:
        reply = judge.ask(video, question, progress)
    if as_json:
        console.print_row(reply.row())
    else:
        console.print_reply(reply)
    return int(reply.status == "failed")


def _reading_ahead(judge: "Judge", videos: Sequence[Path]) -> Iterator[tuple[Path, "Callable[[], Clip]"]]:
    """Each video with what gives its clip, which is read while the device looks at the one before it."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(judge.read, videos[0])
        for place, video in enumerate(videos, 1):
            read = coming.result
            if place < len(videos):
                coming = reader.submit(judge.read, videos[place])
            yield video, read


def _score_windows(
    videos: Sequence[Path], model: ModelOptions, window: float, stride: float, curves: Path, *, as_json: bool
) -> int:
    """Rate each video's windows; returns the exit status."""
    from vqathinker_jax import timeline
    from vqathinker_jax.data.windows import Span
    from vqathinker_jax.folder import make_folder

    if model.decoder != "pyav":
        raise InputError(f"--decoder {model.decoder} cannot read windows; use pyav")
    span, failed = Span(window, stride), False
    make_folder(curves)  # now: a fault should be told before a film is rated
    judge = open_judge(model)
    for name, video in zip(timeline.names(videos), videos, strict=True):
        try:
            with console.counting(video.name) as count:
                moments = []
                for moment in timeline.rate_windows(judge, video, span):
                    moments.append(moment)
                    count(len(moments), None, "windows")
        except VideoError as fault:
            if as_json:
                console.print_row(timeline.told(video, span, [], str(fault)))
            else:
                console.print_error(fault)
            failed = True
            continue
        film = timeline.write(curves, name, video, span, moments)
        failed |= film["status"] == "failed"
        if as_json:
            console.print_row(film)
        else:
            console.print_lines(timeline.describe(film))
            print(f"wrote {curves / name}.json and .png")
    return int(failed)
