"""Folders that are written to; above all that of a checkpoint: the small files beside the weights, and how it comes to
its place whole.

A checkpoint is written beside its place and moved there when it is whole.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqathinker_jax.checksums import CHECKSUMS
from vqathinker_jax.records import CheckpointError, InputError

BESIDE = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files that a checkpoint takes along from its source, where the source has them."""


def make_folder(folder: Path) -> None:
    """Make a folder that can be written to, so that one that cannot is told of before a model is loaded.

    Raises: InputError where it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another folder") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to; name another folder, or mend its permissions")


def copy_beside(source: Path, target: Path) -> None:
    """Copy the small files that a checkpoint takes along; code among them (chat format has some) is never run here."""
    code = sorted(path.name for path in source.glob("*.py"))
    for name in (*BESIDE, *code):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def replacing(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a checkpoint into, which takes the place of `directory` once the block has run to its end.

    Where the block is interrupted, nothing is left of it, and `directory` is as it was; where the process is killed, a
    folder of another name is left.

    Raises: CheckpointError where `directory` is taken.
    """
    directory = directory.absolute()
    check_free(directory, force=force)
    mark = uuid.uuid4().hex  # a process id comes again: in a container every process may be number 1
    partial, former = (directory.with_name(f"{directory.name}.{word}-{mark}") for word in ("partial", "former"))
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be made ({error.strerror}); name another folder") from None
        yield partial
        if directory.exists():
            directory.rename(former)
        partial.rename(directory)
    finally:
        if former.exists() and not directory.exists():
            former.rename(directory)
        for leftover in (partial, former):
            shutil.rmtree(leftover, ignore_errors=True)


def check_free(directory: Path, *, force: bool) -> None:
    """Check that a checkpoint may be written to `directory`.

    Raises: CheckpointError where it is a file, a folder of other things, or a checkpoint and `force` is not set.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; name a folder to write to")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / CHECKSUMS).is_file():
        raise CheckpointError(f"{directory}: holds other things than a checkpoint made here; name another folder")
    if not force:
        raise CheckpointError(f"{directory}: holds a checkpoint already; name another folder, or replace it by --force")
