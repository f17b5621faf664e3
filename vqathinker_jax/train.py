"""GRPO from score labels alone, or supervised training on given responses: the loop, and what it is told to do.

Follow one step: a batch of videos, G completions of each drawn from the policy, their ratings read, one jitted update
that rewards them and moves the weights, a row of metrics. A supervised step (stage `sft`, for a model that does not yet
say what GRPO could reward) learns the batch's responses instead, and is alike in all else. Everything in a step follows
from its number, the seed and the weights, so a run that is killed and resumed ends with the very numbers of one that
was not.

Deviations from the reference: see `rewards.py`, `rollout.py`, `grpo.py` and `pipeline.py`.
"""

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqathinker_jax import checkpoint
from vqathinker_jax.data.pipeline import Batch, Batches, DataConfig, load_rows
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.journal import Journal
from vqathinker_jax.lessons import Responses
from vqathinker_jax.model.adapter import LoraConfig, adapt, merge
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.optim import OptimizerConfig, optimizer, rate, trainable
from vqathinker_jax.records import Answer, InputError
from vqathinker_jax.rewards import RewardConfig
from vqathinker_jax.rollout import Clock, Drawn, Prompts, RolloutConfig, roll_out
from vqathinker_jax.savepoint import Savepoint, Savepoints
from vqathinker_jax.sharding import Layout, MeshConfig, Remat, check_spread, layout_of, make_mesh, shardings
from vqathinker_jax.step import Fixed, StepConfig, TrainState, imitate, update

Floats = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ReferenceConfig:
    """When the reference policy, to which the loss holds the policy, follows it. By default never, as in the paper."""

    every: int = 0
    """Steps between two times that it moves towards the policy; 0 for never."""
    mix: float = 1.0
    """How far it then moves: 1 makes it the policy; with every 1, less than 1 makes it a moving average."""

    def __post_init__(self):
        if self.every < 0 or not 0 < self.mix <= 1:
            raise InputError(f"{self}: every must not be negative, mix in (0, 1]")


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
    """Parts that a batch goes through the update in; the result does not depend on it."""
    remat: Remat = "layers"
    """What the backward pass computes again rather than keeps: nothing, each layer, or blocks of its attention too."""
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
        P = self.data.batch_size
        parts = {
            "micro_batches": self.micro_batches,
            "rollout.micro_batches": self.rollout.micro_batches,
            "rewards.ranking_group": self.rewards.ranking_group or P,
            "rewards.temporal_group": self.rewards.temporal_group or P,
        }
        for name, part in parts.items():
            if P % part:
                divisors = ", ".join(str(n) for n in range(1, P + 1) if P % n == 0)
                raise InputError(f"{name} is {part}, which does not divide batch_size {P}: use one of {divisors}")

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


FREE = ("save_every", "keep", "samples_every", "wandb", "data.workers", "data.prefetch")
"""Settings that a resume may change."""


class NotFiniteError(ArithmeticError):
    """A loss or gradient that is not finite; the message says at which step, over which videos, and what was saved."""


class Policy(NamedTuple):
    """A model as the loop holds it."""

    graph: nnx.GraphDef[VLM]
    state: TrainState
    fixed: Fixed
    optimizer: optax.GradientTransformation
    mesh: Mesh
    arithmetic: jnp.dtype


OpenModel = Callable[[jnp.dtype], VLM]
"""Opens the checkpoint of a configuration with weights of this dtype."""

Display = Callable[[int, int, dict[str, float]], None]
"""Told the steps done, the steps there are, and the metrics of the newest."""


