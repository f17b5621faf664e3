"""The paper's GRPO of the 8B model on 8 × H200. It fits by its plan (`benchmarks/plans`):

    python run.py plan configs/grpo_8b_h200_8.py --topology h200:8 --model 8B
    python run.py train configs/grpo_8b_h200_8.py --run-dir runs/grpo_8b_h200_8 \\
        --checkpoint InternVL3-8B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper

config = replace(
    paper,
    data=replace(paper.data, batch_size=32),
    micro_batches=1,  # the weights of each part are gathered anew; what one part needs is a third of the memory
    remat="layers",
)
