"""The paper's GRPO of the 1B model on one v5e chip, with the vision tower as it is: with it moving, the update would
take 15.1 of the 15.8 GiB by its plan (`benchmarks/plans`), which is too near the edge to rely on.

    python run.py plan configs/grpo_1b_v5e.py --topology v5e:1x1 --model 1B
    python run.py train configs/grpo_1b_v5e.py --run-dir runs/grpo_1b_v5e \\
        --checkpoint InternVL3-1B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper

config = replace(
    paper,
    checkpoint="InternVL3-1B-motion",
    data=replace(paper.data, batch_size=8),
    rollout=replace(paper.rollout, micro_batches=4, max_new_tokens=1024),
    parameters="bfloat16",
    optimizer=replace(paper.optimizer, moments="bfloat16", freeze_vision=True),
    micro_batches=8,
    remat="blocks",
)
