"""Whether our model computes what PyTorch's computes from the same folder: one input through both, stage by stage.

Enters: a checkpoint in chat or Transformers' format, and a video. Leaves: a line a stage with its errors, the first
stage that is out of tolerance, a picture of the errors by depth. The PyTorch half is recorded in a folder, so the two
halves may run on different machines (`--save`, `--against`).
"""

import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from convert.comparison import HEADER, TOKENS, Comparison, compare_all, first_out, line, verdict
from convert.gradients import our_gradients, record_gradients
from convert.load import open_config
from convert.oracle import Reference, open_oracle
from convert.picture import draw
from convert.recording import Given, Recording, Task
from convert.stages import open_ours, run
from convert.tensors import open_folder
from convert.theirs import record
from vqathinker_jax.checkpoint import is_native, read_config
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.prompt import encode, load_tokenizer, scoring_question, special_tokens
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.records import InputError

_SMALL_FRAMES, _SMALL_SIDE = 2, 112
_SHARE = 0.6
"""Of the memory that is free, how much a model's weights may take before they are left on disk."""


@dataclass(frozen=True)
class Halves:
    """Which halves of a cross-check run here, and how.

    save: record the reference's half in this folder and stop. against: take it from this folder instead of running it.
    weights: where they stay while they do not run; auto goes by the memory that is free.
    """

    save: Path | None = None
    against: Path | None = None
    weights: Literal["auto", "memory", "disk"] = "auto"
    reference: Reference = "transformers"
    slowfast: Path | None = None

    def __post_init__(self):
        if self.save and self.against:
            raise InputError("--save makes what --against reads; give one of the two")


def crosscheck(
    directory: Path, halves: Halves, make: Callable[[], Task], output: Path, say: Callable[[str], None]
) -> bool:
    """Run the halves over a checkpoint folder, a line at a time to `say`; whether all stages are within tolerance.

    make: the task, where it is not taken from a recording. output: a folder for `crosscheck.json` and `.png`.

    Raises: InputError where a half cannot run here or belongs to something else.
    """
    if is_native(directory):
        raise InputError(f"{directory}: PyTorch cannot read a native checkpoint; give what `export` makes of it")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; name a folder with --output")
    with _theirs(directory, halves, make, say) as recording:
        if halves.save:
            say(f"recorded the reference's half in {halves.save}; bring it along with --against")
            return True
        comparisons = []
        task, dtype = recording.task, recording.task.dtype
        frames, side = task.given.frames_FYXC.shape[:2]
        say(f"{frames} frames of {side} pixels, a prompt of {len(task.given.ids_S)} tokens, in {dtype}")
        say(HEADER)
        # Accelerators multiply float32 in fewer bits unless told not to.
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            for each in compare_all(_ours(directory, halves, recording), recording):
                say(line(each))
                comparisons.append(each)
        settings = {"checkpoint": str(directory), "dtype": dtype, "frames": frames, "image_size": side}
        write_report(output, comparisons, settings)
        say(f"{verdict(comparisons, dtype)} ({output / 'crosscheck.json'}, {output / 'crosscheck.png'})")
    return first_out(comparisons) is None


def make_task(
    directory: Path,
    video: Path,
    *,
    frames: int,
    image_size: int,
    tokens: int,
    dtype: str,
    gradients: bool,
    slowfast: Path | None,
) -> Task:
    """What both halves are to compute: the scoring prompt about a video.

    Raises: InputError where the video or the checkpoint's small files cannot be read, or the size does not fit.
    """
    if frames < 1 or tokens < 0:
        raise InputError(f"{frames} frames and {tokens} tokens: give --frames from 1 and --tokens from 0")
    config, tokenizer = open_config(directory, slowfast=slowfast), load_tokenizer(directory)
    special = special_tokens(tokenizer)

    def given(frames: int, size: int) -> Given:
        moving = config.motion is not None
        ids = encode(tokenizer, scoring_question(frames, moving), config.tokens_per_frame(size), frames, moving)
        return Given(resize(read_clip(video, frames).frames_FYXC, size), ids)

    small = given(_SMALL_FRAMES, _smallest(config)) if gradients else None
    return Task(given(frames, image_size), small, special.context, special.stop, tokens, dtype)


