"""GRPO on the embedded demonstration model and the two bundled clips: every part of training, in about a minute.

    python run.py train configs/tiny_cpu.py

Two videos teach nothing; this shows that all of it runs here, and what a run leaves behind.
"""

from pathlib import Path

from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.optim import OptimizerConfig
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.rollout import RolloutConfig

_ASSETS = Path(__file__).parents[1] / "vqathinker_jax" / "assets"

config = TrainConfig(
    checkpoint=str(_ASSETS / "checkpoint"),
    data=DataConfig(
        manifests=str(_ASSETS / "clips" / "train.jsonl"),
        folders=str(_ASSETS / "clips"),
        batch_size=2,
        epochs=12,
        frames=4,
        size=224,
        perturb=True,
    ),
    rollout=RolloutConfig(completions=4, max_new_tokens=64),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    save_every=4,
    samples_every=4,
)
