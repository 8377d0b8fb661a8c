"""Logistic regression on soft targets against scikit-learn's, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rlaif.errors import DataError
from rlaif.statistics.logistic import fit_logistic, separates


@pytest.mark.parametrize("ridge", [0.01, 1.0, 1e-9])
def test_scikit_learn_finds_the_same_on_soft_targets_and_weights(ridge: float) -> None:
    random = np.random.default_rng(0)
    x = np.stack([np.ones(60), random.normal(size=60), random.normal(size=60)], axis=1)
    y, w = random.uniform(size=60), random.integers(0, 4, 60).astype(float)
    theirs = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs.fit(
        np.concatenate([x, x]),
        [1] * 60 + [0] * 60,
        sample_weight=np.concatenate([w * y, w - w * y]),
    )
    assert fit_logistic(x, y, w, ridge=ridge) == pytest.approx(theirs.coef_[0], abs=1e-6)


def test_a_constant_alone_gives_the_log_odds_of_the_mean() -> None:
    found = fit_logistic(np.ones((4, 1)), [1, 1, 1, 0])
    assert found == pytest.approx([math.log(3)])


def test_targets_far_apart_do_not_throw_newton_off() -> None:
    x = np.stack([np.ones(50), np.linspace(-40, 40, 50)], axis=1)
    y = (x[:, 1] > 0).astype(float)
    y[0] = 1.0  # one on the wrong side, so that the best slope is finite
    theirs = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
    assert fit_logistic(x, y, ridge=1e-6) == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_what_is_separated_is_refused_without_a_ridge_and_finite_with_one() -> None:
    x = np.stack([np.ones(6), np.array([-3, -2, -1, 1, 2, 3.0])], axis=1)
    y = [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="Give a ridge"):
        fit_logistic(x, y)
    assert np.isfinite(fit_logistic(x, y, ridge=0.01)).all()
    with pytest.raises(DataError, match="depend on one another"):
        fit_logistic(np.ones((4, 2)), [1, 0, 1, 0])
    with pytest.raises(DataError, match="finite features"):
        fit_logistic([[1.0], [math.nan]], [1, 0])


@pytest.mark.parametrize(
    ("x", "y", "apart"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], True),
        ([1, 2, 3, 4], [1, 1, 0, 0], True),
        ([1, 2, 3, 4], [0, 0.5, 1, 1], True),  # what is shared lies on the line
        ([1, 2, 3, 4], [0, 0.5, 0.5, 1], False),
        ([1, 2, 3, 4], [0, 1, 0, 1], False),
        ([1, 2, 3, 4], [1, 1, 1, 1], True),
        ([2, 2, 2, 2], [0, 1, 0, 1], False),  # no feature, and a constant does not tell them
        ([1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5], False),
    ],
)
def test_separation_by_hand(x: list[float], y: list[float], apart: bool) -> None:
    assert separates(x, y) is apart
