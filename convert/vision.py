"""The vision tower and its projector: their names in both formats, against ours.

Axes: E vision width, N heads, H head size, M MLP width, Y X patch or grid, C colours, D language width, `3` query, key
and value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convert.rule import Axes, Rule, Shape, Stack, Table, row


@dataclass(frozen=True)
class Positions:
    """[1, 1 + Y * X, E]: the class token's position, then the grid's, which are two arrays of ours."""

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
        return theirs[0][0, 0], theirs[0][0, 1:].reshape(shapes[1])

    def to_theirs(self, ours: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        first_E, grid_YXE = ours
        return (np.concatenate([first_E[None], grid_YXE.reshape(-1, first_E.size)])[None],)


_POSITIONS = ("vision.class_position", "vision.positions")
_OURS = "vision.layers.{}."


def chat() -> Table:
    """InternViT as OpenGVLab publishes it: query, key and value in one matrix."""
    theirs, layer = "vision_model.embeddings.", "vision_model.encoder.layers.{}."
    return Table(
        (
            row(theirs + "class_embedding", "11E -> E", "vision.class_token"),
            Rule((theirs + "position_embedding",), _POSITIONS, Positions()),
            row(theirs + "patch_embedding.weight", "ECYX -> YXCE", "vision.patches.kernel"),
            row(theirs + "patch_embedding.bias", "E -> E", "vision.patches.bias"),
            row(layer + "attn.qkv.weight", "(3NH)E -> E3NH", _OURS + "qkv.kernel"),
            row(layer + "attn.qkv.bias", "(3NH) -> 3NH", _OURS + "qkv.bias"),
            row(layer + "attn.q_norm.weight", "E -> E", _OURS + "q_norm.scale"),
            row(layer + "attn.k_norm.weight", "E -> E", _OURS + "k_norm.scale"),
            row(layer + "attn.proj.weight", "E(NH) -> NHE", _OURS + "proj.kernel"),
            row(layer + "attn.proj.bias", "E -> E", _OURS + "proj.bias"),
            row(layer + "norm1.weight", "E -> E", _OURS + "norm1.scale"),
            row(layer + "norm1.bias", "E -> E", _OURS + "norm1.bias"),
            row(layer + "norm2.weight", "E -> E", _OURS + "norm2.scale"),
            row(layer + "norm2.bias", "E -> E", _OURS + "norm2.bias"),
            row(layer + "ls1", "E -> E", _OURS + "scale1"),
            row(layer + "ls2", "E -> E", _OURS + "scale2"),
            *_mlp(layer),
            *_projector("mlp1.0.", "mlp1.1.", "mlp1.3."),
        )
    )


def transformers(root: str) -> Table:
    """InternViT as Transformers names it, under `root`: query, key and value apart."""
    theirs, layer = root + "vision_tower.embeddings.", root + "vision_tower.encoder.layer.{}."
    projector = root + "multi_modal_projector."
    apart = [f"{layer}attention.{part}_proj." for part in "qkv"]
    return Table(
        (
            row(theirs + "cls_token", "11E -> E", "vision.class_token"),
            Rule((theirs + "position_embeddings",), _POSITIONS, Positions()),
            row(theirs + "patch_embeddings.projection.weight", "ECYX -> YXCE", "vision.patches.kernel"),
            row(theirs + "patch_embeddings.projection.bias", "E -> E", "vision.patches.bias"),
            _qkv([name + "weight" for name in apart], Stack(Axes("(NH)E", "ENH"), axis=1), "qkv.kernel"),
            _qkv([name + "bias" for name in apart], Stack(Axes("(NH)", "NH"), axis=0), "qkv.bias"),
            row(layer + "attention.q_norm.weight", "E -> E", _OURS + "q_norm.scale"),
            row(layer + "attention.k_norm.weight", "E -> E", _OURS + "k_norm.scale"),
            row(layer + "attention.projection_layer.weight", "E(NH) -> NHE", _OURS + "proj.kernel"),
            row(layer + "attention.projection_layer.bias", "E -> E", _OURS + "proj.bias"),
            row(layer + "layernorm_before.weight", "E -> E", _OURS + "norm1.scale"),
            row(layer + "layernorm_before.bias", "E -> E", _OURS + "norm1.bias"),
            row(layer + "layernorm_after.weight", "E -> E", _OURS + "norm2.scale"),
            row(layer + "layernorm_after.bias", "E -> E", _OURS + "norm2.bias"),
            row(layer + "lambda_1", "E -> E", _OURS + "scale1"),
            row(layer + "lambda_2", "E -> E", _OURS + "scale2"),
            *_mlp(layer),
            *_projector(projector + "layer_norm.", projector + "linear_1.", projector + "linear_2."),
        )
    )


def _qkv(theirs: list[str], form: Stack, ours: str) -> Rule:
    return Rule(tuple(theirs), (_OURS + ours,), form)


def _mlp(layer: str) -> tuple[Rule, ...]:
    return (
        row(layer + "mlp.fc1.weight", "ME -> EM", _OURS + "up.kernel"),
        row(layer + "mlp.fc1.bias", "M -> M", _OURS + "up.bias"),
        row(layer + "mlp.fc2.weight", "EM -> ME", _OURS + "down.kernel"),
        row(layer + "mlp.fc2.bias", "E -> E", _OURS + "down.bias"),
    )


def _projector(norm: str, up: str, down: str) -> tuple[Rule, ...]:
    return (
        row(norm + "weight", "E -> E", "projector.norm.scale"),
        row(norm + "bias", "E -> E", "projector.norm.bias"),
        row(up + "weight", "DE -> ED", "projector.up.kernel"),
        row(up + "bias", "D -> D", "projector.up.bias"),
        row(down + "weight", "OI -> IO", "projector.down.kernel"),
        row(down + "bias", "O -> O", "projector.down.bias"),
    )
