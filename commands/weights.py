"""Weights in and out, and whether they compute what they should: `convert`, `export`, `crosscheck` and `doctor`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from commands.options import DEMO, Flag, ModelOptions, OptionalPath, open_judge
from vqathinker_jax import console
from vqathinker_jax.records import InputError

Source = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]


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

    _check_apart(source, target)
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

    _check_apart(source, target)
    kind = None if dtype == "stored" else dtype
    notes = export_checkpoint(source, target, to, slowfast=slowfast, dtype=kind, force=force)
    console.print_lines("\n".join([f"wrote {target}", *(f"note: {note}" for note in notes)]))
    return 0


def _check_apart(source: Path, target: Path) -> None:
    if source.resolve() in target.resolve().parents:
        raise InputError(f"{target}: lies in {source}, whose files it would be among; name a folder outside of it")


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
        return examine(DEMO, lambda: open_judge(ModelOptions()))
    from convert.integrity import examine_checkpoint

    return report(examine_checkpoint(checkpoint, slowfast))
