"""Stopping early over principles and orders: what it says it errs by is what it errs by."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.errors import DataError
from rlaif.evaluation.labels import Floats
from rlaif.evaluation.stopping import StoppingRule, fitted, ranking, sides, stopped


def world(n: int, seed: int, columns: int = 8) -> tuple[Floats, Floats]:
    """Columns that lean as their pair does, each with noise of its own, and their mean."""
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.2, (n, 1))
    x = np.clip(0.5 + lean + rng.normal(0, 0.1, (n, columns)), 0, 1)
    return x, x.mean(axis=1)


def test_sides_are_those_of_labels() -> None:
    p = np.array([0.5, 0.55, 0.5625, 0.4375, 0.45, 1.0])
    assert sides(p, 0.0625).tolist() == [0, 0, 1, -1, 0, 1]
    assert sides(np.array([0.5, 0.5001]), 0.0).tolist() == [0, 1]


def test_the_column_that_tells_most_is_asked_first() -> None:
    rng = np.random.default_rng(0)
    noise, half, rest = rng.random((3, 400))
    # the label is three parts `half` and one part `rest`; the third column has no part in it
    assert ranking(np.column_stack([noise, rest, half]), 0.75 * half + 0.25 * rest) == [2, 1, 0]


def test_a_rule_by_hand() -> None:
    """Two columns, a look after each: after one P is foretold as it, ±0.1, and λ is 2."""
    weights = (np.array([0.0, 1.0]), np.array([0.0, 0.5, 0.5]))
    rule = StoppingRule((1, 0), (1, 2), weights, (0.1, 0.0), 0.05, 2.0)
    x = np.array([[0.1, 0.9], [0.1, 0.74], [0.9, 0.24], [np.nan, np.nan]])
    p = np.array([0.5, 0.42, 0.57, 0.5])
    said, asked = stopped(rule, x, p)
    # 0.9 lies .35 beyond the border at 0.55, and 0.24 .21 beyond that at 0.45: more than .2; 0.74
    # lies .19 beyond, and ½ .05 within: these go on, and their labels are made of all.
    assert asked.tolist() == [1, 2, 1, 2]
    assert said.tolist() == [1, -1, -1, 0]


def test_it_errs_no_more_than_it_says_and_saves() -> None:
    wrong, counts = [], []
    for seed in range(30):
        x, p = world(900, seed)
        judged = np.arange(900) < 600
        learn = (np.arange(900) < 200)[judged]
        rule = fitted(x[judged], p[judged], learn, margin=0.05, error=0.05)
        said, asked = stopped(rule, x[~judged], p[~judged])
        wrong.append((said != sides(p[~judged], 0.05)).mean())
        counts.append(asked.mean())
    assert np.mean(wrong) <= 0.05 + 2 * np.std(wrong) / 30**0.5
    assert np.mean(wrong) > 0.02  # and no more than is said is spent on being sure
    assert np.mean(counts) < 8 / 2


def test_a_stricter_error_asks_more_and_no_error_asks_all_it_must() -> None:
    x, p = world(3000, 1)
    learn = np.arange(3000) < 500
    rules = [fitted(x, p, learn, margin=0.05, error=e) for e in (0.1, 0.02, 0.002)]
    counts = [stopped(rule, x, p)[1].mean() for rule in rules]
    assert counts[0] < counts[1] < counts[2] <= 8


def test_too_few_pairs_for_the_error_are_refused() -> None:
    x, p = world(300, 0)
    with pytest.raises(DataError, match="150 pairs judged in full cannot show an error"):
        fitted(x, p, np.arange(300) < 150, margin=0.05, error=0.005)
