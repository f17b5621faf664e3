"""The paper's recipe: GRPO on LSVQ's training videos from InternVL3-8B, with ranking, regression, format and temporal
rewards.

    python run.py convert InternVL3-8B InternVL3-8B-motion --fresh-motion --slowfast SLOWFAST_8x8_R50.pyth
    python run.py train configs/grpo_lsvq_8b.py --run-dir runs/lsvq_8b \\
        --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.rollout import RolloutConfig

config = TrainConfig(
    checkpoint="InternVL3-8B-motion",
    data=DataConfig(manifests="lsvq_train.jsonl", folders="LSVQ", batch_size=32, epochs=3, perturb=True, workers=8),
    rollout=RolloutConfig(completions=4),
    micro_batches=4,
    save_every=100,
)
