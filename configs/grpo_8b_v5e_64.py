"""The paper's GRPO of the 8B model on a v5e-64 slice, which its plan says it fits:

    python run.py plan configs/grpo_8b_v5e_64.py --topology v5e:8x8 --model 8B
    python run.py train configs/grpo_8b_v5e_64.py --run-dir runs/grpo_8b_v5e_64 \\
        --checkpoint InternVL3-8B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper

config = replace(
    paper,
    data=replace(paper.data, batch_size=64),
    micro_batches=1,
    remat="blocks",
)
