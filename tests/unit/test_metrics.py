"""Figures: scipy's on the same rows, planted curves found again, and what is undefined said so."""

import numpy as np
import pytest
from scipy import stats

from vqathinker_jax import metrics
from vqathinker_jax.metrics import Logistic, agreement, fit_logistic, weighted_mean


def rated(videos: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ratings with two decimals (so with ties) and labels on a scale of 0 to 100."""
    rng = np.random.default_rng(seed)
    label_B = rng.uniform(0, 100, videos)
    return np.round(np.clip(1 + label_B / 25 + noise * rng.standard_normal(videos), 1, 5), 2), label_B


@pytest.mark.parametrize("videos", [3, 7, 400])
def test_figures_equal_scipys(videos: int):
    rating_B, label_B = rated(videos)
    found = agreement(rating_B, label_B, resamples=20)
    # float64; the same sums in another order
    assert found.srcc.value == pytest.approx(stats.spearmanr(rating_B, label_B).statistic, abs=1e-12)
    assert found.krcc.value == pytest.approx(stats.kendalltau(rating_B, label_B).statistic, abs=1e-12)
    assert found.plcc_raw.value == pytest.approx(stats.pearsonr(rating_B, label_B).statistic, abs=1e-12)
    assert found.videos == videos
    if videos < metrics.FEWEST_FOR_FIT:
        assert found.fit == found.plcc_fitted.why == f"{videos} videos: the logistic fit needs 5"
    else:
        assert isinstance(found.fit, Logistic)
        fitted_B = found.fit(rating_B)
        assert found.plcc_fitted.value == pytest.approx(stats.pearsonr(fitted_B, label_B).statistic, abs=1e-12)
        assert found.rmse_fitted.value == pytest.approx(np.sqrt(np.mean((fitted_B - label_B) ** 2)), abs=1e-12)


@pytest.mark.parametrize(
    "planted", [Logistic(90, 12, 3.1, 0.4), Logistic(4.5, 1.2, 2.5, 0.7), Logistic(10, 80, 3, 0.3)]
)
def test_the_fit_recovers_planted_parameters(planted: Logistic):
    rating_B = np.linspace(1, 5, 60)
    found = fit_logistic(rating_B, planted(rating_B))
    assert isinstance(found, Logistic)
    parts = [(p.high, p.low, p.middle, p.width) for p in (found, planted)]
    # float64, without noise: what is left is where the search stops.
    np.testing.assert_allclose(*parts, rtol=1e-5)


def test_the_band_of_the_curve_holds_the_planted_curve_about_as_often_as_it_says():
    planted, rating_B, inside = Logistic(90, 12, 3.1, 0.4), np.linspace(1, 5, 80), []
    for seed in range(40):
        noise_B = 6 * np.random.default_rng(seed).standard_normal(80)
        found = fit_logistic(rating_B, planted(rating_B) + noise_B)
        assert isinstance(found, Logistic)
        band_B = found.band(rating_B)
        assert band_B is not None
        inside.append(np.abs(found(rating_B) - planted(rating_B)) < band_B)
    # 95 % at each point; over 40 fits the share has a standard error of about 0.02.
    assert 0.88 < np.mean(inside) < 0.99


def test_the_fit_beats_a_straight_line_on_a_bent_relation():
    rating_B, label_B = rated(300, noise=0.2)
    bent_B = 100 / (1 + np.exp(-(label_B - 50) / 5))
    found = agreement(rating_B, bent_B, resamples=20)
    assert found.plcc_fitted.value is not None
    assert found.plcc_raw.value is not None
    assert found.plcc_fitted.value > found.plcc_raw.value + 0.01


def test_intervals_hold_the_value_narrow_with_more_videos_and_are_the_same_each_time():
    few, many = (agreement(*rated(videos)) for videos in (40, 1000))
    for name in "srcc", "krcc", "plcc_raw", "plcc_fitted", "rmse_fitted":
        widths = []
        for found in few, many:
            figure = getattr(found, name)
            assert figure.low < figure.value < figure.high
            widths.append(figure.high - figure.low)
        # by about sqrt(1000 / 40) = 5
        assert 3 < widths[0] / widths[1] < 8
    assert agreement(*rated(40)).srcc == few.srcc


def test_an_interval_covers_the_true_correlation_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        x_B, noise_B = np.random.default_rng(seed).standard_normal((2, 100))
        figure = agreement(x_B, 0.8 * x_B + 0.6 * noise_B, resamples=200).plcc_raw
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low < 0.8 < figure.high
    # 57 expected; the standard error is 1.7, and percentile intervals cover a little less than they say.
    assert 50 <= covered <= 60


@pytest.mark.parametrize(
    ("rating", "label", "why"),
    [
        ([], [], "0 videos: correlation needs 3"),
        ([3.0], [2.0], "1 video: correlation needs 3"),
        ([3.0, 4.0], [2.0, 3.0], "2 videos: correlation needs 3"),
        ([1.0, 2.0, 3.0], [7.0, 7.0, 7.0], "all labels are 7: correlation is undefined"),
        ([2.5, 2.5, 2.5], [1.0, 2.0, 3.0], "all ratings are 2.5: correlation is undefined"),
    ],
)
def test_what_is_undefined_is_said_so(rating: list[float], label: list[float], why: str):
    found = agreement(np.array(rating), np.array(label))
    for name in "srcc", "krcc", "plcc_raw", "plcc_fitted", "rmse_fitted":
        assert getattr(found, name) == metrics.Figure(None, why=why)
    assert found.fit == why


def test_a_fit_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch):
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("Optimal parameters not found: too many evaluations")

    monkeypatch.setattr(metrics.optimize, "curve_fit", fail)
    found = agreement(*rated(30), resamples=20)
    assert isinstance(found.fit, str)
    assert "does not converge (Optimal parameters not found" in found.fit
    assert found.plcc_fitted.value is None
    assert found.plcc_fitted.why == found.fit
    assert found.srcc.value is not None


@pytest.mark.parametrize("seed", range(20))
def test_any_ratings_give_figures_or_reasons_and_no_warning(seed: int):
    rng = np.random.default_rng(seed)
    B = int(rng.integers(3, 12))
    found = agreement(
        np.round(rng.uniform(1, 5, B), int(rng.integers(3))), rng.uniform(0, 100, B).round(), resamples=50
    )
    for name in "srcc", "krcc", "plcc_raw", "plcc_fitted", "rmse_fitted":
        figure = getattr(found, name)
        assert (figure.value is None) == (figure.why is not None)
        assert figure.value is None or np.isfinite(figure.value)


def test_sets_are_weighted_by_their_videos():
    # exact but for float64
    assert weighted_mean([(0.9, 300), (0.6, 100)]) == pytest.approx(0.825, abs=1e-12)
    assert weighted_mean([(0.9, 300), (None, 100)]) is None
    assert weighted_mean([]) is None
