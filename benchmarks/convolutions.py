"""SlowFast-R50 on this machine's CPU, by three ways to compute a 3-D convolution, taking turns.

    python benchmarks/convolutions.py --frames 12 --size 448 --repeats 5

outputs     as the model does: a set of 2-D outputs for each tap in time, shifted and added up
inputs      the frames under a temporal kernel side by side as channels of one 2-D convolution
xla         one 3-D convolution, as XLA has it
"""

import argparse
import os
import statistics
import time
from unittest.mock import patch

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model import motion
from vqathinker_jax.model.config import MotionConfig


def taps_as_inputs(x_PFYXC: jax.Array, kernel_tyxio: jax.Array, time_stride: int, spatial_stride: int) -> jax.Array:
    """`motion.convolve` with the frames that each output sees side by side."""
    t, y, x, ins, outs = kernel_tyxio.shape
    padded = jnp.pad(x_PFYXC, ((0, 0), (t // 2, t // 2), (0, 0), (0, 0), (0, 0)))
    windows = padded.shape[1] - t + 1
    under_PFYXI = jnp.concatenate([padded[:, i : i + windows : time_stride] for i in range(t)], axis=-1)
    kernel_1yxIo = kernel_tyxio.transpose(1, 2, 0, 3, 4).reshape(1, y, x, t * ins, outs)
    return CONVOLVE(under_PFYXI, kernel_1yxIo, 1, spatial_stride)


def in_xla(x_PFYXC: jax.Array, kernel_tyxio: jax.Array, time_stride: int, spatial_stride: int) -> jax.Array:
    """`motion.convolve` as one operation."""
    strides, sides = (time_stride, spatial_stride, spatial_stride), kernel_tyxio.shape[:3]
    padding, axes = [(side // 2, side // 2) for side in sides], ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x_PFYXC, kernel_tyxio, strides, padding, dimension_numbers=axes)


CONVOLVE = motion.convolve
WAYS = {"outputs": CONVOLVE, "inputs": taps_as_inputs, "xla": in_xla}


def main() -> None:
    """Compile each way, hold its features against the model's, and time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 12), ("size", 448), ("videos", 1), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    graph, state = nnx.split(motion.SlowFast(MotionConfig(), rngs=nnx.Rngs(0)))
    frames_PFYXC = jax.random.normal(jax.random.key(0), (asked.videos, asked.frames, asked.size, asked.size, 3))
    programs, expected = {}, None
    for name, convolve in WAYS.items():
        with patch.object(motion, "convolve", convolve):
            look = jax.jit(lambda state, frames_PFYXC: nnx.merge(graph, state)(frames_PFYXC))
            programs[name] = look.lower(state, frames_PFYXC).compile()
        found = programs[name](state, frames_PFYXC)
        expected = found if expected is None else expected
        assert jnp.allclose(found, expected, rtol=1e-3, atol=1e-4), name
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(asked.repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program(state, frames_PFYXC))
            seconds[name].append(time.perf_counter() - started)
    for name, each in seconds.items():
        print(f"{name:10} {statistics.median(each):7.3f} s ({min(each):.3f}-{max(each):.3f})")


if __name__ == "__main__":
    main()
