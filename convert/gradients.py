"""The gradient of a GRPO loss by every weight that trains, on both sides of a cross-check.

Both draw the same two completions of one small prompt, one with advantage 1 and one with -1, of unequal lengths. The
policy that drew them is the present one, and there is no reference policy.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import motion
from convert.formats import SPELLINGS
from convert.oracle import Oracle
from convert.recording import Recording, Task
from convert.rule import link
from convert.theirs import filled, motion_token, pixels_of
from vqathinker_jax.grpo import LossConfig
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.optim import OptimizerConfig, trainable
from vqathinker_jax.rewards import Ratings
from vqathinker_jax.skeleton import arrays
from vqathinker_jax.step import Fixed, Rollout, StepConfig, gradients

LENGTHS = (8, 5)
ADVANTAGES = (1.0, -1.0)


def _completions(task: Task, vocabulary: int) -> np.ndarray:
    """Random tokens [G, C] without a slot for a visual one among them."""
    drawn = np.random.default_rng(0).integers(0, vocabulary - 1, (len(LENGTHS), max(LENGTHS)))
    return drawn + (drawn >= task.context)


def record_gradients(oracle: Oracle, task: Task, recording: Recording) -> None:
    """Keep PyTorch's gradients, under the names of its parameters."""
    import torch

    assert task.small is not None
    parameters = {name: p.requires_grad_() for name, p in oracle.whole.named_parameters() if not _is_motion(name)}
    parts = {
        name: read().requires_grad_() for name, read in oracle.weights.items() if name.startswith(motion.PROJECTOR)
    }
    pixels = pixels_of(task.small, task.dtype)
    tokens = oracle.see(pixels).flatten(0, 1)
    if oracle.has_motion:
        tokens = torch.cat([tokens, motion_token(oracle, pixels, parts, lambda stage, tensor: None)])
    prompt = filled(oracle, task.small, task.context, tokens)
    total = torch.zeros(())
    for completion, length, advantage in zip(
        _completions(task, oracle.words.weight.shape[0]), LENGTHS, ADVANTAGES, strict=True
    ):
        ids = torch.from_numpy(completion[:length])
        row = torch.cat([prompt, oracle.words(ids[:-1])[None]], dim=1)
        logits = oracle.language(inputs_embeds=row, use_cache=False, logits_to_keep=length).logits[0].float()
        chosen = logits.log_softmax(-1)[torch.arange(length), ids]
        total = total - (torch.exp(chosen - chosen.detach()) * advantage).mean()
    (total / len(LENGTHS)).backward()
    for name, weight in (*parameters.items(), *parts.items()):
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        recording.add(f"gradient {name}", gradient.float().numpy())
        weight.grad = None


def _is_motion(name: str) -> bool:
    """Remote code may have a motion branch of its own, which is run from its tensors here."""
    return name.startswith((motion.PROJECTOR, "slowfast_model."))


def our_gradients(model: VLM, task: Task, spelling: str) -> Iterator[tuple[str, np.ndarray]]:
    """Our gradients in the reference's spelling, from the head down, as they flow."""
    assert task.small is not None
    graph, moving, still = nnx.split(model, trainable(OptimizerConfig()), ...)
    blank = jnp.zeros((1, len(LENGTHS)))
    rollout = Rollout(
        frames_PFYXC=jnp.asarray(task.small.frames_FYXC)[None],
        ids_PS=jnp.asarray(task.small.ids_S)[None],
        mask_PS=jnp.ones((1, len(task.small.ids_S)), bool),
        completions_PGC=jnp.asarray(_completions(task, model.config.language.vocabulary), jnp.int32)[None],
        lengths_PG=jnp.array([LENGTHS]),
        stopped_PG=jnp.ones((1, len(LENGTHS)), bool),
        ratings=Ratings(blank, blank > 0, blank, blank > 0),
        mos_P=jnp.zeros(1),
    )
    config = StepConfig(loss=LossConfig(beta=0))

    @jax.jit
    def take(moving: nnx.State, fixed: Fixed) -> nnx.State:
        return gradients(graph, moving, fixed, rollout, jnp.array([ADVANTAGES]), config, task.context)[0]

    found = arrays(nnx.merge(graph, take(moving, Fixed(still, None)), still))
    shapes = {name: array.shape for name, array in arrays(model).items() if not name.startswith("motion.")}
    links = link(SPELLINGS[spelling].rules, shapes)
    for each in sorted(links, key=lambda each: (_depth(each.ours[0]), -(each.layer or 0))):
        parts = [
            np.asarray(found[path] if each.layer is None else found[path][each.layer], np.float32) for path in each.ours
        ]
        for name, array in zip(each.theirs, each.form.to_theirs(parts), strict=True):
            yield f"gradient {name}", array


def _depth(path: str) -> int:
    """How far from the loss an array of ours is."""
    order = ("language.head", "language.norm", "language.layers", "language.", "motion_projector", "projector")
    return next(
        (place for place, start in enumerate(order) if path.startswith(start)), len(order) + ("layers" not in path)
    )
