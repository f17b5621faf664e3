"""The paper's GRPO of the 38B model on a v5p-64 slice, 32 chips. It fits by its plan (`benchmarks/plans`):

    python run.py plan configs/grpo_38b_v5p_64.py --topology v5p:2x4x4 --model 38B
    python run.py train configs/grpo_38b_v5p_64.py --run-dir runs/grpo_38b_v5p_64 \\
        --checkpoint InternVL3-38B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper

config = replace(
    paper,
    checkpoint="InternVL3-38B-motion",
    data=replace(paper.data, batch_size=32),
    micro_batches=1,
    remat="blocks",
)
