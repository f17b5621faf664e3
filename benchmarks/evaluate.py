"""Evaluating sets: refilled places against one video at a time, waiting for data, memory, and reading speed.

refill   a random model, frames in memory, answers of unequal length (each token ends an answer with probability 1/64):
         videos a second one by one, in batches that wait for their longest answer, and in places that are refilled.
set      the same model over many clips on disk, decoded by worker processes: videos a second, the share of time without
         a video to work on, and resident memory of this process and its workers along the way.
reading  clips a second of one process: decord's own reader (frames only), our decoder alone, and all that a worker does
         with a file (checksum, decoding, resizing, small pictures).
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import decord
import jax
import numpy as np
from flax import nnx

from vqathinker_jax.data.feed import feed, look
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.data.view import View
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.model.config import LanguageConfig, ModelConfig, VisionConfig
from vqathinker_jax.places import Prompt, answers
from vqathinker_jax.skeleton import abstract_model, arrays, fill

FRAMES, SIZE = 4, 112
VOCABULARY, CONTEXT, STOP, PAD = 64, 61, 62, 63
PARTS = {"refill", "set", "reading"}
DRAWN = Sampling(max_new_tokens=256, temperature=100.0)  # so hot that all tokens are about as likely


def random_model(width: int, layers: int) -> tuple[nnx.GraphDef, nnx.State, ModelConfig]:
    """A model of these dimensions as a judge holds it, layers listed."""
    language = LanguageConfig(
        width=width, layers=layers, heads=width // 64, kv_heads=2, mlp=4 * width, vocabulary=VOCABULARY
    )
    config = ModelConfig(VisionConfig(width=128, layers=2, heads=4, mlp=256), language, None)
    abstract = abstract_model(config, unrolled=True)
    random = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32("scale" in name)

    graph, state = nnx.split(fill(abstract, ((name, draw(name, x.shape)) for name, x in arrays(abstract).items())))
    return graph, state, config


def prompts(config: ModelConfig, videos: int) -> list[Prompt]:
    """One prompt a video, about random frames, each with a key of its own."""
    random = np.random.default_rng(1)
    ids_T = np.array([1, *[CONTEXT] * (FRAMES * config.tokens_per_frame(SIZE)), 2], np.int32)
    ids_PS, mask_PS = pad_left([ids_T], PAD)
    frames_PFYXC = random.integers(0, 256, (videos, FRAMES, SIZE, SIZE, 3), np.uint8)
    return [
        Prompt(video, frames_FYXC, ids_PS[0], mask_PS[0], jax.random.key(video))
        for video, frames_FYXC in enumerate(frames_PFYXC)
    ]


def measure_refill(width: int, layers: int, videos: int, places: int) -> None:
    graph, state, config = random_model(width, layers)
    asked = prompts(config, videos)
    ends = {"context_id": CONTEXT, "stop_id": STOP, "sampling": DRAWN}

    def in_batches(size: int) -> list[int]:
        lengths: list[int] = []
        for first in range(0, len(asked), size):
            batch = asked[first : first + size]
            visual_PLD = encode(graph, state, np.stack([prompt.frames_FYXC for prompt in batch]))
            ids_PS, mask_PS = (np.stack([getattr(prompt, name) for prompt in batch]) for name in ("ids_S", "mask_S"))
            key = jax.random.key(first)
            made = generate(graph, state, visual_PLD, ids_PS, mask_PS, **ends, pad_id=PAD, key=key)
            lengths += made.lengths_PG[:, 0].tolist()
        return lengths

    def refilled() -> list[int]:
        return [len(answer.ids_T) for answer in answers(graph, state, iter(asked), places=places, **ends)]

    ways: dict[str, Callable[[], list[int]]] = {
        "one by one": lambda: in_batches(1),
        f"batches of {places}": lambda: in_batches(places),
        f"{places} places refilled": refilled,
    }
    print(f"refill: width {width}, {layers} layers, {videos} videos, at most {DRAWN.max_new_tokens} tokens an answer")
    first = None
    for name, way in ways.items():
        way()  # compiles
        started = time.perf_counter()
        lengths = way()
        seconds = time.perf_counter() - started
        first = first or seconds
        spread = f"{min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.0f}"
        print(f"  {name:22}{videos / seconds:8.2f} videos/s  {first / seconds:5.2f}x  (tokens: {spread})")


def measure_set(width: int, layers: int, clips: list[Path], places: int, workers: int) -> None:
    graph, state, config = random_model(width, layers)
    (template,) = prompts(config, 1)
    waited_s = 0.0

    def ready() -> Iterator[Prompt | None]:
        nonlocal waited_s
        files = feed(clips, View(FRAMES, SIZE, "pyav"), workers)
        while True:
            before = time.perf_counter()
            seen = next(files, _END)
            waited_s += time.perf_counter() - before
            if seen is _END:
                return
            frames_FYXC = seen.clip.frames_FYXC if seen and seen.clip else None
            key = jax.random.key(seen.place if seen else 0)
            yield None if frames_FYXC is None else template._replace(frames_FYXC=frames_FYXC, key=key)

    ends = {"context_id": CONTEXT, "stop_id": STOP, "sampling": DRAWN}
    list(answers(graph, state, iter([template] * 2), places=places, **ends))  # compiles
    print(f"set: {len(clips)} clips, {places} places, {workers} workers (MiB: this process, its workers together)")
    started, step = time.perf_counter(), max(len(clips) // 10, 1)
    for done, _ in enumerate(answers(graph, state, ready(), places=places, **ends), 1):
        if done % step == 0:
            here, theirs = _resident_mib(os.getpid()), sum(map(_resident_mib, _children()))
            print(f"  {done:6} clips: {here:7.0f} {theirs:7.0f}", flush=True)
    seconds = time.perf_counter() - started
    print(f"  {len(clips) / seconds:.2f} videos/s, {waited_s / seconds:.1%} of the time waiting for data")
    print(f"  peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


_END: Any = object()


def measure_reading(clips: list[Path]) -> None:
    view = View(12, 560, "pyav")
    ways: dict[str, Callable[[Path], object]] = {
        "decord alone": lambda clip: _decord_alone(clip, view.frames),
        "our decoder alone": lambda clip: read_clip(clip, view.frames, "pyav"),
        "all a worker does": lambda clip: look(0, clip, view),
    }
    print(f"reading: {len(clips)} clips, one process, {view.frames} frames")
    for name, way in ways.items():
        way(clips[0])
        started = time.perf_counter()
        for clip in clips:
            way(clip)
        print(f"  {name:22}{len(clips) / (time.perf_counter() - started):8.1f} clips/s")


def _decord_alone(clip: Path, frames: int) -> np.ndarray:
    reader = decord.VideoReader(str(clip))
    return reader.get_batch(sample_indices(len(reader) - 1, frames)).asnumpy()


def _resident_mib(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20


def _children() -> list[int]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(number) for number in listed.split()]


def write_clips(folder: Path, count: int, seconds: int, width: int, height: int) -> list[Path]:
    """Clips of moving noise in H.264."""
    random = np.random.default_rng(0)
    base_YXC = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    paths = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={"preset": "superfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in range(24 * seconds):
                moved_YXC = np.ascontiguousarray(np.roll(base_YXC, 3 * (frame + number), axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved_YXC)))
            container.mux(stream.encode(None))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="refill, set, reading; by default all")
    parser.add_argument("--width", type=int, default=512, help="of the language model (default 512)")
    parser.add_argument("--layers", type=int, default=8, help="of the language model (default 8)")
    parser.add_argument("--videos", type=int, default=48, help="of refill (default 48)")
    parser.add_argument("--places", type=int, default=8, help="places on the device (default 8)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default 2)")
    parser.add_argument("--files", type=int, default=12, help="clips to write, of 8 s at 960x540 (default 12)")
    parser.add_argument("--clips", type=int, default=500, help="of set, which goes round the files (default 500)")
    args = parser.parse_args()
    parts = set(args.parts or PARTS)
    if parts - PARTS:
        parser.error(f"no such part: {', '.join(sorted(parts - PARTS))}")
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, av {av.__version__}"
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {jax.devices()[0].device_kind}, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_clips(Path(folder), args.files, 8, 960, 540) if parts - {"refill"} else []
        if "refill" in parts:
            measure_refill(args.width, args.layers, args.videos, args.places)
        if "set" in parts:
            clips = [files[number % len(files)] for number in range(args.clips)]
            measure_set(args.width, args.layers, clips, args.places, args.workers)
        if "reading" in parts:
            measure_reading(files)


if __name__ == "__main__":
    main()
