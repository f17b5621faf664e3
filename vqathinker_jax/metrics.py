"""Ratings and labels of one set go in; how well they agree comes out, each figure named as what it is.

Deviation from the reference, whose PLCC is the raw correlation and the only one: PLCC and RMSE also come after the
4-parameter logistic fit that the field reports. A figure that is undefined, and a fit that fails, say why.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

FEWEST, FEWEST_FOR_FIT = 3, 5
"""Two videos always correlate by 1 or -1; four parameters need five points."""
CONFIDENCE = 95.0


@dataclass(frozen=True)
class Figure:
    """A number with its bootstrap 95 % interval; or None, and `why` it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Logistic:
    """y = low + (high - low) / (1 + exp(-(x - middle) / width)); `covariance` is that of (high, low, middle, width)."""

    high: float
    low: float
    middle: float
    width: float
    covariance: np.ndarray | None = None

    def __call__(self, x_B: np.ndarray) -> np.ndarray:
        """The fitted labels of ratings."""
        return _logistic(np.asarray(x_B, np.float64), self.high, self.low, self.middle, self.width)

    def band(self, x_B: np.ndarray) -> np.ndarray | None:
        """Half the width of the curve's 95 % band, to first order; None where the data leave the curve undetermined."""
        if self.covariance is None:
            return None
        slope_B4 = _slope(np.asarray(x_B, np.float64), self.high, self.low, self.middle, self.width)
        variance_B = np.einsum("bi,ij,bj->b", slope_B4, self.covariance, slope_B4)
        return 1.96 * np.sqrt(np.maximum(variance_B, 0))


@dataclass(frozen=True)
class Agreement:
    """How `videos` ratings agree with their labels.

    srcc, krcc: of ranks (Spearman; Kendall's tau-b). plcc_raw: Pearson, of the ratings as they are, which is what the
    reference prints. plcc_fitted, rmse_fitted: after the logistic fit, the latter on the labels' scale. Their intervals
    hold the fit fixed. fit: the curve, or why there is none.
    """

    videos: int
    srcc: Figure
    krcc: Figure
    plcc_raw: Figure
    plcc_fitted: Figure
    rmse_fitted: Figure
    fit: Logistic | str


