"""Is a probability right as often as it says? Pure functions over arrays of N forecasts.

They stand on this floor, because a reward model reports its own calibration; `evaluation.metrics`
hands them on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.errors import DataError

Floats = NDArray[np.float64]


def as_floats(values: ArrayLike, what: str) -> Floats:
    """A non-empty, finite, one-dimensional float array, or DataError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{what} must be a non-empty list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(
            f"{what} holds {int((~np.isfinite(array)).sum())} values that are no number"
        )
    return array


def same_length(*arrays: NDArray[Any]) -> None:
    """DataError unless all arrays are as long as the first."""
    if len({len(a) for a in arrays}) > 1:
        raise DataError(f"lists of unlike length: {[len(a) for a in arrays]}")


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Brier score 1/N Σ (p − y)², of probabilities p and outcomes y in {0, 1}; 0 is perfect."""
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    return float(np.mean((p_ - y_) ** 2))


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """ECE = Σ_b |b|/N · |accuracy(b) − confidence(b)| (Guo et al. 2017).

    The forecast is the likelier of the two outcomes: its confidence is max(p, 1 − p) ≥ ½, and it is
    right when y agrees. `bins` equal bins over [0, 1], closed on the right, so that with ten of
    them five are ever filled; p = ½ counts as the forecast "1".
    """
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    confidence = np.maximum(p_, 1 - p_)
    right = ((p_ >= 0.5) == (y_ >= 0.5)).astype(np.float64)
    # 0.6 as a float can come out of 1 − 0.4 a hair above: round before choosing the bin.
    index = np.clip(np.ceil(np.round(confidence * bins, 9)).astype(int) - 1, 0, bins - 1)
    total = 0.0
    for b in np.unique(index):
        here = index == b
        total += here.mean() * abs(right[here].mean() - confidence[here].mean())
    return float(total)
