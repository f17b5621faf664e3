"""What a model computed from one input, stage by stage, in a folder: half of a cross-check, to be taken elsewhere.

input.npz    frames and prompts: what went in
run.json     settings, and the stages in their order, each with its file
00000.npy    a stage, float32 (tokens int32)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vqathinker_jax.records import InputError


@dataclass(frozen=True)
class Given:
    """What a model is given. frames_FYXC: uint8 RGB at the model's size. ids_S: the prompt, int32."""

    frames_FYXC: np.ndarray
    ids_S: np.ndarray


@dataclass(frozen=True)
class Task:
    """One input, and what is to be computed of it.

    small: a smaller input, of which the gradient of a GRPO loss is taken; None for none. context, stop: the ids of a
    visual token's slot and of the stop token. tokens: how many are written greedily. dtype: of weights and activations.
    """

    given: Given
    small: Given | None
    context: int
    stop: int
    tokens: int
    dtype: str


class Recording:
    """The stages of one run, written one by one and read one by one."""

    def __init__(self, folder: Path, task: Task, checkpoint: str, stages: dict[str, str]):
        """checkpoint: a fingerprint of it. `spelling` is the key in `SPELLINGS` of what weights are called here."""
        self.folder, self.task, self.checkpoint = folder, task, checkpoint
        self.spelling = "transformers-state"
        self._stages = stages

    @classmethod
    def begin(cls, folder: Path, task: Task, checkpoint: str) -> "Recording":
        """An empty recording in a new folder.

        Raises: InputError where the folder is taken.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; name a new folder to save to")
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {"given": task.given, **({"small": task.small} if task.small else {})}
        np.savez(folder / "input.npz", **{f"{k}_{n}": array for k, x in inputs.items() for n, array in vars(x).items()})
        return cls(folder, task, checkpoint, {})

    @classmethod
    def open(cls, folder: Path) -> "Recording":
        """The recording that was finished in a folder.

        Raises: InputError where there is none.
        """
        try:
            raw: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
            # Opened here, for NumPy leaves open what it finds to be no archive.
            with (folder / "input.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                inputs = {
                    kind: Given(arrays[f"{kind}_frames_FYXC"], arrays[f"{kind}_ids_S"])
                    for kind in ("given", "small")
                    if f"{kind}_ids_S" in arrays
                }
                task = Task(**{"small": None, **inputs}, **raw["task"])
            stages = dict(raw["stages"])
            if any(Path(file).name != file for file in stages.values()):
                raise ValueError("names files outside its folder")
            recording = cls(folder, task, raw["checkpoint"], stages)
            recording.spelling = raw["spelling"]
            return recording
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise InputError(f"{folder}: no recording ({error}); make one with crosscheck --save") from error

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def add(self, stage: str, array: np.ndarray) -> None:
        """Keep a stage."""
        name = f"{len(self._stages):05}.npy"
        np.save(self.folder / name, array, allow_pickle=False)
        self._stages[stage] = name

    def read(self, stage: str) -> np.ndarray:
        """A stage as it was kept.

        Raises: InputError where it is not whole.
        """
        file = self.folder / self._stages[stage]
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file}: cannot be read ({error}); copy the recording again") from None

    def finish(self) -> None:
        """Write what makes the folder a recording; until then it is none."""
        settings = {name: getattr(self.task, name) for name in ("context", "stop", "tokens", "dtype")}
        run = {"task": settings, "checkpoint": self.checkpoint, "spelling": self.spelling, "stages": self._stages}
        (self.folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")
