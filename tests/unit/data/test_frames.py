"""Sampling, resizing and perturbing of frames."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vqathinker_jax.data import frames as perturbations
from vqathinker_jax.data.frames import PERTURBATIONS, Perturbation, perturb, resize, sample_indices


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
        assert np.array_equal(resized_YXC, np.asarray(expected))


def test_resize_takes_one_picture_seen_many_times():
    frame_YXC = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    resized_FYXC = resize(np.broadcast_to(frame_YXC, (4, 20, 10, 3)), 28)
    assert (resized_FYXC == resize(frame_YXC[None], 28)).all()
    assert resized_FYXC.flags.writeable


def draws(kind: str, frames: int, times: int = 300) -> list[Perturbation]:
    rng = np.random.default_rng(frames)
    return [getattr(perturbations, kind)(frames, rng) for _ in range(times)]


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("kind", [kind.__name__ for kind in PERTURBATIONS])
def test_a_perturbed_video_has_as_many_frames_all_its_own(kind: str, frames: int):
    for order_F, blank_F in draws(kind, frames, 50):
        assert (order_F.dtype, order_F.shape) == (np.int32, (frames,))
        assert (blank_F.dtype, blank_F.shape) == (np.bool_, (frames,))
        assert 0 <= order_F.min() <= order_F.max() < frames
        assert kind == "drop" or not blank_F.any()


def test_shuffle_reaches_every_order():
    assert len({tuple(order_F) for order_F, _ in draws("shuffle", 4)}) == 24


def test_windows_are_shuffled_within_themselves():
    drawn = draws("shuffle_windows", 6, 1000)
    for order_F, _ in drawn:
        assert sorted(order_F[:4]) == [0, 1, 2, 3]
        assert sorted(order_F[4:]) == [4, 5]
    assert len({tuple(order_F) for order_F, _ in drawn}) == 24 * 2


def test_reverse_is_the_last_frame_first():
    assert draws("reverse", 6, 1)[0].order_F.tolist() == [5, 4, 3, 2, 1, 0]


def test_jitter_takes_neighbours_and_stays_in_the_video():
    steps = np.stack([order_F - np.arange(6) for order_F, _ in draws("jitter", 6)])
    assert [sorted(set(steps_N.tolist())) for steps_N in steps.T] == [[0, 1], *[[-1, 0, 1]] * 4, [-1, 0]]


def test_duplicate_puts_one_frame_in_and_keeps_the_rest_in_order():
    inserted, places = Counter(), set()
    drawn = draws("duplicate", 6, 1000)
    assert any(order_F[0] == order_F[1] > order_F[2] == 0 for order_F, _ in drawn), "none before the first frame"
    assert any(order_F[-1] == order_F[-2] < order_F[-3] == 5 for order_F, _ in drawn), "none after the last frame"
    for order_F, _ in drawn:
        # Without some run of 1 to 3 equal frames, the others stand in the video's order, none of them twice.
        runs = [(at, times) for at in range(6) for times in (1, 2, 3) if len(set(order_F[at : at + times])) == 1]
        rests = [(at, times, np.delete(order_F, range(at, at + times))) for at, times in runs if at + times <= 6]
        fits = [(at, times) for at, times, rest in rests if (np.diff(rest) > 0).all()]
        assert fits
        inserted[max(times for _, times in fits)] += 1
        places |= {at for at, times in fits if times == 3}
    assert set(inserted) == {1, 2, 3}
    assert min(inserted.values()) > 200
    assert places == {0, 1, 2, 3}


def test_drop_blanks_one_to_three_places_and_moves_nothing():
    drawn = draws("drop", 6)
    assert all(order_F.tolist() == list(range(6)) for order_F, _ in drawn)
    assert {int(blank_F.sum()) for _, blank_F in drawn} == {1, 2, 3}
    assert np.any([blank_F for _, blank_F in drawn], axis=0).all()


def test_each_perturbation_is_as_likely_as_the_others(monkeypatch: pytest.MonkeyPatch):
    counted = Counter()

    def counting(name: str):
        return lambda frames, rng: counted.update([name])

    monkeypatch.setattr(perturbations, "PERTURBATIONS", [counting(kind.__name__) for kind in PERTURBATIONS])
    rng = np.random.default_rng(0)
    for _ in range(6000):
        perturb(6, rng)
    assert len(counted) == 6
    assert all(850 < times < 1150 for times in counted.values())  # five deviations of a fair draw


def test_the_same_seed_perturbs_the_same_way():
    def drawn(seed: int) -> list:
        rng = np.random.default_rng(seed)
        return [[part.tolist() for part in perturb(12, rng)] for _ in range(30)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
