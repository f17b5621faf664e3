"""The paper's recipe: GRPO on LSVQ's training videos from InternVL3-8B, with ranking, regression, format and temporal
rewards.

    python run.py train configs/grpo_lsvq_8b.py --run-dir runs/lsvq_8b \\
        --checkpoint VQAThinker-8B-start --data.manifests lsvq_train.jsonl --data.folders LSVQ

The checkpoint is InternVL3-8B in chat format with the motion branch, or one that `convert` made of it.
"""

from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.rollout import RolloutConfig
from vqathinker_jax.train import TrainConfig

config = TrainConfig(
    checkpoint="InternVL3-8B",
    data=DataConfig(manifests="lsvq_train.jsonl", folders="LSVQ", batch_size=32, epochs=3, perturb=True, workers=8),
    rollout=RolloutConfig(completions=4),
    micro_batches=8,
    save_every=100,
)
