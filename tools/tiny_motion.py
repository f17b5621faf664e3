"""SlowFast's fast pathway made by hand: it measures how much a clip changes, over one frame, over two, and in speed.

It stands for what the pathway of a large model has learned elsewhere, and stays as it is. A random one does not tell a
damage in time from much motion: the convolutions run over the clip's ends, where they answer to the picture and not to
its change, and that drowns the rest.

    stem      three changes at two widths, the amount of detail, and a channel that is 1 everywhere
    stage 1   which frames have both neighbours, as the sum of that 1 over them; answers at other frames are shut off
    stage 2-3 means over ever larger parts of the picture
    stage 4   those, how much they rise and fall from frame to frame, and what of them exceeds some thresholds
"""

import jax.numpy as jnp
import numpy as np

from vqathinker_jax.model.motion import Bottleneck, ConvNorm, SlowFast

CHANGES = (
    (0, -1, 1, 0, 0),
    (0, -1, 0, 1, 0),
    (0, 1, -2, 1, 0),
)
"""In time: over one frame, over two, and of speed. Motion that goes on has much of the second and little of the third,
disorder has as much of all."""
WIDTHS = (1.0, 2.5)
"""In space: deviations in pixels. The wide ones hardly hear noise."""
SIGNALS = len(CHANGES) * len(WIDTHS)
"""The channels that hold changes; detail and then the inside of the clip follow."""
DETAIL, INSIDE = SIGNALS, SIGNALS + 1
CHANNELS = SIGNALS + 2
GAIN = 4 / 3
FAR = 100.0
"""More than any answer: what shuts a channel off."""
THRESHOLDS = (0.1, 0.2, 0.4, 0.8, 1.6)
QUIET = 0.1
"""By what the slow pathway, which stays random, is made to speak lower."""


def measure_change(motion: SlowFast) -> None:
    """Set the weights in place.

    Raises: ValueError where the fast pathway is too narrow, or deeper than a block a stage.
    """
    stages = [list(stage.fast) for stage in motion.stages]
    stem = motion.stem.fast
    if stem.kernel.shape[-1] < CHANNELS or any(len(blocks) != 1 for blocks in stages):
        raise ValueError(f"a fast pathway by hand needs {CHANNELS} channels and a block a stage")
    _set(stem, _stem(stem.kernel.shape[1]), _at(CHANNELS, {INSIDE: 1.0}))
    (first,), (second,), (third,), (last,) = stages
    _carry(first, *_shut_off_at_ends())
    _carry(second, _here(np.eye(CHANNELS)), np.zeros(CHANNELS))
    _carry(third, _here(np.eye(CHANNELS)), np.zeros(CHANNELS))
    _carry(last, *_rises_and_excesses())
    (slow,) = motion.stages[-1].slow
    for layer in (slow.c, slow.shortcut):
        layer.scale[...] *= QUIET


def _stem(side: int) -> np.ndarray:
    """Filters [5, side, side, 3, CHANNELS]; the last one is empty, for its bias alone speaks."""
    rows_YX, columns_YX = np.mgrid[:side, :side] - (side - 1) / 2

    def blob(width: float) -> np.ndarray:
        blob_YX = np.exp(-(rows_YX**2 + columns_YX**2) / (2 * width**2))
        return blob_YX / blob_YX.sum()

    kernel = np.zeros((5, side, side, 3, CHANNELS))
    pairs = [(change, width) for width in WIDTHS for change in CHANGES]
    for number, (change, width) in enumerate(pairs):
        kernel[..., number] = (np.array(change)[:, None, None] * blob(width))[..., None] * GAIN
    kernel[2, ..., DETAIL] = (blob(WIDTHS[0]) - blob(WIDTHS[1]))[..., None] * GAIN
    return kernel


def _shut_off_at_ends() -> tuple[np.ndarray, np.ndarray]:
    kernel = _here(np.eye(CHANNELS))
    kernel[(0, 2), 0, 0, INSIDE, :SIGNALS] = FAR
    kernel[:, 0, 0, INSIDE, INSIDE] = 1, 0, 1
    return kernel, _at(CHANNELS, dict.fromkeys(range(SIGNALS), -2 * FAR) | {INSIDE: -1.0})


def _rises_and_excesses() -> tuple[np.ndarray, np.ndarray]:
    columns = [(_tap(number, now=1), 0.0) for number in range(INSIDE)]
    for number in range(SIGNALS):
        for sign in (1, -1):
            both_inside = _tap(INSIDE, now=FAR, before=FAR)
            columns.append((_tap(number, now=sign, before=-sign) + both_inside, -2 * FAR))
    columns += [(_tap(number, now=1), -threshold) for threshold in THRESHOLDS for number in range(INSIDE)]
    kernels, biases = zip(*columns, strict=True)
    return np.stack(kernels, axis=-1), np.array(biases)


def _tap(channel: int, now: float, before: float = 0.0) -> np.ndarray:
    kernel = np.zeros((3, 1, 1, CHANNELS))
    kernel[:2, 0, 0, channel] = before, now
    return kernel


def _here(matrix: np.ndarray) -> np.ndarray:
    """A kernel of three frames that looks at the middle one only."""
    kernel = np.zeros((3, 1, 1, *matrix.shape))
    kernel[1, 0, 0] = matrix
    return kernel


def _at(length: int, values: dict[int, float]) -> np.ndarray:
    return np.array([values.get(number, 0.0) for number in range(length)])


def _carry(block: Bottleneck, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Make a block answer by `kernel` and `bias` and take means over its neighbourhood; nothing goes around it."""
    outs = kernel.shape[-1]
    _set(block.a, kernel, bias)
    _set(block.b, np.full((1, 3, 3, 1, 1), 1 / 9) * np.eye(outs))
    _set(block.c, np.eye(outs)[None, None, None])
    if block.shortcut:
        _set(block.shortcut, np.zeros((1, 1, 1, 1, 1)))


def _set(layer: ConvNorm, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    """Give a layer's first channels a kernel and a bias, and the others nothing."""
    whole, biases = np.zeros(layer.kernel.shape, np.float32), np.zeros(layer.bias.shape, np.float32)
    whole[:, :, :, : kernel.shape[3], : kernel.shape[4]] = kernel
    biases[: kernel.shape[4]] = 0 if bias is None else bias
    layer.kernel[...], layer.bias[...] = jnp.asarray(whole), jnp.asarray(biases)
