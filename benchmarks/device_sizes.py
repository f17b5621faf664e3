"""What the benchmarks of a device compute: a model's dimensions, a prompt for scoring and one for training, batches.

Read by our side and PyTorch's, so it imports neither.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from vqathinker_jax.model.config import LanguageConfig, ModelConfig, MotionConfig, VisionConfig
from vqathinker_jax.model.released import RELEASED

BUCKET = 128
"""Prompts are padded on the left to a multiple of this."""


@dataclass(frozen=True)
class Prompt:
    """Square frames of `size` pixels a side, and tokens of text around what they become."""

    frames: int
    size: int
    text: int

    def visual(self, model: ModelConfig) -> int:
        """Visual tokens of one video, with that of its motion."""
        return self.frames * model.tokens_per_frame(self.size) + (model.motion is not None)

    def tokens(self, model: ModelConfig) -> int:
        """Tokens of one prompt, without padding."""
        return self.visual(model) + self.text

    def padded(self, model: ModelConfig) -> int:
        """Tokens of one prompt as it is computed."""
        return -(-self.tokens(model) // BUCKET) * BUCKET


@dataclass(frozen=True)
class Sizes:
    """weights, cache: what the decoder layers' matrices, and prompts' keys and values, are kept in, but in training.
    scoring, training: the two kinds of prompts. context_id: the token that stands for a visual one.

    batches: videos at a time, by phase. answer: tokens of a score's answer. completion: tokens of a completion in
    training. drawn, learned: completions a video in a rollout and in an update. slice: tokens of a timed decode.
    """

    model: ModelConfig
    weights: Literal["full", "int8"] = "full"
    cache: Literal["full", "int8"] = "full"
    scoring: Prompt = Prompt(12, 560, 200)
    training: Prompt = Prompt(6, 448, 163)
    context_id: int = 151667
    answer: int = 128
    completion: int = 256
    drawn: int = 8
    learned: int = 4
    slice: int = 16
    batches: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "vision": (1, 16),
            "motion": (1, 16),
            "prefill": (1, 16),
            "decode": (1, 8, 16, 32, 64),
            "score": (1, 16),
            "rollout": (16,),
            "log-probs": (8,),
            "lora": (8,),
            "update": (8,),
        }
    )

    def cells(self, phases: list[str]) -> list[str]:
        """Names, as `decode@16`, of what these phases are measured at; a phase may be named with its batch too."""
        every = {phase: [f"{phase}@{batch}" for batch in batches] for phase, batches in self.batches.items()}
        return [cell for phase in phases for cell in every.get(phase, [phase])]


_TINY = ModelConfig(
    vision=VisionConfig(width=32, layers=2, heads=4, mlp=48, grid=4),
    language=LanguageConfig(width=32, layers=2, heads=4, kv_heads=2, mlp=64, vocabulary=80),
    motion=MotionConfig(stem=8, depths=(1, 1, 1, 1), slow_pool=(8, 1, 1), fast_pool=(32, 2, 2)),
)

SIZES = {
    "tiny": Sizes(
        _TINY,
        scoring=Prompt(4, 56, 9),
        training=Prompt(4, 56, 9),
        context_id=77,
        answer=6,
        completion=8,
        drawn=3,
        learned=2,
        slice=3,
        batches={
            **dict.fromkeys(("vision", "motion", "prefill", "score", "rollout", "log-probs", "lora", "update"), (2,)),
            "decode": (1, 2),
        },
    ),
    "1B": Sizes(RELEASED["1B"]),
    "8B": Sizes(RELEASED["8B"]),
}
SIZES |= {
    f"{name}{suffix}": replace(sizes, weights="int8", cache=cache)
    for name, sizes in SIZES.items()
    for suffix, cache in (("-int8", "full"), ("-int8-cache", "int8"))
}
