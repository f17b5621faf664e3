"""Frames against what the reference's own code read, resized and normalised, for every clip of the scoring case.

Tolerance of normalised pixels: 1e-6, a few roundings of float32 values below 3. Before that, as uint8, they are equal.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vqathinker_jax.data.frames import resize, sample_indices
from vqathinker_jax.data.video import read_clip

MEAN_C = np.array([0.485, 0.456, 0.406], np.float32)
STD_C = np.array([0.229, 0.224, 0.225], np.float32)

DECODERS = [
    "pyav",
    pytest.param("decord", marks=pytest.mark.skipif(not find_spec("decord"), reason="decord has no wheel here")),
]


@pytest.fixture(scope="module")
def expected(scoring_case: Path) -> dict:
    return json.loads((scoring_case / "expected.json").read_text())


def test_indices_are_the_references(expected: dict):
    assert expected["frame_indices"]
    for case in expected["frame_indices"]:
        assert list(sample_indices(case["last_frame"], case["segments"])) == case["indices"], case


@pytest.mark.parametrize("decoder", DECODERS)
def test_pixels_are_the_references(scoring_case: Path, expected: dict, decoder: str):
    assert expected["videos"]
    for name, video in expected["videos"].items():
        clip = read_clip(scoring_case / name, expected["frames"], decoder)
        pixels_FYXC = resize(clip.frames_FYXC, expected["image_size"])
        picks = video["pixel_values"]
        pixels_FCYX = pixels_FYXC.transpose(0, 3, 1, 2)
        assert list(pixels_FCYX.shape) == picks["shape"], name

        places = np.array(picks["index"])
        channels = np.unravel_index(places, picks["shape"])[1]
        recorded = np.array(picks["value"])
        levels = (recorded * STD_C[channels] + MEAN_C[channels]) * 255
        assert np.abs(levels - np.rint(levels)).max() < 1e-3, "the record is no normalised uint8"
        assert np.array_equal(pixels_FCYX.reshape(-1)[places], np.rint(levels)), name

        normal_FYXC = (pixels_FYXC.astype(np.float32) / 255 - MEAN_C) / STD_C
        normal_FCYX = normal_FYXC.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(normal_FCYX.reshape(-1)[places], recorded, rtol=0, atol=1e-6)
        # Over all pixels, in float64; the record's own means were summed in float32.
        assert normal_FCYX.mean(dtype=np.float64) == pytest.approx(picks["mean"], abs=1e-4)
        assert normal_FCYX.std(dtype=np.float64) == pytest.approx(picks["std"], abs=1e-4)
