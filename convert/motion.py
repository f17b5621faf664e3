"""The motion branch: SlowFast under pytorchvideo's names, and its projector, against ours.

Axes: O I channels out and in, T Y X the kernel in time and space, Z motion features, D language width.
"""

from collections.abc import Iterable

import numpy as np

from convert.rule import Ignored, Rule, Table, row
from convert.tensors import Tensor

PROJECTOR = "motion_mlp."
ROOTS = ("slowfast_model.feature_extraction.", "blocks.")
"""Where SlowFast's blocks stand: in the reference's checkpoint, and in torch hub's SLOWFAST_8x8_R50.pyth."""

_STAGES = 4


def projector() -> Table:
    """The motion token's projector, as the reference names it."""
    return Table(
        (
            row(PROJECTOR + "0.weight", "Z -> Z", "motion_projector.norm.scale"),
            row(PROJECTOR + "0.bias", "Z -> Z", "motion_projector.norm.bias"),
            row(PROJECTOR + "1.weight", "DZ -> ZD", "motion_projector.up.kernel"),
            row(PROJECTOR + "1.bias", "D -> D", "motion_projector.up.bias"),
            row(PROJECTOR + "3.weight", "OI -> IO", "motion_projector.down.kernel"),
            row(PROJECTOR + "3.bias", "O -> O", "motion_projector.down.bias"),
        )
    )


def fresh(features: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """The projector's tensors, by the reference's names, before any training: weights uniform in [0, 0.01), biases 0.

    Source: the reference's fresh start of `motion_mlp`, from a model without a motion branch.
    """
    rng = np.random.default_rng(seed)
    values = {
        "0.weight": np.ones(features),
        "0.bias": np.zeros(features),
        "1.weight": rng.uniform(0, 0.01, (width, features)),
        "1.bias": np.zeros(width),
        "3.weight": rng.uniform(0, 0.01, (width, width)),
        "3.bias": np.zeros(width),
    }
    return {PROJECTOR + name: _held(value.astype(np.float32)) for name, value in values.items()}


def _held(value: np.ndarray) -> Tensor:
    return Tensor(value.shape, "F32", lambda: value)


def slowfast(root: str) -> Table:
    """SlowFast whose blocks 0 (the stem) to 4 (the last stage) stand under `root`."""
    rules = [*_fusion(root, 0, "motion.stem.")]
    for number, pathway in enumerate(("slow", "fast")):
        stem = f"{root}0.multipathway_blocks.{number}."
        rules += _conv_norm(stem + "conv", stem + "norm", f"motion.stem.{pathway}")
    for stage in range(_STAGES):
        ours = f"motion.stages.{stage}."
        rules += _fusion(root, stage + 1, ours)
        for number, pathway in enumerate(("slow", "fast")):
            block = f"{root}{stage + 1}.multipathway_blocks.{number}.res_blocks.{{}}."
            rules += _bottleneck(block, f"{ours}{pathway}.{{}}.")
    return Table(
        tuple(rules),
        (
            Ignored(r".*\.num_batches_tracked", "counts batches of a training long past"),
            Ignored(r"blocks\.[56]\..*", "SlowFast's own pooling and classifier", carried=False),
        ),
    )


def counters(names: Iterable[str]) -> list[str]:
    """The counters of batches that PyTorch keeps beside the statistics among these names of the checkpoint's."""
    statistics = [name for name in names if name.startswith(ROOTS[0]) and name.endswith(".running_var")]
    return [name.removesuffix("running_var") + "num_batches_tracked" for name in statistics]


def _fusion(root: str, block: int, ours: str) -> list[Rule]:
    theirs = f"{root}{block}.multipathway_fusion."
    return _conv_norm(theirs + "conv_fast_to_slow", theirs + "norm", ours + "fusion")


def _bottleneck(theirs: str, ours: str) -> list[Rule]:
    rules = _conv_norm(theirs + "branch1_conv", theirs + "branch1_norm", ours + "shortcut")
    for part in "abc":
        rules += _conv_norm(f"{theirs}branch2.conv_{part}", f"{theirs}branch2.norm_{part}", ours + part)
    return rules


def _conv_norm(conv: str, norm: str, ours: str) -> list[Rule]:
    return [
        row(conv + ".weight", "OITYX -> TYXIO", ours + ".kernel"),
        row(norm + ".weight", "O -> O", ours + ".scale"),
        row(norm + ".bias", "O -> O", ours + ".bias"),
        row(norm + ".running_mean", "O -> O", ours + ".mean"),
        row(norm + ".running_var", "O -> O", ours + ".variance"),
    ]
