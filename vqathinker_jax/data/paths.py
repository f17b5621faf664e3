"""From what a user types to the files that are meant."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from vqathinker_jax.records import InputError

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset(
    {
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ts",
        ".webm",
        ".wmv",
        ".y4m",
    }
)


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files, folders and globs to files, each once, in the order given; a folder or glob comes sorted.

    A folder is searched, also below, for names that end like a video or picture. A file that does not exist stays in
    the list: reading it says so, and the others are still scored.

    Raises: InputError for a glob that matches nothing or a folder without videos.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys(_files(pattern))
    return list(found)


def _files(pattern: str) -> list[Path]:
    if not pattern:
        raise InputError("an empty path was given; check the variable that it came from")
    path = Path(pattern)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES | VIDEOS and p.is_file())
        if not files:
            raise InputError(f"{path}: no videos or pictures in this folder; name one that holds some")
        return files
    if path.exists() or not has_magic(pattern):
        return [path]
    matches = sorted(glob(pattern, recursive=True))
    files = [file for match in matches for file in ([Path(match)] if Path(match).is_file() else _files(match))]
    if not files:
        raise InputError(f"{pattern}: nothing matches; check the pattern and its quotes")
    return files
