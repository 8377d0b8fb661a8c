"""Is a probability right as often as it says? Pure functions over arrays of N forecasts.

An outcome is a probability too: 1 or 0 where one side is known to be better, a share of votes or a
soft label where that is what is known, ½ for a tie. A forecast is perfect when it equals that
probability, not when it is sure of the likelier side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.statistics.intervals import Clusters, Floats, as_floats, robust_error, same_length


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Brier score 1/N Σ (p − y)², of probabilities p and outcomes y in [0, 1]; 0 is perfect."""
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    return float(np.mean((p_ - y_) ** 2))


def log_losses(p: ArrayLike, y: ArrayLike) -> Floats:
    """−(y log p + (1 − y) log(1 − p)) of each forecast in nats, (N,): least where p = y, and there
    y's entropy; infinite where one of exactly 0 or 1 is wrong."""
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 is 0
        first = np.where(y_ > 0, -y_ * np.log(p_), 0.0)
        return np.asarray(first + np.where(y_ < 1, -(1 - y_) * np.log1p(-p_), 0.0))


def log_loss(p: ArrayLike, y: ArrayLike) -> float:
    """The mean of `log_losses`."""
    return float(np.mean(log_losses(p, y)))


def folded(p: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """(confidence, outcome) of the side that each forecast prefers, (N,) each, confidence ≥ ½.

    A forecast of exactly ½ prefers neither: its outcome is ½, that of a side drawn by lot.
    """
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    outcome = np.where(p_ > 0.5, y_, np.where(p_ < 0.5, 1 - y_, 0.5))
    return np.maximum(p_, 1 - p_), outcome


def confidence_bins(confidence: Floats, bins: int = 10) -> NDArray[np.int64]:
    """The bin of each confidence: equal ones over [0, 1], closed on the right."""
    # 0.6 as a float can come out of 1 − 0.4 a hair above: round before choosing the bin.
    index = np.ceil(np.round(confidence * bins, 9)).astype(np.int64) - 1
    return np.asarray(np.clip(index, 0, bins - 1))


def expected_calibration_error(
    p: ArrayLike, y: ArrayLike, bins: int = 10, *, weights: ArrayLike | None = None
) -> float:
    """ECE = Σ_b |b|/N · |mean outcome(b) − mean confidence(b)| (Guo et al. 2017).

    The forecast is the likelier of the two sides: its confidence is max(p, 1 − p) ≥ ½, its outcome
    what is known of that side, y or 1 − y in [0, 1] (`folded`). `bins` equal bins over [0, 1],
    closed on the right, so that with ten of them five are ever filled. `weights`: how often each
    counts.
    """
    confidence, outcome = folded(p, y)
    w = np.ones(len(confidence)) if weights is None else as_floats(weights, "weights")
    same_length(confidence, w)
    # |b|/N · |mean outcome − mean confidence| is |Σ outcome − Σ confidence|/N.
    gaps = np.bincount(confidence_bins(confidence, bins), weights=w * (outcome - confidence))
    return float(np.abs(gaps).sum() / w.sum())


@dataclass(frozen=True, slots=True)
class Temperature:
    """The T that makes σ(logit(p)/T) likeliest, with a 95 % interval (Guo et al. 2017).

    T > 1: the forecasts are too sure of themselves. `value` is None where no T > 0 is best:
    forecasts at chance or worse (1/T ≤ 0), or all of them surely right or wrong (`slope` is then
    infinite).
    `high` is None where the interval has no end. `n` forecasts were fitted; `certain` ones of
    exactly 0 or 1 were not, as no temperature moves them.
    """

    value: float | None
    low: float | None
    high: float | None
    slope: float  # 1/T
    n: int
    certain: int

    def __call__(self, p: ArrayLike) -> Floats:
        """Forecasts at this temperature; those at 0, ½ and 1 stay."""
        return rescaled(p, self.slope)


def rescaled(p: ArrayLike, slope: float) -> Floats:
    """Forecasts at the temperature 1/slope, σ(slope · logit(p)), (N,); those at 0, ½ and 1 stay."""
    with np.errstate(divide="ignore"):
        z = np.log(as_floats(p, "p")) - np.log1p(-as_floats(p, "p"))
    return np.asarray(_sigmoid(z * slope), dtype=np.float64)


def fit_temperature(p: ArrayLike, y: ArrayLike, clusters: Clusters | None = None) -> Temperature:
    """Fits σ(β logit(p)) to outcomes y in [0, 1] by Newton's method; T = 1/β.

    The interval is a sandwich one on β over `clusters`, the names of the forecasts' prompts:
    forecasts of one prompt err together (`robust_error`).
    """
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    inside = (p_ > 0) & (p_ < 1)
    certain = int((~inside).sum())
    z, y_ = np.log(p_[inside]) - np.log1p(-p_[inside]), y_[inside]
    n = len(z)
    if not n or not (z * (2 * y_ - 1)).any():
        return Temperature(None, None, None, 0.0, n, certain)
    for sure, slope in ((z > 0, math.inf), (z < 0, -math.inf)):
        if (y_ == sure)[z != 0].all():  # ever steeper is ever better
            return Temperature(None, None, None, slope, n, certain)
    beta = _best_slope(z, y_)
    if beta <= 0:
        return Temperature(None, None, None, beta, n, certain)
    q = _sigmoid(beta * z)
    curvature = float((z * z * q * (1 - q)).sum())
    names = None if clusters is None else [clusters[i] for i in np.flatnonzero(inside).tolist()]
    error = robust_error(z * (y_ - q), curvature, names)
    high = 1 / (beta - error) if beta > error else None
    return Temperature(1 / beta, 1 / (beta + error), high, beta, n, certain)


def _best_slope(z: Floats, y: Floats) -> float:
    """The root of the likelihood's derivative Σ z (y − σ(βz)), which falls in β: Newton's steps,
    and halving where one leaves the bracket."""
    low, high, beta = -1.0, 1.0, 1.0

    def derivative(b: float) -> float:
        return float((z * (y - _sigmoid(b * z))).sum())

    while derivative(high) > 0:
        high *= 2
    while derivative(low) < 0:
        low *= 2
    for _ in range(200):
        slope = derivative(beta)
        low, high = (beta, high) if slope > 0 else (low, beta)
        q = _sigmoid(beta * z)
        curvature = float((z * z * q * (1 - q)).sum())
        step = beta + slope / curvature if curvature > 0 else math.inf
        new = step if low < step < high else (low + high) / 2
        if abs(new - beta) <= 1e-13 * max(1.0, abs(beta)):
            return new
        beta = new
    return beta


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
