"""SlowFast-R50 8x8, frozen: normalised frames in, one vector of motion features a video out.

Deviation from the reference: batch statistics stay at their pre-trained values in training too, as the paper says
(the released code leaves BatchNorm in training mode). A 3-D convolution is computed as a 2-D one: what
each frame gives to its neighbours stands side by side as channels, and is shifted and added up. XLA has no fast 3-D
convolution on a CPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.config import MotionConfig
from vqathinker_jax.model.layers import Frozen, param
from vqathinker_jax.records import InputError

_he = jax.nn.initializers.he_normal()
_zeros = jax.nn.initializers.zeros
_ones = jax.nn.initializers.ones

SLOW_STRIDE = 4
"""Frames of the fast pathway to one of the slow: the stride of the lateral connections."""


class SlowFast(nnx.Module):
    """[P, F, Y, X, 3] normalised frames to [P, Z] features (slow channels first, then fast)."""

    def __init__(self, config: MotionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        self.stages = nnx.List([Stage(config, number, rngs=rngs) for number in range(len(config.depths))])

    def __call__(self, frames_PFYXC: jax.Array, out: dict[str, Any] | None = None) -> jax.Array:
        F = frames_PFYXC.shape[1]
        slow_frames, repeats = schedule(F)
        slow_PFYXC, fast_PFYXC = self.stem(frames_PFYXC[:, slow_frames], frames_PFYXC)
        stages = [(slow_PFYXC, fast_PFYXC)]
        for stage in self.stages:
            slow_PFYXC, fast_PFYXC = stage(slow_PFYXC, fast_PFYXC)
            stages.append((slow_PFYXC, fast_PFYXC))
        if out is not None:
            out["motion.stages"] = tuple(stages)
        slow_PC = pool_mean(slow_PFYXC, repeats, self.config.slow_pool)
        fast_PC = pool_mean(fast_PFYXC, repeats, self.config.fast_pool)
        return jnp.concatenate([slow_PC, fast_PC], axis=-1)


class Stem(nnx.Module):
    """Convolution and max pooling of both pathways, then the first lateral connection."""

    def __init__(self, config: MotionConfig, *, rngs: nnx.Rngs):
        slow, fast = config.stem, config.stem // config.beta
        self.slow = ConvNorm((1, 7, 7), 3, slow, config, spatial_stride=2, rngs=rngs)
        self.fast = ConvNorm((5, 7, 7), 3, fast, config, spatial_stride=2, rngs=rngs)
        self.fusion = lateral(fast, config, rngs)

    def __call__(self, slow_PFYXC: jax.Array, fast_PFYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
        slow_PFYXC = max_pool(jax.nn.relu(self.slow(slow_PFYXC)))
        fast_PFYXC = max_pool(jax.nn.relu(self.fast(fast_PFYXC)))
        return fuse(self.fusion, slow_PFYXC, fast_PFYXC), fast_PFYXC


class Stage(nnx.Module):
    """One residual stage of both pathways; all but the last end in a lateral connection."""

    def __init__(self, config: MotionConfig, number: int, *, rngs: nnx.Rngs):
        inner = config.stem * 2**number
        outer = inner * config.expansion
        previous = config.stem if number == 0 else outer // 2
        stride = 1 if number == 0 else 2
        fast_previous = previous // config.beta
        slow_ins = [previous + config.fusion * fast_previous] + [outer] * (config.depths[number] - 1)
        fast_ins = [fast_previous] + [outer // config.beta] * (config.depths[number] - 1)
        slow_kernel = 1 if number < 2 else 3

        def pathway(ins: list[int], inner: int, outer: int, kernel: int) -> nnx.List:
            strides = [stride] + [1] * (len(ins) - 1)
            return nnx.List(
                [Bottleneck(i, inner, outer, kernel, s, config, rngs=rngs) for i, s in zip(ins, strides, strict=True)]
            )

        self.slow = pathway(slow_ins, inner, outer, slow_kernel)
        self.fast = pathway(fast_ins, inner // config.beta, outer // config.beta, 3)
        last = number == len(config.depths) - 1
        self.fusion = None if last else lateral(outer // config.beta, config, rngs)

    def __call__(self, slow_PFYXC: jax.Array, fast_PFYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
        for block in self.slow:
            slow_PFYXC = block(slow_PFYXC)
        for block in self.fast:
            fast_PFYXC = block(fast_PFYXC)
        return (fuse(self.fusion, slow_PFYXC, fast_PFYXC) if self.fusion else slow_PFYXC), fast_PFYXC


class Bottleneck(nnx.Module):
    """Temporal 1x1, spatial 3x3 and 1x1 convolutions around a shortcut, which is projected where shapes change."""

    def __init__(
        self, ins: int, inner: int, outer: int, kernel: int, stride: int, config: MotionConfig, *, rngs: nnx.Rngs
    ):
        self.a = ConvNorm((kernel, 1, 1), ins, inner, config, rngs=rngs)
        self.b = ConvNorm((1, 3, 3), inner, inner, config, spatial_stride=stride, rngs=rngs)
        self.c = ConvNorm((1, 1, 1), inner, outer, config, rngs=rngs)
        projected = ins != outer or stride != 1
        self.shortcut = ConvNorm((1, 1, 1), ins, outer, config, spatial_stride=stride, rngs=rngs) if projected else None

    def __call__(self, x_PFYXC: jax.Array) -> jax.Array:
        branch_PFYXC = self.c(jax.nn.relu(self.b(jax.nn.relu(self.a(x_PFYXC)))))
        return jax.nn.relu(branch_PFYXC + (self.shortcut(x_PFYXC) if self.shortcut else x_PFYXC))


class ConvNorm(nnx.Module):
    """3-D convolution (time, y, x) without bias, padded to keep its size, then BatchNorm with fixed statistics."""

    def __init__(
        self,
        kernel: tuple[int, int, int],
        ins: int,
        outs: int,
        config: MotionConfig,
        *,
        time_stride: int = 1,
        spatial_stride: int = 1,
        rngs: nnx.Rngs,
    ):
        self.strides = (time_stride, spatial_stride)
        self.epsilon = config.epsilon
        self.kernel = param(Frozen, _he, (*kernel, ins, outs), (None,) * 5, rngs)
        self.scale = param(Frozen, _ones, (outs,), (None,), rngs)
        self.bias = param(Frozen, _zeros, (outs,), (None,), rngs)
        self.mean = param(Frozen, _zeros, (outs,), (None,), rngs)
        self.variance = param(Frozen, _ones, (outs,), (None,), rngs)

    def __call__(self, x_PFYXC: jax.Array) -> jax.Array:
        y_PFYXC = convolve(x_PFYXC, self.kernel[...].astype(x_PFYXC.dtype), *self.strides)
        gain, shift, mean, variance = (x[...].astype(jnp.float32) for x in self._statistics())
        scale = gain * jax.lax.rsqrt(variance + self.epsilon)
        return (y_PFYXC * scale + (shift - mean * scale)).astype(x_PFYXC.dtype)

    def _statistics(self) -> tuple[Frozen, Frozen, Frozen, Frozen]:
        return self.scale, self.bias, self.mean, self.variance


def lateral(fast: int, config: MotionConfig, rngs: nnx.Rngs) -> ConvNorm:
    """The convolution that brings the fast pathway to the slow one's frame rate."""
    return ConvNorm((7, 1, 1), fast, config.fusion * fast, config, time_stride=SLOW_STRIDE, rngs=rngs)


