"""Scenes: every family fills the view, moves visibly and smoothly, and is graded as a good video is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vqathinker_jax.data.scenes import FAMILIES, LUMA, OVERTIME, draw_scene

SIZE, LENGTH = 64, 13
SEEDS = range(3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_shows_a_good_video(family: str):
    for seed in SEEDS:
        frames_FYXC = draw_scene(family, np.random.default_rng(seed), SIZE, LENGTH).show(np.arange(LENGTH)) / 255
        luma_FYX = frames_FYXC @ LUMA
        assert frames_FYXC.shape == (LENGTH, SIZE, SIZE, 3)
        assert 0.25 < luma_FYX.mean() < 0.75
        assert luma_FYX.std() > 0.06
        assert np.abs(frames_FYXC - luma_FYX[..., None]).mean() > 0.02
        # Edges that blur would take: somewhere neighbouring pixels differ by a tenth of the range.
        assert np.quantile(np.abs(np.diff(luma_FYX, axis=2)), 0.99) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbouring_frames_differ_but_less_than_distant_ones(family: str):
    """What shuffling would spoil."""
    near, far = [], []
    for seed in SEEDS:
        frames_FYXC = draw_scene(family, np.random.default_rng(seed), SIZE, LENGTH).show(np.arange(LENGTH)) / 255
        # Averaged over 4 x 4 pixels, as patches do.
        coarse_FYXC = frames_FYXC.reshape(LENGTH, SIZE // 4, 4, SIZE // 4, 4, 3).mean((2, 4))
        near.append(np.abs(coarse_FYXC[1:] - coarse_FYXC[:-1]).mean())
        far.append(np.abs(coarse_FYXC[6:] - coarse_FYXC[:-6]).mean())
    assert min(near) > 0.004
    assert np.mean(near) < 0.75 * np.mean(far)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_camera_never_leaves_the_surface(family: str):
    """Beyond it all is black."""
    for seed in range(12):
        scene = draw_scene(family, np.random.default_rng(seed), SIZE, LENGTH)
        bare = replace(scene, surface=Image.new("RGB", scene.surface.size, "white"), actors=())
        frames_FYXC = bare.show(np.array((0, LENGTH / 2, LENGTH, OVERTIME * LENGTH)))
        assert (frames_FYXC == 255).all()


def test_a_moment_between_frames_lies_between_them():
    scene = draw_scene("sky", np.random.default_rng(0), SIZE, LENGTH)
    first, between, second = scene.show(np.array((4, 4.5, 5))).astype(float)
    assert np.abs(first - between).mean() < np.abs(first - second).mean()
    assert np.abs(second - between).mean() < np.abs(first - second).mean()
