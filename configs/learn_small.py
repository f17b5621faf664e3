"""The experiment of `learn_tiny.py` with a judge of about a hundred million weights, for one GPU.

    python -m tools.learn --recipe small --processes 1 --seeds 1 --work runs/small --results runs/small/results

It is meant to take less than 25 minutes there. It has been built and checked, and never run.
"""

from dataclasses import replace

import configs.learn_tiny as tiny

config = replace(
    tiny.config,
    checkpoint="runs/small/seed0/warm_start/model",
    data=replace(
        tiny.config.data,
        manifests="runs/small/videos/train.jsonl",
        folders="runs/small/videos",
        batch_size=32,
        epochs=5,
        frames=8,
        size=224,
    ),
    steps=300,
    reference=replace(tiny.config.reference, every=100),
    rollout=replace(tiny.config.rollout, micro_batches=1),
    micro_batches=1,
    optimizer=replace(tiny.config.optimizer, learning_rate=1e-4),
)

warm_start = replace(
    config,
    stage="sft",
    checkpoint="runs/small/seed0/seeing",
    data=replace(config.data, manifests="runs/small/seed0/lessons.jsonl", batch_size=16, perturb=False),
    steps=1000,
    optimizer=replace(tiny.warm_start.optimizer, learning_rate=2e-4),
)
