"""From what a user types to the files that are meant."""

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from vqathinker_jax.records import InputError

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "ts"),
        *("vob", "webm", "wmv", "y4m"),
    )
)


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files, folders and globs to files, each once however it is spelled, in the order given; folders and globs sorted.

    A folder is searched, also below and behind links, for names that end like a video or picture. A path with nothing
    behind it (a file that does not exist, a folder or glob without videos) stays in the list: reading it says so, and
    the others are still scored.

    Raises: InputError where none of them stands for any file, or one is blank or a URL.
    """
    if not all(patterns):
        raise InputError("an empty path was given; check the variable that it came from")
    if urls := [pattern for pattern in patterns if "://" in pattern]:
        raise InputError("\n".join(f"{url}: a URL, and nothing is fetched; download it first" for url in urls))
    meant = {pattern: _files(pattern) for pattern in patterns}
    if meant and not any(meant.values()):
        raise InputError("\n".join(map(_why_none, meant)))
    found: dict[str, Path] = {}
    for pattern, files in meant.items():
        for file in files or [Path(pattern)]:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _files(pattern: str) -> list[Path]:
    path = Path(pattern)
    try:
        if path.is_dir():
            return _below(path)
        if path.exists() or not has_magic(pattern):
            return [path]
    except OSError:  # a name too long, a folder that may not be entered: whoever reads the file says so
        return [path]
    matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]
    return [file for match in matches for file in (_below(match) if match.is_dir() else [match])]


def _below(folder: Path) -> list[Path]:
    """Links that lead nowhere are among them, to be told of; what macOS keeps beside a file, as ._NAME, is not."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()  # a link may lead back up
            continue
        seen.add(real)
        paths = [Path(here, name) for name in names if not name.startswith("._")]
        found += [path for path in paths if path.suffix.lower() in PICTURES | VIDEOS and _file(path)]
    return sorted(found)


def _file(path: Path) -> bool:
    return path.is_file() or path.is_symlink()


def _why_none(pattern: str) -> str:
    if Path(pattern).is_dir():
        return f"{pattern}: no videos or pictures in this folder; name one that holds some"
    if glob(pattern, recursive=True):
        return f"{pattern}: matches only folders without videos or pictures; name one that holds some"
    return f"{pattern}: nothing matches; check the pattern and its quotes"
