"""What this installation is, and whether it works: printed line by line, with an exit status at the end.

The last lines score the bundled clips and hold the result against the one recorded when the demonstration model was
made: equal, score and text, in float32 on a CPU; on an accelerator, where rounding differs, the score within 0.5.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqathinker_jax.console import printable
from vqathinker_jax.records import InputError

if TYPE_CHECKING:
    from vqathinker_jax.judge import Judge, Verdict

PACKAGES = (
    *("jax", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "absl-py", "numpy", "scipy", "transformers"),
    *("safetensors", "av", "pillow", "pyyaml", "tyro", "rich", "tqdm", "tensorboardX"),
)
TOLERANCE = 0.5


class Finding(NamedTuple):
    """One line of the report; `sound` is None where it is a note and no judgement."""

    sound: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '·'}[self.sound] } {self.text}"


def examine(assets: Path, open_judge: Callable[[], "Judge"]) -> int:
    """Print the findings about this installation; returns the exit status of `report`.

    `assets` holds `clips/` and `expected.json`, their recorded results under the judge that `open_judge` opens.
    """
    return report(_findings(assets, open_judge))


def report(findings: Iterable[Finding]) -> int:
    """Print findings as they come; returns the exit status, 1 where something is not as it should be."""
    sound = True
    for finding in findings:
        print(printable(str(finding)), flush=True)
        sound = sound and finding.sound is not False
    return int(not sound)


def _findings(assets: Path, open_judge: Callable[[], "Judge"]) -> Iterator[Finding]:
    yield Finding(True, f"python {platform.python_version()}, {platform.system()} on {platform.machine()}")
    packages = [*_packages()]
    yield from packages
    if all(finding.sound for finding in packages):
        expected = json.loads((assets / "expected.json").read_text(encoding="utf-8"))
        clips = {assets / "clips" / name: recorded for name, recorded in expected["clips"].items()}
        devices = [*_devices()]
        yield from devices
        yield from _decoders(next(iter(clips)))
        if all(finding.sound for finding in devices):
            yield from _clips(clips, open_judge)


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        try:
            yield Finding(True, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(False, f"{package} is not installed; pip install -e . in the repository brings it")


def _devices() -> Iterator[Finding]:
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where CUDA is asked for and there is none
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = f" ({error})" if str(error) else ""
        yield Finding(
            False, f"jax finds no device for JAX_PLATFORMS={asked!r}{why}; unset it, or install what it names"
        )
        return
    for device in devices:
        yield Finding(True, f"device {device.id}: {device.platform}, {device.device_kind}")


def _decoders(clip: Path) -> Iterator[Finding]:
    """Reads a clip with every decoder; one that is not installed is no fault, as any one is enough."""
    from vqathinker_jax.data.video import READERS, read_clip
    from vqathinker_jax.records import VideoError

    for decoder in READERS:
        try:
            frames = read_clip(clip, 12, decoder).frames_FYXC
            yield Finding(True, f"decoder {decoder}: {len(frames)} frames of {clip.name}")
        except VideoError as error:
            yield Finding(False, f"decoder {decoder}: {error}")
        except InputError as error:
            yield Finding(None, str(error))


def _clips(clips: Mapping[Path, Mapping[str, Any]], open_judge: Callable[[], "Judge"]) -> Iterator[Finding]:
    import jax

    exact = jax.default_backend() == "cpu"
    try:
        judge = open_judge()
    except InputError as error:
        yield Finding(False, str(error))
        return
    for clip, recorded in clips.items():
        yield compare(judge.score(clip), recorded, exact=exact)


def compare(verdict: "Verdict", recorded: Mapping[str, Any], *, exact: bool) -> Finding:
    """Holds a verdict against the recorded `score` and `text`; without `exact` a score within 0.5 will do."""
    name = Path(verdict.video).name
    if verdict.score is None:
        return Finding(False, f"{name}: no rating: {verdict.reason}")
    found = f"{name}: {verdict.score:.2f} in {verdict.seconds:.1f} s"
    if verdict.score == recorded["score"] and verdict.text == recorded["text"]:
        return Finding(True, f"{found}, as recorded")
    differs = f"{found}, recorded {recorded['score']:.2f}; text {verdict.text!r}, recorded {recorded['text']!r}"
    return Finding(not exact and abs(verdict.score - recorded["score"]) <= TOLERANCE, differs)
