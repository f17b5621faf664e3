"""Damages: each grows with its strength, costs rating, and stays in its own half of space and time."""

import numpy as np
import pytest

from vqathinker_jax.data import scenes
from vqathinker_jax.data.distortions import KINDS, Distortion, retimed, spoiled, true_mos

SIZE, FRAMES = 64, 13
TIMED = [name for name, kind in KINDS.items() if "time" in kind.aspects]
SEEN = [name for name in KINDS if name not in TIMED]
STRENGTHS = (0.1, 0.4, 0.7, 1.0)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    drawn = [scenes.draw_scene(name, np.random.default_rng(7), SIZE, FRAMES) for name in ("street", "shore", "sky")]
    return [scene.show(np.arange(FRAMES)) for scene in drawn]


@pytest.mark.parametrize("kind", SEEN)
def test_pictures_differ_more_the_stronger_the_damage(kind: str, clips: list[np.ndarray]):
    for frames_FYXC in clips:
        spoilt = [spoiled(frames_FYXC, [Distortion(kind, s)], np.random.default_rng(0)) for s in STRENGTHS]
        assert all(made.shape == frames_FYXC.shape and made.dtype == np.uint8 for made in spoilt)
        harm = [np.abs(made.astype(float) - frames_FYXC).mean() for made in spoilt]
        assert harm[0] > 0.5
        assert harm == sorted(harm)


@pytest.mark.parametrize("kind", TIMED)
def test_motion_is_less_even_the_stronger_the_damage(kind: str):
    times_F = np.arange(float(FRAMES))

    def unevenness(strength: float) -> float:
        draws = [retimed(times_F, [Distortion(kind, strength)], np.random.default_rng(seed)) for seed in range(50)]
        return float(np.mean([np.abs(np.diff(shown_F) - 1).mean() for shown_F in draws]))

    found = [unevenness(strength) for strength in STRENGTHS]
    assert found[0] > 0.05
    assert found == sorted(found)


@pytest.mark.parametrize("kind", TIMED)
def test_damages_in_time_touch_no_frame(kind: str, clips: list[np.ndarray]):
    damage = [Distortion(kind, 0.8)]
    assert spoiled(clips[0], damage, np.random.default_rng(0)) is clips[0]
    shown_F = retimed(np.arange(float(FRAMES)), damage, np.random.default_rng(0))
    assert len(shown_F) == FRAMES
    assert shown_F.min() >= 0
    assert shown_F.max() <= scenes.OVERTIME * FRAMES


@pytest.mark.parametrize("kind", SEEN)
def test_damages_of_pictures_leave_their_times(kind: str):
    times_F = np.arange(float(FRAMES))
    assert retimed(times_F, [Distortion(kind, 0.8)], np.random.default_rng(0)) is times_F


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_rating_falls_with_every_strength(kind: str):
    others = [Distortion("desaturation", 0.3)]
    ratings = [true_mos([*others, Distortion(kind, strength)]) for strength in (0, *STRENGTHS)]
    assert true_mos([]) == 5
    assert ratings[0] == true_mos(others)
    assert ratings == sorted(ratings, reverse=True)
    assert len(set(ratings)) == len(ratings)
    assert ratings[-1] > 1


def test_the_formula_is_the_documented_one():
    assert true_mos([Distortion("blur", 0.5), Distortion("shuffle", 1)]) == pytest.approx(1 + 4 * 0.55 * 0.3)


def test_descriptions_tell_degree_and_kind():
    assert Distortion("blur", 0.1).description == "slightly blurred"
    assert Distortion("shuffle", 0.5).description == "clearly out of order"
    assert Distortion("noise", 1.0).description == "severely noisy"
    assert len({kind.look for kind in KINDS.values()}) == len(KINDS)


def test_several_damages_do_not_hang_on_the_order_they_are_named_in(clips: list[np.ndarray]):
    damages = [Distortion("noise", 0.3), Distortion("blur", 0.3), Distortion("underexposure", 0.3)]
    one, other = (spoiled(clips[0], some, np.random.default_rng(0)) for some in (damages, damages[::-1]))
    assert (one == other).all()