def train(
    config: TrainConfig,
    directory: Path,
    model_config: ModelConfig,
    open_model: OpenModel,
    display: Display,
) -> Path | None:
    """Run, or go on with, what the configuration says in a directory; returns the folder of the trained model.

    model_config: of the configuration's checkpoint, against which everything is checked before weights are read.
    open_model: its model with weights in the dtype asked for, layers stacked. Returns None where SIGTERM ended the run
    early: everything is saved, and the same call goes on from there.

    Raises: InputError for what the user must mend first; NotFiniteError; OSError where a savepoint cannot be written.
    """
    rows = load_rows(config.data)
    batches = Batches(rows, config.data, jax.process_index(), jax.process_count())
    if config.steps > len(batches):
        raise InputError(f"steps is {config.steps}, but the epochs hold {len(batches)} batches: raise data.epochs")
    steps = config.steps or len(batches)
    mesh = make_mesh(config.mesh)
    for parts in (config.micro_batches, config.rollout.micro_batches):
        check_spread(config.data.batch_size, parts, mesh)
    everything = [row for some in rows for row in some]
    tokenizer = load_tokenizer(Path(config.checkpoint))
    prompts = Prompts(everything, tokenizer, model_config, frames=config.data.frames, size=config.data.size)
    responses = Responses(everything, prompts) if config.stage == "sft" else None
    room = responses.places if responses else config.rollout.max_new_tokens
    prompts.check_room(room, model_config.language.max_positions)
    with (
        Journal(directory, asdict(config), FREE, config.wandb) as journal,
        Savepoints(directory / "savepoints", config.keep) as savepoints,
        Termination() as termination,
    ):
        done, trained = savepoints.latest() or 0, directory / "model"
        if done == steps and trained.exists():
            return trained
        policy = prepare(open_model(jnp.dtype(config.parameters)), config, mesh, steps * config.iterations)
        falling = rate(config.optimizer, steps * config.iterations)
        if done:
            kept, place = savepoints.restore(done, _kept(policy, config))
            policy = _taken_up(policy, kept)
            batches.set_state(place["data"])
        journal.begin(done)
        for step in range(done, steps):
            place, clock = batches.get_state(), Clock()
            with clock("data"):
                batch = next(batches)
            if responses:
                policy, metrics, samples = supervised_step(policy, batch, responses, config, clock)
            else:
                policy, metrics, samples = one_step(policy, batch, prompts, config, step, clock)
            if not metrics.pop("finite"):
                savepoints.save(step, Savepoint(_kept(policy, config), {"data": place}))
                savepoints.wait()
                raise NotFiniteError(_not_finite(step, metrics, batch, savepoints.directory))
            metrics |= {"learning_rate": float(falling(step * config.iterations)), "unreadable": len(batch.unreadable)}  # pyright: ignore[reportArgumentType]
            metrics |= {f"seconds_{phase}": seconds for phase, seconds in clock.seconds.items()}
            journal.write(step, metrics)
            journal.write_unreadable(step, batch.unreadable)
            if step % config.samples_every == 0:
                journal.write_samples({"step": step, **sample} for sample in samples)
            display(step + 1, steps, metrics)
            if (step + 1) % config.save_every == 0 or step + 1 == steps or termination.asked:
                savepoints.save(step + 1, Savepoint(_kept(policy, config), {"data": batches.get_state()}))
            if termination.asked and step + 1 < steps:
                savepoints.wait()
                return None
        savepoints.wait()
        batches.close()
        _write_model(policy, config, open_model, trained)
        return trained


def one_step(
    policy: Policy, batch: Batch, prompts: Prompts, config: TrainConfig, step: int, clock: Clock
) -> tuple[Policy, dict[str, float], list[dict[str, Any]]]:
    """Draw completions of a batch, learn from them; returns the new policy, metrics, and a sample row a video."""
    graph, state, fixed, tx, mesh, arithmetic = policy
    acting = nnx.merge_state(_cast(state.moving, arithmetic), fixed.still)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    rng = np.random.default_rng([config.seed, step])
    drawn = roll_out(graph, acting, batch, prompts, config.rollout, mesh, key=key, rng=rng, clock=clock)
    del acting
    rollout, taken = drawn.rollout, []
    with clock("update"):
        for _ in range(config.iterations):
            state, report = update(
                graph, state, fixed, rollout, optimizer=tx, config=config.step, context_id=prompts.special.context
            )
            rollout = rollout._replace(old_log_probs_PGC=(taken[0] if taken else report).log_probs_PGC)
            taken.append(report)
        reports = jax.device_get([report.metrics for report in taken])
        rewards_PG = jax.device_get(taken[0].rewards_PG)
    if _moves(config) and (step + 1) % config.reference.every == 0 and fixed.reference:
        fixed = fixed._replace(reference=(_follow(fixed.reference[0], state.moving, config.reference.mix), fixed.still))
    metrics = {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}
    metrics["finite"] = float(min(report["finite"] for report in reports))
    return Policy(graph, state, fixed, tx, mesh, arithmetic), metrics, _samples(batch, drawn, rewards_PG)


def supervised_step(
    policy: Policy, batch: Batch, responses: Responses, config: TrainConfig, clock: Clock
) -> tuple[Policy, dict[str, float], list[dict[str, Any]]]:
    """Learn the responses of a batch; returns the new policy, metrics, and no samples, as nothing is drawn."""
    with clock("update"):
        state, report = imitate(
            policy.graph,
            policy.state,
            policy.fixed.still,
            responses.of(batch, policy.mesh),
            optimizer=policy.optimizer,
            config=config.step,
            context_id=responses.prompts.special.context,
        )
        metrics = {name: float(value) for name, value in jax.device_get(report).items()}
    return policy._replace(state=state), metrics, []


def prepare(model: VLM, config: TrainConfig, mesh: Mesh, updates: int) -> Policy:
    """Split a model into what moves and what stays, spread both over the mesh, and make the optimizer's memory there.

    The reference policy is a copy of the first weights; with fresh adapters, which do nothing yet, that is the base.
    """
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    arithmetic = jnp.dtype(auto if config.arithmetic == "auto" else config.arithmetic)
    if config.lora.rank:
        adapt(model.language.layers, config.lora, config.seed)
    graph, moving, still = divide(model, config, arithmetic, layout_of(mesh, config.remat))
    moving, still = (jax.device_put(part, shardings(part, mesh)) for part in (moving, still))
    still = _cast(still, arithmetic)
    tx = optimizer(config.optimizer, updates)
    memory = jax.jit(tx.init, out_shardings=memory_places(tx, moving, mesh))(moving)
    reference = None
    if config.loss.beta and config.stage == "grpo":
        # A moving average takes steps too small for bfloat16.
        held = arithmetic if config.reference.mix == 1 else jnp.promote_types(arithmetic, jnp.float32)
        # A copy in any case: the update gives its own away.
        reference = jax.tree.map(lambda x: jnp.copy(x) if x.dtype == held else x.astype(held), moving), still
    return Policy(graph, TrainState(moving, memory), Fixed(still, reference), tx, mesh, arithmetic)


