"""Sampling and resizing of frames."""

import numpy as np
import pytest
from PIL import Image

from vqathinker_jax.data.frames import resize, sample_indices


def test_a_half_rounds_to_the_even_neighbour():
    # seg = 0.5, so every second seg·i is a half: 0.5 → 0, 1.5 → 2, 2.5 → 2, 3.5 → 4 …
    assert sample_indices(6, 12) == (0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6)


@pytest.mark.parametrize("frames", [1, 2, 6, 12, 33])
def test_indices_are_frames_of_the_video_in_order(frames: int):
    for last_frame in range(200):
        indices = sample_indices(last_frame, frames)
        assert len(indices) == frames
        assert list(indices) == sorted(indices)
        assert 0 <= indices[0] <= indices[-1] <= last_frame


def test_indices_lie_in_the_middle_of_their_stretches():
    assert sample_indices(1200, 12) == tuple(range(50, 1200, 100))


@pytest.mark.parametrize(("last_frame", "frames"), [(-1, 12), (10, 0)])
def test_nothing_to_sample_is_an_error(last_frame: int, frames: int):
    with pytest.raises(ValueError, match="must be at least 1"):
        sample_indices(last_frame, frames)


@pytest.mark.parametrize("shape", [(40, 30), (7, 200), (56, 56)])
def test_resize_is_pillows_bicubic_straight_to_a_square(shape: tuple[int, int]):
    frames_FYXC = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), np.uint8)
    resized_FYXC = resize(frames_FYXC, 56)
    assert resized_FYXC.shape == (3, 56, 56, 3)
    assert resized_FYXC.dtype == np.uint8
    for frame_YXC, resized_YXC in zip(frames_FYXC, resized_FYXC, strict=True):
        expected = Image.fromarray(frame_YXC).resize((56, 56), Image.Resampling.BICUBIC)
        assert np.array_equal(resized_YXC, expected)


def test_resize_takes_one_picture_seen_many_times():
    frame_YXC = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    resized_FYXC = resize(np.broadcast_to(frame_YXC, (4, 20, 10, 3)), 28)
    assert (resized_FYXC == resize(frame_YXC[None], 28)).all()
    assert resized_FYXC.flags.writeable
