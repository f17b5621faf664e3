"""Which weights move, and how: AdamW with a linear decay to zero and a clipped gradient, as the reference trains."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from vqathinker_jax.records import InputError
from vqathinker_jax.sharding import placement, shardings


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The defaults are the reference's: no weight decay, no warm-up, gradient norm at most 1."""

    learning_rate: float = 1e-6
    """Of the first update."""
    decay: bool = True
    """Let the learning rate fall linearly to 0 at the run's end."""
    beta1: float = 0.9
    """Of Adam's first moment."""
    beta2: float = 0.999
    """Of its second."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """What a weight loses of itself each update, times the learning rate."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this."""
    freeze_vision: bool = False
    """Leave the vision tower and its projector as they are."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's first moment; the second has the parameters'."""

    def __post_init__(self):
        for name in ("learning_rate", "epsilon", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: use a positive number")
        for name in ("beta1", "beta2", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: use a number from 0 to below 1")


def rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0: it falls linearly from its start to 0 at `updates`."""
    if not config.decay:
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(config.learning_rate, 0.0, updates)


@functools.cache  # the same one for the same settings: jitted functions take it as a static argument
def optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """The transformation of gradients to changes of the weights, for a run of so many updates."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            rate(config, updates),
            config.beta1,
            config.beta2,
            config.epsilon,
            weight_decay=config.weight_decay,
            mu_dtype=jnp.dtype(config.moments),
        ),
    )


def trainable(config: OptimizerConfig, *, adapters: bool = False) -> Any:
    """The filter for `nnx.split` that picks the weights that move: all but SlowFast's, which are `Frozen`.

    adapters: the model has them, and only they move, and the projector of motion features, which no release brings
    weights for.
    """
    if adapters:
        return nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, lambda path, _: path[0] == "motion_projector"))
    if not config.freeze_vision:
        return nnx.Param
    return nnx.All(nnx.Param, lambda path, _: path[0] not in ("vision", "projector"))


def memory_places(tx: optax.GradientTransformation, moving: nnx.State, mesh: Mesh | AbstractMesh) -> Any:
    """Where the optimizer's memory lies: each array that is like a weight beside it, all others everywhere."""
    everywhere = placement(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda _, place: place,
        jax.eval_shape(tx.init, moving),
        shardings(moving, mesh),
        transform_non_params=lambda _: everywhere,
    )
