"""What a training run is told: one dataclass, in which each part brings its own."""

from dataclasses import dataclass, field
from typing import Literal

from vqathinker_jax.data.pipeline import DataConfig
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.model.adapter import LoraConfig
from vqathinker_jax.optim import OptimizerConfig
from vqathinker_jax.records import InputError, check_divides
from vqathinker_jax.rewards import RewardConfig
from vqathinker_jax.rollout import RolloutConfig
from vqathinker_jax.sharding import AttentionChoice, MeshConfig, Remat
from vqathinker_jax.step import StepConfig

Floats = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ReferenceConfig:
    """When the reference policy, to which the loss holds the policy, follows it. By default never, as in the paper."""

    every: int = 0
    """Steps between two times that it moves towards the policy; 0 for never."""
    mix: float = 1.0
    """How far it then moves: 1 makes it the policy; with every 1, less than 1 makes it a moving average."""
    memory: Literal["device", "host"] = "device"
    """Where its layers' matrices wait: on the host they take none of the device's memory, and come layer by layer."""

    def __post_init__(self):
        if self.every < 0 or not 0 < self.mix <= 1:
            raise InputError(f"{self}: every must not be negative, mix in (0, 1]")
        if self.mix != 1 and not self.every:
            raise InputError(f"{self}: mix says how far the reference policy moves, and it never does; set every too")
        if self.every and self.memory == "host":
            raise InputError(
                f"{self}: a reference policy that moves stays on the device; set every 0, or memory device"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults are the reference's recipe where it has one."""

    checkpoint: str
    """Folder of the checkpoint to start from, of any format."""
    data: DataConfig
    stage: Literal["grpo", "sft"] = "grpo"
    """grpo learns from rewards for what the model says; sft learns to say each row's `response`, token by token."""
    slowfast: str = ""
    """SlowFast weights, for a checkpoint that has a motion branch but not these."""
    steps: int = 0
    """Batches to train on; 0 for all that the epochs hold."""
    iterations: int = 1
    """Updates from each batch of completions, their log-probs under the policy that drew them kept."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    micro_batches: int = 1
    """Parts that a batch goes through the update in; the result depends on it by rounding only."""
    remat: Remat = "layers"
    """What the backward pass computes again: nothing, all but products, layers, or blocks of attention too."""
    attention: AttentionChoice = "auto"
    """auto takes the kernel made for the device (cuDNN's, or splash on a TPU); blocks does without."""
    chunk: int = 128
    """Positions of each completion whose logits exist at a time."""
    parameters: Floats = "float32"
    """Dtype of the weights that move."""
    arithmetic: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of activations and of weights that stay; auto is bfloat16 on an accelerator, float32 on a CPU."""
    seed: int = 42
    """Of the completions that are drawn, and of fresh adapters."""
    save_every: int = 100
    """Steps between two savepoints."""
    keep: int = 3
    """Savepoints that stay on disk."""
    samples_every: int = 10
    """Steps between two batches whose completions are written out."""
    wandb: str = ""
    """Project of Weights & Biases that gets the metrics too, where that package is installed."""

    def __post_init__(self):
        least = {"steps": 0, "iterations": 1, "micro_batches": 1, "chunk": 1, "save_every": 1, "keep": 1}
        for name, bound in least.items() | {"samples_every": 1}.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}: give {bound} or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: give 0 to {2**32 - 1}")
        P = self.data.batch_size
        parts = {
            "micro_batches": self.micro_batches,
            "rollout.micro_batches": self.rollout.micro_batches,
            "rewards.ranking_group": self.rewards.ranking_group or P,
            "rewards.temporal_group": self.rewards.temporal_group or P,
        }
        for name, part in parts.items():
            check_divides(name, part, P)

    @property
    def step(self) -> StepConfig:
        """What one update does."""
        return StepConfig(
            loss=self.loss,
            rewards=self.rewards,
            micro_batches=self.micro_batches,
            temperature=self.rollout.temperature,
            max_tokens=self.rollout.max_new_tokens,
            chunk=self.chunk,
        )


FREE = (
    *("save_every", "keep", "samples_every", "wandb", "data.workers", "data.prefetch"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "micro_batches", "remat", "attention", "chunk"),
)
"""Settings that a resume may change: those of the second line change results by rounding, the others not at all."""
