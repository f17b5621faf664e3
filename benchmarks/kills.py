"""An evaluation killed again and again, held against one that was not: `run.py evaluate` over clips, some damaged.

Each kill is SIGKILL of the whole command at a random moment after it wrote another row. Afterwards every video must
have exactly one row, no row that was on disk may have been made again, no worker may be left, and every figure must be
the uninterrupted run's, to the byte.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parents[1]
SIDE = 112
SMALL = ["--frames", "4", "--max-new-tokens", "48"]


def write_clip(path: Path, number: int) -> None:
    """A few frames of a moving texture, each clip another, coded the worse the higher its number."""
    rng = np.random.default_rng(number)
    texture_YXC = rng.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": f"{10 + number % 40}"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in range(4 + number % 7):
            moved_YXC = np.ascontiguousarray(np.roll(texture_YXC, frame * (1 + number % 5), axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved_YXC)))
        container.mux(stream.encode(None))


def damages() -> list[Callable[[bytes], bytes]]:
    """Twenty ways of losing a file's content."""

    def at(place: float, what: bytes) -> Callable[[bytes], bytes]:
        def damage(whole: bytes) -> bytes:
            start = int(len(whole) * place)
            return whole[:start] + what + whole[start + len(what) :]

        return damage

    def cut(first: float, last: float) -> Callable[[bytes], bytes]:
        return lambda whole: whole[int(len(whole) * first) : int(len(whole) * last)]

    noise = np.random.default_rng(0).bytes(4000)
    whole_ones = (b"", b"\0" * 500, b"<script>alert(1)</script>", noise, b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0AVI ")
    replaced = [lambda _, content=content: content for content in whole_ones]
    cuts = [cut(*ends) for ends in ((0, 0.1), (0, 0.5), (0, 0.9), (0, 0.99), (0.1, 1), (0.5, 1), (0.02, 0.98))]
    holes = [at(place, what) for place in (0.3, 0.6) for what in (b"\0" * 200, noise[:200], b"\xff" * 50)]
    return [*replaced, *cuts, *holes, at(0, b"\xff" * 8)]


def write_set(folder: Path, clips: int, damaged: int) -> Path:
    """The clips, and a CSV of their labels; damaged ones stand evenly among them."""
    ways = damages()
    for number in range(clips):
        write_clip(folder / f"{number}.mp4", number)
    for number in range(damaged):
        path = folder / f"{number * clips // damaged}.mp4"
        path.write_bytes(ways[number % len(ways)](path.read_bytes()))
    labels = folder / "labels.csv"
    labels.write_text("video,mos\n" + "".join(f"{number}.mp4,{number * 37 % 101}\n" for number in range(clips)))
    return labels


def start(labels: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "run.py", "evaluate", str(labels), "--output", str(output), *SMALL]
    silence = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=silence, stderr=silence)


def whole_rows(output: Path) -> list[str]:
    """The rows on disk that are not torn, in their order."""
    path = output / "predictions.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def check_rows(rows: list[str]) -> None:
    videos = [json.loads(row)["video"] for row in rows]
    assert len(videos) == len(set(videos)), "a video has two rows"


def kill_once(labels: Path, output: Path, delay_s: float) -> int:
    """Start, kill `delay_s` after the next row; returns how many rows there are then."""
    before = whole_rows(output)
    process = start(labels, output)
    while process.poll() is None and len(whole_rows(output)) <= len(before):
        time.sleep(0.005)
    time.sleep(delay_s)
    assert process.poll() is None, "the run ended before it was killed; ask for more clips"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while _alive(process.pid):
        assert time.monotonic() < deadline, "a worker outlives the run"
        time.sleep(0.1)
    after = whole_rows(output)
    check_rows(after)
    assert after[: len(before)] == before, "a row that was on disk was made again"
    return len(after)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--damaged", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        labels = write_set(Path(folder), args.clips, args.damaged)
        outputs = tempfile.TemporaryDirectory()
        whole, torn = Path(outputs.name) / "whole", Path(outputs.name) / "torn"
        started = time.perf_counter()
        assert start(labels, whole).wait() == 1, "damaged videos give exit status 1"
        seconds = time.perf_counter() - started
        counts = json.loads((whole / "summary.json").read_text())["sets"]["labels"]
        print(
            f"uninterrupted: {seconds:.0f} s, {counts['coverage']} rated, {counts['unreadable']} unreadable", flush=True
        )
        for number in range(args.kills):
            rows = kill_once(labels, torn, chance.uniform(0, seconds / (2 * args.kills)))
            print(f"kill {number + 1}: {rows} rows", flush=True)
        assert start(labels, torn).wait() == 1
        rows = whole_rows(torn)
        check_rows(rows)
        assert len(rows) == args.clips, "a video has no row"
        assert sorted(rows) == sorted(whole_rows(whole)), "rows differ from the uninterrupted run's"
        for name in "summary.json", "summary.md", "predictions.csv":
            assert (torn / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"
        print(f"ends with {len(rows)} rows, one a video; summary and rows equal the uninterrupted run's")
        outputs.cleanup()


if __name__ == "__main__":
    main()
