"""The weights of the reference cases, which are recomputed rather than stored: (seed, name, shape) → tensor."""

import math
import zlib

import numpy as np


def tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor called `name` of the case with this `weights_seed`: float32, and int64 zeros for batch counters."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    return _scaled(draw, name).astype(np.float32)


def _scaled(draw: np.ndarray, name: str) -> np.ndarray:
    """The normal `draw` at the size its role calls for; the first rule that fits the name decides."""
    if name.endswith("running_var"):
        return 0.5 + np.abs(draw)
    if name.endswith("running_mean"):
        return 0.1 * draw
    if name.endswith(("ls1", "ls2")):
        return 0.5 + 0.1 * draw
    if draw.ndim == 1:
        return 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw
    if "lm_head" in name:
        return 0.15 * draw
    if "embed" in name and "patch_embedding" not in name:
        return 0.5 * draw
    # Sharp attention, so that a wrong mask or rotation shows in the logits.
    gain = 3 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1
    return gain * draw / math.sqrt(math.prod(draw.shape[1:]))
