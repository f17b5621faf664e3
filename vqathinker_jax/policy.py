"""A model as training holds it: what moves and what stays, spread over the mesh, and the reference policy beside it.

Enters: a recipe, and how its checkpoint is opened. Leaves: a `Policy`, fresh or as an earlier part of the run left it,
and in the end the trained model's checkpoint. Nothing is ever whole on one device, or on a host, but one array at a
time.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from vqathinker_jax import checkpoint
from vqathinker_jax.model.adapter import adapt, merge
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.optim import memory_places, optimizer, trainable
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.sharding import Layout, layout_of, shardings
from vqathinker_jax.step import Fixed, TrainState

OpenModel = Callable[[jnp.dtype | None, Mesh], VLM]
"""Opens the checkpoint of a configuration with weights of this dtype, layers stacked, spread over this mesh."""


class Policy(NamedTuple):
    """A model as the loop holds it."""

    graph: nnx.GraphDef[VLM]
    state: TrainState
    fixed: Fixed
    optimizer: optax.GradientTransformation
    mesh: Mesh
    arithmetic: jnp.dtype

    @property
    def acting(self) -> nnx.State:
        """The weights that completions are drawn with, in the dtype of arithmetic."""
        return nnx.merge_state(_cast(self.state.moving, self.arithmetic), self.fixed.still)


def prepare(
    open_model: OpenModel,
    config: TrainConfig,
    mesh: Mesh,
    updates: int,
    restore: Callable[[Any], Any] | None = None,
) -> Policy:
    """The policy of a run of so many updates, before its first step or where `restore` takes it up.

    The reference policy is a copy of the first weights; with fresh adapters, which do nothing yet, that is the base.
    restore: gives what `kept` gave, told its arrays' shapes and places. Until then there is no memory of the optimizer,
    and the first weights are gone but for that copy.
    """
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    arithmetic = jnp.dtype(auto if config.arithmetic == "auto" else config.arithmetic)
    model = _adapted(open_model(jnp.dtype(config.parameters), mesh), config)
    graph, moving, still = divide(model, config, arithmetic, layout_of(mesh, config.remat, config.attention))
    del model
    moving, still = (jax.device_put(part, shardings(part, mesh)) for part in (moving, still))
    still = _cast(still, arithmetic)
    tx = optimizer(config.optimizer, updates)
    places = memory_places(tx, moving, mesh)
    reference = None
    if config.loss.beta and config.stage == "grpo":
        held = reference_dtype(config, arithmetic)
        # A copy in any case: the update gives its own away.
        copied = jax.tree.map(lambda x: jnp.copy(x) if x.dtype == held else x.astype(held), moving)
        reference = jax.device_put(copied, reference_places(moving, mesh, config)), None
    if restore is None:
        state = TrainState(moving, jax.jit(tx.init, out_shardings=places)(moving))
        return Policy(graph, state, Fixed(still, reference), tx, mesh, arithmetic)
    memory = jax.tree.map(_shape, jax.eval_shape(tx.init, moving), places)
    moving = jax.tree.map(lambda x: _shape(x, x.sharding), moving)
    policy = Policy(graph, TrainState(moving, memory), Fixed(still, reference), tx, mesh, arithmetic)
    return _taken_up(policy, restore(kept(policy, config)))


def divide(
    model: VLM, config: TrainConfig, arithmetic: jnp.dtype, layout: Layout
) -> tuple[nnx.GraphDef[VLM], nnx.State, nnx.State]:
    """Say how a model, which may be without its numbers, is to compute, and split it into what moves and what stays."""
    model.arithmetic = arithmetic
    model.lay_out(layout)
    graph, moving, still = nnx.split(model, _trainable(config), ...)
    return graph, moving, still


def reference_dtype(config: TrainConfig, arithmetic: jnp.dtype) -> jnp.dtype:
    """What the reference policy's weights are held in: a moving average takes steps too small for bfloat16."""
    return arithmetic if config.reference.mix == 1 else jnp.promote_types(arithmetic, jnp.float32)


def reference_places(moving: nnx.State, mesh: Mesh, config: TrainConfig) -> Any:
    """Where the reference policy's own weights lie: as the policy's do, or the matrices of layers, which are next to
    all of them, in the memory of the same devices' hosts."""
    places = shardings(moving, mesh)
    if config.reference.memory == "device":
        return places

    def on_host(place: Sharding) -> NamedSharding:
        # Named even for one device: of an array without its numbers, jit learns its memory from nothing else.
        spec = place.spec if isinstance(place, NamedSharding) else PartitionSpec()
        return NamedSharding(mesh, spec, memory_kind="pinned_host")

    # libtpu slices no norm and no bias out of a stack that waits there.
    matrices, others = nnx.split_state(places, lambda path, _: {"layers", "kernel"} <= set(path), ...)
    return nnx.merge_state(jax.tree.map(on_host, matrices), others)


def follow(policy: Policy, config: TrainConfig, done: int) -> Policy:
    """The policy after so many steps, the reference policy moved towards it where the recipe says so."""
    reference = policy.fixed.reference
    if not reference or not config.reference.every or done % config.reference.every:
        return policy
    moved = _mix(reference[0], policy.state.moving, config.reference.mix)
    return policy._replace(fixed=policy.fixed._replace(reference=(moved, reference[1])))


def kept(policy: Policy, config: TrainConfig) -> dict[str, Any]:
    """What of a policy changes from step to step."""
    changing: dict[str, Any] = {"state": policy.state}
    if policy.fixed.reference and config.reference.every:
        changing["reference"] = policy.fixed.reference[0]
    return changing


def write_model(policy: Policy, config: TrainConfig, open_model: OpenModel, directory: Path) -> None:
    """Write the trained model, adapters merged, as a native checkpoint with the source's config and tokenizer.

    Weights that did not move are the source's own: those at hand may have been rounded to the dtype of arithmetic, or
    of the weights that move. Into what is narrower than these, adapters would be merged in vain.
    """
    stored, still = jnp.dtype(config.parameters), policy.fixed.still
    if policy.arithmetic != jnp.float32 or stored != jnp.float32:
        source = _adapted(open_model(None, policy.mesh), config)
        _, _, still = nnx.split(source, _trainable(config), ...)
        still = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, stored)), still)
        still = jax.device_put(still, shardings(still, policy.mesh))
    model = nnx.merge(policy.graph, policy.state.moving, still)
    merge(model.language.layers)
    checkpoint.save(directory, model, Path(config.checkpoint), force=True)


def _taken_up(policy: Policy, changing: dict[str, Any]) -> Policy:
    fixed = policy.fixed
    if "reference" in changing:
        fixed = fixed._replace(reference=(changing["reference"], None))
    return policy._replace(state=changing["state"], fixed=fixed)


def _adapted(model: VLM, config: TrainConfig) -> VLM:
    if config.lora.rank:
        adapt(model.language.layers, config.lora, config.seed)
    return model


def _trainable(config: TrainConfig) -> Any:
    """The filter that picks the weights that move."""
    return trainable(config.optimizer, adapters=config.lora.rank > 0)


def _shape(x: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


@partial(jax.jit, static_argnames=("dtype",))
def _cast(state: nnx.State, dtype: jnp.dtype) -> nnx.State:
    return jax.tree.map(lambda x: x.astype(dtype), state)


@partial(jax.jit, donate_argnames=("reference",))
def _mix(reference: nnx.State, moving: nnx.State, mix: float) -> nnx.State:
    return jax.tree.map(lambda old, new: (old + mix * (new - old)).astype(old.dtype), reference, moving)
