"""Logistic regression on soft targets, for few features and many refits. Pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rlaif.errors import DataError
from rlaif.statistics.intervals import Floats, as_floats, same_length

FLAT = 1e-12  # a curvature below this is none


def fit_logistic(
    features: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, ridge: float = 0.0
) -> Floats:
    """The coefficients β (K,) that make N targets in [0, 1] likeliest under p = σ(Xβ).

    They minimise Σ w (−y log p − (1 − y) log(1 − p)) + ridge/2 · |β|², by Newton's method with
    halved steps: scikit-learn's `LogisticRegression(C=1/ridge, fit_intercept=False)` with each row
    given twice, weighted by y and 1 − y. A constant is a feature of ones. Without a ridge,
    DataError where no finite β is best (separable targets) or features depend on one another.
    """
    x, y, w = _rows(features, targets, weights)

    def loss(b: Floats) -> float:
        z = x @ b
        return float((w * (np.logaddexp(0, z) - y * z)).sum() + ridge / 2 * (b @ b))

    beta: Floats = np.zeros(x.shape[1])
    now = loss(beta)
    for _ in range(200):
        p = np.exp(-np.logaddexp(0, -(x @ beta)))
        gradient = x.T @ (w * (p - y)) + ridge * beta
        curvature = (x * (w * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(beta))
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            break
        size = 1.0
        while (new := loss(beta - size * step)) > now and size > 1e-10:
            size /= 2
        beta, now = beta - size * step, min(new, now)
        if np.abs(size * step).max() <= 1e-10 * max(1.0, float(np.abs(beta).max())):
            return beta
    raise DataError(
        "no finite coefficients are best: the features separate the targets, or depend on one "
        "another. Give a ridge above 0"
    )


def fit_nonnegative(
    features: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    l1: float = 0.0,
    ridge: float = 0.0,
    start: ArrayLike | None = None,
) -> Floats:
    """As `fit_logistic`, of coefficients β ≥ 0 (K,) that also pay `l1` · Σβ.

    By projected Newton steps: each minimises the loss's quadratic model over β ≥ 0, one coordinate
    after the other (Friedman, Hastie & Tibshirani 2010), with halved steps. `start` is a β to begin
    from, such as that of a neighbouring penalty. DataError where no finite β is best.
    """
    x, y, w = _rows(features, targets, weights)

    def loss(b: Floats) -> float:
        z = x @ b
        return float((w * (np.logaddexp(0, z) - y * z)).sum() + l1 * b.sum() + ridge / 2 * (b @ b))

    beta: Floats = np.zeros(x.shape[1]) if start is None else as_floats(start, "start")
    now = loss(beta)
    for _ in range(200):
        p = np.exp(-np.logaddexp(0, -(x @ beta)))
        gradient = x.T @ (w * (p - y)) + l1 + ridge * beta
        curvature = (x * (w * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(beta))
        if ((gradient < 0) & (np.diag(curvature) <= FLAT)).any():
            break  # it falls for ever
        step = _nonnegative_step(curvature, gradient, beta)
        size = 1.0
        while (new := loss(np.maximum(beta + size * step, 0))) > now and size > 1e-10:
            size /= 2
        beta, now = np.maximum(beta + size * step, 0), min(new, now)
        if np.abs(size * step).max(initial=0) <= 1e-8 * max(1.0, float(beta.max(initial=0))):
            return beta
    raise DataError(
        "no finite coefficients are best: the features separate the targets. Give a penalty above 0"
    )


def _rows(
    features: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """What is fitted, as arrays: features (N, K), targets and weights (N,)."""
    x, y = np.asarray(features, dtype=np.float64), as_floats(targets, "targets")
    w = np.ones(len(y)) if weights is None else as_floats(weights, "weights")
    same_length(x, y, w)
    if x.ndim != 2 or not np.isfinite(x).all() or y.min() < 0 or y.max() > 1 or w.min() < 0:
        raise DataError("a logistic regression takes finite features (N, K) and targets in [0, 1]")
    return x, y, w


def _nonnegative_step(curvature: Floats, gradient: Floats, beta: Floats) -> Floats:
    """The d (K,) with β + d ≥ 0 that minimises gᵀd + dᵀHd/2, by coordinate descent."""
    step, slope, diagonal = np.zeros_like(beta), gradient.copy(), np.diag(curvature)
    for _ in range(1000):
        largest = 0.0
        for k in np.flatnonzero(diagonal > FLAT).tolist():
            move = max(-slope[k] / diagonal[k], -beta[k] - step[k])
            if move:
                step[k] += move
                slope += move * curvature[:, k]
                largest = max(largest, abs(move))
        if largest <= 1e-10 * max(1.0, float(np.abs(beta).max(initial=0))):
            break
    return step


def separates(feature: ArrayLike, targets: ArrayLike) -> bool:
    """Whether a constant and one feature (N,) tell targets above 0 from targets below 1 for sure.

    Then no finite coefficients are best, and those that a ridge allows stand for "as far as can be
    told, always". A target between 0 and 1 is both above 0 and below 1.
    """
    x, y = as_floats(feature, "the feature"), as_floats(targets, "targets")
    same_length(x, y)
    some, others = x[y > 0], x[y < 1]
    if not len(some) or not len(others):
        return True
    apart = others.max() <= some.min() or some.max() <= others.min()
    return bool(apart and x.min() < x.max())