def divide(
    model: VLM, config: TrainConfig, arithmetic: jnp.dtype, layout: Layout
) -> tuple[nnx.GraphDef[VLM], nnx.State, nnx.State]:
    """Say how a model, which may be without its numbers, is to compute, and split it into what moves and what stays."""
    model.arithmetic = arithmetic
    model.lay_out(layout)
    return nnx.split(model, _trainable(config), ...)  # pyright: ignore[reportReturnType]


def memory_places(tx: optax.GradientTransformation, moving: nnx.State, mesh: Mesh) -> Any:
    """Where the optimizer's memory lies: each array that is like a weight beside it, all others everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda _, place: place,
        jax.eval_shape(tx.init, moving),
        jax.tree.map(lambda x: x.sharding, moving),
        transform_non_params=lambda _: everywhere,
    )


class Termination:
    """Notes SIGTERM and Ctrl-C instead of dying of them, so that the step at hand can end and be saved.

    A second one ends the run at once.
    """

    def __init__(self):
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _kept(policy: Policy, config: TrainConfig) -> dict[str, Any]:
    """What of a policy changes from step to step."""
    kept: dict[str, Any] = {"state": policy.state}
    if _moves(config) and policy.fixed.reference:
        kept["reference"] = policy.fixed.reference[0]
    return kept


def _taken_up(policy: Policy, kept: dict[str, Any]) -> Policy:
    fixed = policy.fixed
    if "reference" in kept:
        fixed = fixed._replace(reference=(kept["reference"], fixed.still))
    return policy._replace(state=kept["state"], fixed=fixed)


def _trainable(config: TrainConfig) -> Any:
    """The filter that picks the weights that move."""
    return trainable(config.optimizer, adapters=config.lora.rank > 0)


def _moves(config: TrainConfig) -> bool:
    """Whether the reference policy ever changes, and so must be saved."""
    return bool(config.loss.beta and config.reference.every)


@partial(jax.jit, static_argnames=("dtype",))
def _cast(state: nnx.State, dtype: jnp.dtype) -> nnx.State:
    return jax.tree.map(lambda x: x.astype(dtype), state)


@partial(jax.jit, donate_argnames=("reference",))
def _follow(reference: nnx.State, moving: nnx.State, mix: float) -> nnx.State:
    return jax.tree.map(lambda old, new: (old + mix * (new - old)).astype(old.dtype), reference, moving)


def _write_model(policy: Policy, config: TrainConfig, open_model: OpenModel, directory: Path) -> None:
    """Write the trained model, adapters merged, as a native checkpoint with the source's config and tokenizer.

    Weights that did not move are the source's own: those at hand may have been rounded to the dtype of arithmetic.
    """
    kept = jnp.dtype(config.parameters)
    still = policy.fixed.still
    if policy.arithmetic != kept:
        with jax.default_device(jax.devices("cpu")[0]):
            source = open_model(kept)
            if config.lora.rank:
                adapt(source.language.layers, config.lora, config.seed)
        still = nnx.split(source, _trainable(config), ...)[2]
    model = nnx.merge(policy.graph, jax.device_get(policy.state.moving), jax.device_get(still))
    merge(model.language.layers)
    checkpoint.save(directory, model, Path(config.checkpoint), force=True)


def _samples(batch: Batch, drawn: Drawn, rewards_PG: np.ndarray) -> list[dict[str, Any]]:
    """A row a video: what was said about it, what was read in that, and what it earned."""
    return [
        {
            "video": row.name,
            "mos": row.mos,
            "completions": [
                {
                    "text": text,
                    "rating": reading.parsed.score if isinstance(reading.parsed, Answer) else None,
                    "formatted": reading.formatted,
                    "reward": round(float(reward), 4),
                }
                for text, reading, reward in zip(texts_G, readings_G, rewards_G, strict=True)
            ],
        }
        for row, texts_G, readings_G, rewards_G in zip(
            batch.rows, drawn.texts_PG, drawn.readings_PG, rewards_PG, strict=True
        )
    ]


def _not_finite(step: int, metrics: dict[str, float], batch: Batch, saved: Path) -> str:
    return (
        f"step {step}: the loss is {metrics['loss']} and the gradient's norm {metrics['grad_norm']}; the batch: "
        f"{', '.join(row.name for row in batch.rows)}. The last good weights are saved in {saved / str(step)}; start a "
        "new run with a smaller learning rate, or without the video that causes it"
    )
