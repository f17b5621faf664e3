"""A video or a picture goes in; the frames the sampling rule asks for come out, with their times and the file's health.

Two decoders. `pyav` (default) gives the right frames of any container. `decord` is what the reference reads with and
gives the reference's very frames, its seek errors included. On ordinary 8-bit mp4 both give equal bytes.

Deviations from the reference: a damaged file is read as far as it goes and says so in `health`, where decord gives up;
a picture stands for copies of itself in scoring too; frames are upright, by flips and by pictures' EXIF tags as well.
"""

import warnings
from codecs import getincrementaldecoder
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from vqathinker_jax.data.decoder import decode
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.packets import opened
from vqathinker_jax.data.paths import PICTURES
from vqathinker_jax.records import Clip, InputError, VideoError


class FrameReader(Protocol):
    """Takes a file and how many frames to draw from it; returns them as a Clip at the video's own size."""

    def __call__(self, path: Path, frames: int) -> Clip: ...


def read_clip(path: str | Path, frames: int, decoder: str = "pyav") -> Clip:
    """Return `frames` frames of a video or a picture: uint8 RGB [F,Y,X,C] at its own size, upright; times in seconds.

    Raises:
        VideoError: no frame can be read; the message names the file, what was found and the cure.
        InputError: the decoder is none of `READERS`, or its package is missing.
    """
    path = Path(path)
    check_decoder(decoder)
    check_file(path)
    reader = read_picture if path.suffix.lower() in PICTURES else READERS[decoder]
    return reader(path, frames)


def check_file(path: Path) -> None:
    """Check that the path is a file that may hold a video or a picture.

    Raises:
        VideoError: it is none, cannot be opened, is empty, or holds text.
    """
    try:
        if path.is_dir():
            raise VideoError(f"{path}: a folder, not a video; name the files in it")
        if not path.exists():
            raise VideoError(f"{path}: {'a link to nowhere' if path.is_symlink() else 'no such file'}; check the path")
        if not path.is_file():
            raise VideoError(f"{path}: no ordinary file but a pipe or device; name a video file")
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror}); check its name and permissions") from None
    if not head:
        raise VideoError(f"{path}: an empty file; export or download it again")
    if _is_text(head):
        raise VideoError(f"{path}: holds text, not video; name the video itself")


def check_decoder(decoder: str) -> None:
    """Check that a decoder can be used.

    Raises:
        InputError: it is none of `READERS`, or its package is missing.
    """
    if decoder not in READERS:
        raise InputError(f"decoder {decoder!r} is unknown; choose one of {', '.join(READERS)}")
    if decoder == "decord":
        _import_decord()


def read_picture(path: Path, frames: int) -> Clip:
    """Return a picture as `frames` copies of itself (one read-only array seen F times), all at time 0.

    Raises:
        VideoError: the file is no picture that Pillow reads.
    """
    try:
        # What Pillow warns of it then fails at, or it is a picture's notes about itself, which nobody asked for.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            if picture.mode[0] in "IF":  # which Pillow would clip to white
                raise VideoError(f"{path}: more than 8 bits of grey, which would be clipped; export it with 8")
            frame_YXC = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except VideoError:
        raise
    except Exception as error:  # of damaged files Pillow raises whatever it stumbles over
        found = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: not a readable picture ({found}); export it again") from None
    return Clip(np.broadcast_to(frame_YXC, (frames, *frame_YXC.shape)), sample_indices(0, frames), (0.0,) * frames)


def read_with_decord(path: Path, frames: int) -> Clip:
    """Return the frames that decord gives, which are the reference's.

    Raises:
        VideoError: decord cannot read the file, though PyAV might.
        InputError: decord is not installed.
    """
    decord = _import_decord()
    with opened(path):  # for its errors, which say more than decord's
        decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        indices = sample_indices(len(reader) - 1, frames)
        frames_FYXC = np.stack([reader[index].asnumpy() for index in indices])
        starts_s = [float(reader.get_frame_timestamp(index)[0]) for index in (0, *indices)]
    except (decord.DECORDError, RuntimeError, IndexError, ValueError):
        raise VideoError(f"{path}: decord cannot decode it; use --decoder pyav") from None
    if frames_FYXC.shape[-1] != 3:  # it takes the padding of short rows for more channels
        raise VideoError(f"{path}: decord garbles frames as narrow as this; use --decoder pyav")
    return Clip(frames_FYXC, indices, tuple(start - starts_s[0] for start in starts_s[1:]))


def _import_decord() -> ModuleType:
    try:
        import decord
    except (ImportError, OSError):
        raise InputError("decoder 'decord' is not installed here; pip install decord, or use 'pyav'") from None
    return decord


READERS: dict[str, FrameReader] = {"pyav": decode, "decord": read_with_decord}


def _is_text(head: bytes) -> bool:
    """Tell text by a file's first bytes; ffmpeg would open text that names other files as a play list."""
    if head.startswith(b"YUV4MPEG2"):
        return False
    try:
        text = getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
