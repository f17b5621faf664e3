"""GRPO from score labels alone, or supervised training on given responses: the loop, and what it is told to do.

Follow one step: a batch of videos, G completions of each drawn from the policy, their ratings read, one jitted update
that rewards them and moves the weights, a row of metrics. A supervised step (stage `sft`, for a model that does not yet
say what GRPO could reward) learns the batch's responses instead, and is alike in all else. Everything in a step follows
from its number, the seed and the weights, so a run that is killed and resumed ends with the very numbers of one that
was not.

Deviations from the reference: see `rewards.py`, `rollout.py`, `grpo.py` and `pipeline.py`.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vqathinker_jax.data.pipeline import Batch, Batches, load_rows
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.journal import Journal
from vqathinker_jax.lessons import Responses
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.optim import rate
from vqathinker_jax.policy import OpenModel, Policy, follow, kept, prepare, write_model
from vqathinker_jax.processes import exchange, is_first
from vqathinker_jax.recipe import FREE, TrainConfig
from vqathinker_jax.records import Answer, InputError
from vqathinker_jax.rollout import Clock, Drawn, Prompts, roll_out
from vqathinker_jax.savepoint import Savepoint, Savepoints
from vqathinker_jax.sharding import check_spread, local_rows, make_mesh, share_of_videos
from vqathinker_jax.step import Fixed, imitate, seen_by_still, update


class NotFiniteError(ArithmeticError):
    """A loss or gradient that is not finite; the message says at which step, over which videos, and what was saved."""


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
    Returns None where SIGTERM ended the run early: everything is saved, and the same call goes on from there. Of
    several processes all must call this, with a directory that they share; the first one writes what is written once.

    Raises: InputError for what the user must mend first; NotFiniteError; OSError where a savepoint cannot be written.
    """
    rows = load_rows(config.data)
    mesh = make_mesh(config.mesh)
    for parts in (config.micro_batches, config.rollout.micro_batches):
        check_spread(config.data.batch_size, parts, mesh)
    batches = Batches(rows, config.data, *share_of_videos(mesh))
    if config.steps > len(batches):
        raise InputError(f"steps is {config.steps}, but the epochs hold {len(batches)} batches: raise data.epochs")
    steps = config.steps or len(batches)
    everything = [row for some in rows for row in some]
    tokenizer = load_tokenizer(Path(config.checkpoint))
    view = {"frames": config.data.frames, "size": config.data.size, "question": config.data.question}
    prompts = Prompts(everything, tokenizer, model_config, **view)
    responses = Responses(everything, prompts) if config.stage == "sft" else None
    room = responses.places if responses else config.rollout.max_new_tokens
    prompts.check_room(room, model_config.language.max_positions)
    with (
        Journal(directory, asdict(config), FREE, config.wandb, writes=is_first()) as journal,
        Savepoints(directory / "savepoints", config.keep) as savepoints,
        Termination() as termination,
    ):
        done, trained = savepoints.latest() or 0, directory / "model"
        if done == steps and trained.exists():
            return trained

        def restore(like: Any) -> Any:
            arrays, place = savepoints.restore(done, like)
            batches.set_state(place["data"])
            return arrays

        policy = prepare(open_model, config, mesh, steps * config.iterations, restore if done else None)
        falling = rate(config.optimizer, steps * config.iterations)
        journal.begin(done)
        for step in range(done, steps):
            place, clock = batches.get_state(), Clock()
            with clock("data"):
                batch = next(batches)
            if responses:
                policy, metrics, samples = supervised_step(policy, batch, responses, config, clock)
            else:
                policy, metrics, samples = one_step(policy, batch, prompts, config, step, clock)
            due = step % config.samples_every == 0
            told = _Told.of_all(mesh, batch, samples if due else [])
            if not metrics.pop("finite"):
                if config.iterations == 1:  # else an earlier one has moved the weights
                    savepoints.save(step, Savepoint(kept(policy, config), {"data": place}))
                savepoints.wait()
                good = savepoints.latest()
                saved = None if good is None else savepoints.directory / str(good)
                raise NotFiniteError(_not_finite(step, metrics, told.videos, saved))
            policy = follow(policy, config, step + 1)
            metrics |= {
                "learning_rate": float(np.asarray(falling(step * config.iterations))),
                "unreadable": len(told.unreadable),
            }
            metrics |= {f"seconds_{phase}": seconds for phase, seconds in clock.seconds.items()}
            journal.write(step, metrics)
            journal.write_unreadable(step, told.unreadable)
            journal.write_samples({"step": step, **sample} for sample in told.samples)
            display(step + 1, steps, metrics)
            stop = any(exchange(termination.asked))
            if (step + 1) % config.save_every == 0 or step + 1 == steps or stop:
                savepoints.save(step + 1, Savepoint(kept(policy, config), {"data": batches.get_state()}))
            if stop and step + 1 < steps:
                savepoints.wait()
                return None
        savepoints.wait()
        batches.close()
        # Room for the source's weights.
        policy = policy._replace(state=policy.state._replace(memory=()), fixed=Fixed(policy.fixed.still, None))
        write_model(policy, config, open_model, trained)
        return trained


