"""The paper's GRPO, as adapters, of the 8B model on one H200. It fits by its plan (`benchmarks/plans`):

    python run.py plan configs/lora_8b_h200.py --topology h200:1 --model 8B
    python run.py train configs/lora_8b_h200.py --run-dir runs/lora_8b_h200 \\
        --checkpoint InternVL3-8B-motion --data.manifests lsvq_train.jsonl --data.folders LSVQ
"""

from dataclasses import replace

from configs.grpo_lsvq_8b import config as paper
from vqathinker_jax.model.adapter import LoraConfig

config = replace(
    paper,
    data=replace(paper.data, batch_size=8),
    lora=LoraConfig(rank=16),
    micro_batches=8,
    remat="products",
)