def agreement(rating_B: np.ndarray, label_B: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """How finite ratings [B] agree with finite labels [B]; the same numbers on every call."""
    rating_B, label_B = np.asarray(rating_B, np.float64), np.asarray(label_B, np.float64)
    B = len(rating_B)
    if why := _undefined(rating_B, label_B):
        nothing = Figure(None, why=why)
        return Agreement(B, *[nothing] * 5, fit=why)
    drawn_RB = np.random.default_rng(seed).integers(0, B, (resamples, B))

    def figure(statistic: Callable[[np.ndarray, np.ndarray], float], x_B: np.ndarray) -> Figure:
        value = statistic(x_B, label_B)
        pairs = ((x_B[drawn_B], label_B[drawn_B]) for drawn_B in drawn_RB)
        # A sample of few videos may hold one of them only, which has no correlation.
        varied = statistic is rmse
        values = [statistic(x, y) for x, y in pairs if varied or (np.ptp(x) > 0 and np.ptp(y) > 0)]
        low, high = _interval(values) if len(values) > resamples / 2 else (None, None)
        return Figure(value, low, high)

    fit = fit_logistic(rating_B, label_B)
    ranked = {"srcc": figure(srcc, rating_B), "krcc": figure(krcc, rating_B), "plcc_raw": figure(plcc, rating_B)}
    if isinstance(fit, str):
        return Agreement(B, **ranked, plcc_fitted=Figure(None, why=fit), rmse_fitted=Figure(None, why=fit), fit=fit)
    fitted_B = fit(rating_B)
    if np.ptp(fitted_B) <= 1e-12 * np.ptp(label_B):
        flat = Figure(None, why="the fitted curve is flat: the correlation is undefined")
        return Agreement(B, **ranked, plcc_fitted=flat, rmse_fitted=figure(rmse, fitted_B), fit=fit)
    return Agreement(B, **ranked, plcc_fitted=figure(plcc, fitted_B), rmse_fitted=figure(rmse, fitted_B), fit=fit)


def srcc(x_B: np.ndarray, y_B: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank."""
    return plcc(stats.rankdata(x_B), stats.rankdata(y_B))


def krcc(x_B: np.ndarray, y_B: np.ndarray) -> float:
    """Kendall's tau-b."""
    tau, _ = np.asarray(stats.kendalltau(x_B, y_B, method="asymptotic"))
    return float(tau)


def plcc(x_B: np.ndarray, y_B: np.ndarray) -> float:
    """Pearson's linear correlation."""
    x_B, y_B = x_B - x_B.mean(), y_B - y_B.mean()
    return float(np.clip(x_B @ y_B / math.sqrt((x_B @ x_B) * (y_B @ y_B)), -1, 1))


def rmse(x_B: np.ndarray, y_B: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((x_B - y_B) ** 2)))


def fit_logistic(rating_B: np.ndarray, label_B: np.ndarray) -> Logistic | str:
    """The least-squares curve from ratings to labels, or why none is found.

    Source: the 4-parameter logistic of VQEG's FR-TV phase I report, as DOVER's and LSVQ's evaluation fit it.
    """
    B = len(rating_B)
    if B < FEWEST_FOR_FIT:
        return f"{B} videos: the logistic fit needs {FEWEST_FOR_FIT}"
    if np.ptp(rating_B) == 0 or np.ptp(label_B) == 0:
        return _undefined(rating_B, label_B) or "nothing varies"
    # Ratings and labels are brought to a common scale first, so that 1..5 and 0..100 converge alike.
    centre, spread, floor, height = rating_B.mean(), rating_B.std(), label_B.min(), np.ptp(label_B)
    x_B, y_B = (rating_B - centre) / spread, (label_B - floor) / height
    # A falling curve is one whose `high` is the lower asymptote; the width stays positive.
    start = [1.0, 0.0, 0.0, 0.5] if plcc(x_B, y_B) >= 0 else [0.0, 1.0, 0.0, 0.5]
    bounds = ([-np.inf] * 3 + [1e-6], [np.inf] * 4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # an undetermined covariance comes as inf
            found, covariance_44 = optimize.curve_fit(
                _logistic, x_B, y_B, start, jac=_slope, bounds=bounds, max_nfev=5000, x_scale="jac"
            )
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        return f"the logistic fit does not converge ({' '.join(str(error).split()):.80})"
    if not np.isfinite(found).all():
        return "the logistic fit does not converge (its parameters are not finite)"
    high, low, middle, width = found
    scale_4 = np.array([height, height, spread, spread])
    covariance_44 = covariance_44 * np.outer(scale_4, scale_4)
    return Logistic(
        high=float(floor + height * high),
        low=float(floor + height * low),
        middle=float(centre + spread * middle),
        width=float(spread * width),
        covariance=covariance_44 if np.isfinite(covariance_44).all() else None,
    )


def weighted_mean(pairs: Iterable[tuple[float | None, int]]) -> float | None:
    """The mean of values weighted by their numbers of videos; None where there are none or one is undefined."""
    pairs = list(pairs)
    values = [value for value, _ in pairs if value is not None]
    if not pairs or len(values) < len(pairs):
        return None
    return float(np.average(values, weights=[videos for _, videos in pairs]))


def _undefined(rating_B: np.ndarray, label_B: np.ndarray) -> str | None:
    B = len(rating_B)
    if B < FEWEST:
        return f"{B} {'video' if B == 1 else 'videos'}: correlation needs {FEWEST}"
    for name, values_B in ("labels", label_B), ("ratings", rating_B):
        if np.ptp(values_B) == 0:
            return f"all {name} are {values_B[0]:g}: correlation is undefined"
    return None


def _interval(values: list[float]) -> tuple[float, float]:
    outside = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [outside, 100 - outside])
    return float(low), float(high)


def _logistic(x_B: np.ndarray, high: float, low: float, middle: float, width: float) -> np.ndarray:
    return low + (high - low) * special.expit((x_B - middle) / width)


def _slope(x_B: np.ndarray, high: float, low: float, middle: float, width: float) -> np.ndarray:
    """Derivatives [B, 4] of the curve by its four parameters."""
    z_B = (x_B - middle) / width
    share_B = special.expit(z_B)
    steep_B = (high - low) * share_B * special.expit(-z_B) / width
    return np.stack([share_B, 1 - share_B, -steep_B, -steep_B * z_B], axis=-1)
