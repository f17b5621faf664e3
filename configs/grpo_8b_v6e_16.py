"""The paper's GRPO of the 8B model on a v6e-16 slice. It fits by its plan (`benchmarks/plans`):

    python run.py plan configs/grpo_8b_v6e_16.py --topology v6e:4x4 --model 8B
    python run.py train configs/grpo_8b_v6e_16.py --run-dir runs/grpo_8b_v6e_16 \\
        --checkpoint InternVL3-8B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper

config = replace(
    paper,
    data=replace(paper.data, batch_size=32),
    rollout=replace(paper.rollout, micro_batches=2),
    micro_batches=2,
    remat="blocks",
)