def one_step(
    policy: Policy, batch: Batch, prompts: Prompts, config: TrainConfig, step: int, clock: Clock
) -> tuple[Policy, dict[str, float], list[dict[str, Any]]]:
    """Draw completions of a batch, learn from them; returns the new policy, metrics, and a sample row a video."""
    graph, state, fixed = policy.graph, policy.state, policy.fixed
    draws = {"key": jax.random.fold_in(jax.random.key(config.seed), step), "seeds": (config.seed, step)}
    drawn = roll_out(graph, policy.acting, batch, prompts, config.rollout, policy.mesh, **draws, clock=clock)
    drawn = drawn._replace(rollout=drawn.rollout._replace(sight=seen_by_still(drawn.rollout.sight, state.moving)))
    rollout, taken = drawn.rollout, []
    asked = {"optimizer": policy.optimizer, "config": config.step, "context_id": prompts.special.context}
    with clock("update"):
        for _ in range(config.iterations):
            state, report = update(graph, state, fixed, rollout, **asked)
            rollout = rollout._replace(old_log_probs_PGC=(taken[0] if taken else report).log_probs_PGC)
            taken.append(report)
        reports = jax.device_get([report.metrics for report in taken])
        rewards_PG = local_rows(taken[0].rewards_PG)
    metrics = {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}
    metrics["finite"] = float(min(report["finite"] for report in reports))
    return policy._replace(state=state), metrics, _samples(batch, drawn, rewards_PG)


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
        os.write(2, b"stopping after this step; press Ctrl-C again to stop now\n")  # print is not for signal handlers


class _Told(NamedTuple):
    """What all processes have to say about a step: of each share of the videos once, in the order of the batch."""

    videos: list[str]
    samples: list[dict[str, Any]]
    unreadable: list[str]

    @classmethod
    def of_all(cls, mesh: Mesh, batch: Batch, samples: list[dict[str, Any]]) -> "_Told":
        """Of this process and all others; every process must call this."""
        mine = [row.name for row in batch.rows], samples, batch.unreadable
        # Where processes share videos, one of them is heard.
        shares = dict(exchange((share_of_videos(mesh)[0], mine)))
        told = [shares[share] for share in sorted(shares)]
        return cls(*([each for share in told for each in share[part]] for part in range(3)))


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


def _not_finite(step: int, metrics: dict[str, float], videos: Sequence[str], saved: Path | None) -> str:
    where = f"the last good weights are saved in {saved}" if saved else "nothing has been saved yet"
    return (
        f"step {step}: the loss is {metrics['loss']} and the gradient's norm {metrics['grad_norm']}; the batch: "
        f"{', '.join(videos)}; {where}. Start a new run with a smaller "
        "learning rate, or without the video that causes it"
    )