def _smallest(config: ModelConfig) -> int:
    """The smallest side of a frame, from 112 pixels on, that the model takes."""
    step = config.vision.patch * config.shuffle
    side = -(-_SMALL_SIDE // step) * step
    while True:
        try:
            config.tokens_per_frame(side)
            return side
        except InputError:
            side += step


@contextmanager
def _theirs(
    directory: Path, halves: Halves, make: Callable[[], Task], say: Callable[[str], None]
) -> Iterator[Recording]:
    """The reference's half: from its folder, or run here into the folder to save or one that goes when all is done."""
    if halves.against:
        recording = Recording.open(halves.against)
        check_same(recording, directory)
        yield recording
        return
    task = make()
    on_disk = _on_disk(directory, halves, task)
    with tempfile.TemporaryDirectory() as passing:
        recording = Recording.begin(halves.save or Path(passing) / "recording", task, fingerprint(directory))
        say(f"running {halves.reference}, its weights {'on disk' if on_disk else 'in memory'}")
        oracle = open_oracle(directory, halves.reference, halves.slowfast, task.dtype, on_disk=on_disk)
        recording.spelling = oracle.spelling
        with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None) as bar:
            record(oracle, task, recording, bar.set_description_str)
            if task.small is not None:
                bar.set_description_str("gradients")
                record_gradients(oracle, task, recording)
        recording.finish()
        del oracle
        gc.collect()
        yield recording


def _ours(directory: Path, halves: Halves, recording: Recording) -> Iterator[tuple[str, np.ndarray]]:
    """Our half, stage by stage."""
    task = recording.task
    model = open_ours(directory, halves.slowfast, task.dtype, on_disk=_on_disk(directory, halves, task))
    guide = recording.read(TOKENS) if TOKENS in recording else np.zeros(0, np.int32)
    yield from run(model, task, guide)
    if task.small is not None:
        yield from our_gradients(model, task, recording.spelling)


def _on_disk(directory: Path, halves: Halves, task: Task) -> bool:
    """Whether layers are to be read as they run.

    Raises: InputError where gradients are wanted, which take all weights at once.
    """
    width = 4 if task.dtype == "float32" else 2
    needed = width * sum(tensor.size for tensor in open_folder(directory).values())
    free = _free_memory()
    on_disk = needed > _SHARE * free if halves.weights == "auto" else halves.weights == "disk"
    if on_disk and task.small is not None:
        raise InputError(
            f"{directory}: gradients take all weights into memory, {needed / 1e9:.0f} GB of {free / 1e9:.0f} free; "
            "leave --gradients out, or give --weights memory"
        )
    return on_disk


def _free_memory() -> int:
    """Bytes that programs may still take; where the system does not say, all there are."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return 1024 * int(meminfo.read_text().partition("MemAvailable:")[2].split()[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write_report(folder: Path, comparisons: Sequence[Comparison], settings: dict[str, Any]) -> None:
    """Leave `crosscheck.json` and `crosscheck.png` in a folder; infinite and undefined numbers are written as null."""
    folder.mkdir(parents=True, exist_ok=True)
    first = first_out(comparisons)
    rows = [{key: _finite(value) for key, value in asdict(each).items()} for each in comparisons]
    whole = {**settings, "agree": first is None, "first_out": first and first.stage, "stages": rows}
    (folder / "crosscheck.json").write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
    draw(comparisons).save(folder / "crosscheck.png")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def fingerprint(directory: Path) -> str:
    """What tells a checkpoint's two copies apart from another's: its dimensions, and its tensors' names and shapes."""
    config = read_config(directory)
    shapes = sorted((name, tensor.shape, tensor.dtype) for name, tensor in open_folder(directory).items())
    return hashlib.sha256(json.dumps([config, shapes], sort_keys=True).encode()).hexdigest()


def check_same(recording: Recording, directory: Path) -> None:
    """Check that the recording was made with this checkpoint.

    Raises: InputError where it was not.
    """
    if recording.checkpoint != fingerprint(directory):
        raise InputError(f"{recording.folder}: was recorded with another checkpoint than {directory}; use the same one")
