"""A tiny judge that learns to rate synthetic videos on a laptop: `config` is its GRPO, `warm_start` what precedes it.

`make learn` runs the whole chain, makes what both start from, and measures (`tools/learn.py`). By hand, after it:

    python run.py train configs/learn_tiny.py --run-dir runs/mine --checkpoint runs/learn/seed0/warm_start/model

The rewards are the paper's but for two things: a batch is ranked as a whole, which is dense where a rating is still far
from right, and a written 3.50 counts as two decimals, without which every tenth rating is punished for its last digit.
Training for minutes takes large steps; the KL weight is what keeps the words true and the ratings many meanwhile
(`benchmarks/learning` has what weaker ones did), and the reference policy follows now and then, so that the weight
keeps ratings from haste and not from where they are going. A batch goes in small parts because those stay in a core's
cache (`benchmarks/learning/HISTORY.md`).
"""

from dataclasses import replace

from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.optim import OptimizerConfig
from vqathinker_jax.recipe import ReferenceConfig, TrainConfig
from vqathinker_jax.rewards import RewardConfig
from vqathinker_jax.rollout import RolloutConfig

config = TrainConfig(
    checkpoint="runs/learn/seed0/warm_start/model",
    data=DataConfig(
        manifests="runs/learn/videos/train.jsonl",
        folders="runs/learn/videos",
        batch_size=32,
        epochs=10,
        frames=6,
        size=112,
        question="scoring",
        perturb=True,
    ),
    steps=195,
    reference=ReferenceConfig(every=65),
    rollout=RolloutConfig(completions=8, max_new_tokens=40, top_k=0, micro_batches=8, trailing_zeros=True),
    rewards=RewardConfig(),
    loss=LossConfig(beta=0.2, scale_advantages=False),
    optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.98, freeze_vision=True),
    save_every=50,
    keep=1,
    samples_every=20,
    micro_batches=16,
    remat="none",
)

warm_start = replace(
    config,
    stage="sft",
    checkpoint="runs/learn/seed0/seeing",
    data=replace(config.data, manifests="runs/learn/seed0/lessons.jsonl", batch_size=4, perturb=False),
    steps=1500,
    optimizer=replace(config.optimizer, beta2=0.999),
    save_every=500,
    rollout=replace(config.rollout, micro_batches=1),
    micro_batches=4,
)