def fuse(fusion: ConvNorm, slow_PFYXC: jax.Array, fast_PFYXC: jax.Array) -> jax.Array:
    """The slow pathway with the fast one's lateral connection beside it as further channels."""
    return jnp.concatenate([slow_PFYXC, jax.nn.relu(fusion(fast_PFYXC))], axis=-1)


def convolve(x_PFYXC: jax.Array, kernel_tyxio: jax.Array, time_stride: int, spatial_stride: int) -> jax.Array:
    """A 3-D convolution, zero-padded by half its kernel on every side, as one 2-D convolution or matrix product.

    What each frame gives to its neighbours stands side by side as outputs, and is added up where it belongs: those are
    fewer numbers than the frames that a kernel spans, as most layers narrow or shrink what they take. Where frames are
    skipped, much of it would be made for nothing, and the frames under the kernel stand side by side as inputs.
    """
    t, y, x, ins, outs = kernel_tyxio.shape
    half = t // 2
    if time_stride == 1:
        kernel_yxiO = kernel_tyxio.transpose(1, 2, 3, 0, 4).reshape(y, x, ins, t * outs)
        taps = jnp.split(_convolve_frames(x_PFYXC, kernel_yxiO, spatial_stride), t, axis=-1)
        out_PFYXC = taps[half]
        for away in range(1, half + 1):
            out_PFYXC = out_PFYXC.at[:, away:].add(taps[half - away][:, :-away])
            out_PFYXC = out_PFYXC.at[:, :-away].add(taps[half + away][:, away:])
        return out_PFYXC
    padded = jnp.pad(x_PFYXC, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
    windows = padded.shape[1] - t + 1
    under_PFYXI = jnp.concatenate([padded[:, i : i + windows : time_stride] for i in range(t)], axis=-1)
    kernel_yxIo = kernel_tyxio.transpose(1, 2, 0, 3, 4).reshape(y, x, t * ins, outs)
    return _convolve_frames(under_PFYXI, kernel_yxIo, spatial_stride)


def _convolve_frames(x_PFYXC: jax.Array, kernel_yxio: jax.Array, stride: int) -> jax.Array:
    """A 2-D convolution of each frame by itself, zero-padded by half its kernel."""
    y, x = kernel_yxio.shape[:2]
    if (y, x) == (1, 1):
        return x_PFYXC[:, :, ::stride, ::stride] @ kernel_yxio[0, 0]
    P, F = x_PFYXC.shape[:2]
    out = jax.lax.conv_general_dilated(
        x_PFYXC.reshape(P * F, *x_PFYXC.shape[2:]),
        kernel_yxio,
        (stride, stride),
        [(y // 2, y // 2), (x // 2, x // 2)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(P, F, *out.shape[1:])


def max_pool(x_PFYXC: jax.Array) -> jax.Array:
    """3x3 spatial max pooling with stride 2."""
    padding = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x_PFYXC, -jnp.inf, jax.lax.max, (1, 1, 3, 3, 1), (1, 1, 2, 2, 1), padding)


def schedule(frames: int) -> tuple[np.ndarray, int]:
    """Which frames the slow pathway sees, and how often both pathways' outputs are repeated in time before pooling.

    The reference fixes (slow frames, repeats) at (3, 4) for 12 frames and (2, 6) for 6. This is the rule behind both:
    as many slow frames as the lateral connections yield, repeated to 12 slow steps and at least the 32 fast steps that
    the pooling kernel spans.
    """
    slow = -(-frames // SLOW_STRIDE)
    repeats = max(-(-12 // slow), -(-32 // frames))
    return spread(frames - 1, slow), repeats


def spread(last: int, count: int) -> np.ndarray:
    """`count` whole numbers evenly spread from 0 to `last`, rounded down as torch's `linspace(0, last, count).long()`.

    Torch's float32 steps, taken from the nearer end, decide where rounding falls: exact arithmetic differs from 115
    frames on.
    """
    places, end = np.arange(count), np.float32(last)
    step = end / np.float32(max(count - 1, 1))
    backwards = end - step * (count - 1 - places).astype(np.float32)
    return np.where(places < max(count // 2, 1), step * places.astype(np.float32), backwards).astype(int)


def pool_mean(x_PFYXC: jax.Array, repeats: int, kernel: tuple[int, int, int]) -> jax.Array:
    """Repeat each step along time, average-pool with stride 1, then average to one value a channel: [P, C].

    Averages of averages are one weighted mean: a position counts as often as windows cover it, axis by axis, so neither
    the repeats nor the pooled array are ever built.
    """
    F, Y, X = x_PFYXC.shape[1:4]
    time = coverage(F * repeats, kernel[0], "frames").reshape(F, repeats).sum(1)
    rows, columns = coverage(Y, kernel[1], "rows"), coverage(X, kernel[2], "columns")
    return jnp.einsum("pfyxc,f,y,x->pc", x_PFYXC, time, rows, columns, preferred_element_type=jnp.float32).astype(
        x_PFYXC.dtype
    )


def coverage(length: int, kernel: int, axis: str) -> np.ndarray:
    """Each position's weight in the mean over all windows of `kernel` positions; the weights sum to 1.

    Raises: InputError where the feature map is smaller than one window.
    """
    windows = length - kernel + 1
    if windows < 1:
        raise InputError(f"motion features have {length} {axis}, fewer than the pooling's {kernel}; use larger frames")
    covered = np.convolve(np.ones(windows), np.ones(kernel))
    return (covered / (windows * kernel)).astype(np.float32)
