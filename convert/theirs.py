"""The PyTorch half of a cross-check: a task in, every stage of the oracle's run recorded.

Stages have the names that `stages.py` gives ours. What has a norm also runs on its own input made so quiet (mean square
1e-6) that the norm's epsilon decides: at full volume a wrong one hides below rounding.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from convert import motion
from convert.comparison import TOKENS
from convert.oracle import Oracle
from convert.oracle_motion import slowfast
from convert.recording import Given, Recording, Task

if TYPE_CHECKING:
    import torch

QUIET = 1e-3
"""Root mean square of the input of a layer that runs quietly."""

LAST = 32
"""Positions at the prompt's end whose logits are compared: those of all would not fit into memory."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def record(oracle: Oracle, task: Task, recording: Recording, tell: Callable[[str], object]) -> None:
    """Run the task through the oracle and keep every stage; `tell` hears of what has just been done."""
    import torch

    def keep(stage: str, tensor: "torch.Tensor") -> None:
        tell(stage)
        recording.add(stage, tensor.detach().to(torch.float32).numpy())

    hooks = _listen(oracle, keep)
    with torch.no_grad():
        pixels = pixels_of(task.given, task.dtype)
        tokens = oracle.see(pixels)
        if oracle.has_motion:
            parts = {name: oracle.weights[name]() for name in oracle.weights if name.startswith(motion.PROJECTOR)}
            tokens = torch.cat([tokens.flatten(0, 1), motion_token(oracle, pixels, parts, keep)])
        hidden = filled(oracle, task.given, task.context, tokens.reshape(-1, tokens.shape[-1]))
        keep("prompt embedding", hidden[0])
        logits = oracle.language(inputs_embeds=hidden, use_cache=False, logits_to_keep=LAST).logits
        keep("logits", logits[0])
    for hook in hooks:
        hook.remove()
    if task.tokens:
        recording.add(TOKENS, _greedy(oracle, task, hidden, tell))


def _listen(oracle: Oracle, keep: Callable[[str, Any], None]) -> list[Any]:
    """Hooks that keep what every part puts out, and each layer's answer to a quiet input."""

    def loud(stage: str, part: Any, reshape: Callable[[Any], Any]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            keep(stage, reshape(output[0] if isinstance(output, tuple) else output))

        return part.register_forward_hook(hook, prepend=True)

    def quiet(stage: str, part: Any, reshape: Callable[[Any], Any]) -> Any:
        def hook(module: Any, inputs: Any, options: Any, _output: Any) -> None:
            hidden, *others = inputs or (options.pop("hidden_states"),)
            again = module.forward(_quiet(hidden), *others, **options)
            keep(f"{stage}, quiet", reshape(again[0] if isinstance(again, tuple) else again))

        return part.register_forward_hook(hook, prepend=True, with_kwargs=True)

    def whole(tensor: Any) -> Any:
        return tensor

    def row(tensor: Any) -> Any:
        return tensor[0]

    parts = [(f"vision layer {number}", layer, whole) for number, layer in enumerate(oracle.vision_layers)]
    parts += [(f"decoder layer {number}", layer, row) for number, layer in enumerate(oracle.decoder_layers)]
    parts += [("projector", oracle.projector, whole), ("final norm", oracle.norm, row)]
    hooks = [loud("patch embedding", oracle.embedding, whole)]
    for part in parts:
        # Each goes before those that are there: the loud one is first, and last the one that drops the weights.
        hooks += [quiet(*part), loud(*part)]
    return hooks


def pixels_of(given: Given, dtype: str) -> "torch.Tensor":
    """Normalised frames [F, C, Y, X], as the reference's transform makes them."""
    import torch

    frames = torch.from_numpy(given.frames_FYXC).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((frames - mean) / std).to(getattr(torch, dtype))


def motion_token(
    oracle: Oracle, pixels: "torch.Tensor", parts: Mapping[str, Any], keep: Callable[[str, Any], None]
) -> "torch.Tensor":
    """The motion token [1, D] by `parts`, the tensors of `motion_mlp`; its stages are kept."""
    from torch.nn import functional

    *stages, features = slowfast(pixels, oracle.weights, oracle.motion_settings)
    for number, pathways in enumerate(stages):
        for pathway, tensor in zip(("slow", "fast"), pathways, strict=True):
            keep(f"motion stage {number} {pathway}", tensor[0].permute(1, 2, 3, 0))
    keep("motion features", features[0])

    def part(number: int) -> tuple[Any, Any]:
        return parts[f"{motion.PROJECTOR}{number}.weight"], parts[f"{motion.PROJECTOR}{number}.bias"]

    def projected(features: Any) -> Any:
        normed = functional.layer_norm(features, features.shape[-1:], *part(0), 1e-5)
        return functional.linear(functional.gelu(functional.linear(normed, *part(1))), *part(3))

    token = projected(features)
    keep("motion token", token[0])
    keep("motion token, quiet", projected(_quiet(features))[0])
    return token


def _quiet(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor * (QUIET / tensor.float().square().mean().sqrt()).to(tensor.dtype)


def filled(oracle: Oracle, given: Given, context: int, tokens: "torch.Tensor") -> "torch.Tensor":
    """The embedded prompt [1, S, D], visual tokens [L, D] in its slots in their order."""
    import torch

    ids = torch.from_numpy(given.ids_S.astype(np.int64))
    hidden = oracle.words(ids).clone()
    hidden[ids == context] = tokens.to(hidden.dtype)
    return hidden[None]


def name_of_cache(model: Any) -> str:
    """What this model calls its keys and values, when it takes them and when it gives them."""
    # Transformers says cache from 5.24 on, and warns of the former name.
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _greedy(oracle: Oracle, task: Task, hidden: "torch.Tensor", tell: Callable[[str], object]) -> np.ndarray:
    """The first tokens of the most probable answer, int32, up to the stop token."""
    import torch

    ids: list[int] = []
    name, cache = name_of_cache(oracle.language), None
    with torch.no_grad():
        while len(ids) < task.tokens and task.stop not in ids:
            out = oracle.language(inputs_embeds=hidden, use_cache=True, logits_to_keep=1, **{name: cache})
            cache = getattr(out, name)
            ids.append(int(out.logits[0, -1].argmax()))
            tell(f"greedy token {len(ids)} of {task.tokens}")
            hidden = oracle.words(torch.tensor([ids[-1:]]))
    return np.array(ids, np.int32)
