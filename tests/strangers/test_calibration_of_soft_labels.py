"""The outcome of a forecast is what is known of it: p, where a soft label says p, and ½ of a tie.

Worked by hand, and with models of which it is known how good they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from rlaif.evaluation.audit import Labels, audit
from rlaif.evaluation.labels import Cube, reliability_points
from rlaif.evaluation.metrics import label_quality
from rlaif.records import Pair, Preference, Prompt
from rlaif.report.summary import known_ece
from rlaif.statistics.calibration import (
    brier,
    expected_calibration_error,
    fit_temperature,
    folded,
    log_loss,
)
from rlaif.training.reward import reward_quality

Floats = np.ndarray[Any, Any]
SOFT = np.random.default_rng(0).uniform(0.5, 1, 4_000)
PERFECT = np.log(SOFT) - np.log1p(-SOFT)


def test_a_perfect_reward_model_has_no_calibration_error() -> None:
    found = reward_quality(PERFECT.tolist(), SOFT.tolist())
    assert (found["ece"], found["brier"]) == (pytest.approx(0, abs=1e-9),) * 2
    assert found["log_loss"] == pytest.approx(found["entropy"])
    assert found["intervals"]["ece"]["high"] < 1e-9


def test_a_model_that_is_too_sure_has_much() -> None:
    sure = reward_quality([20.0] * 4_000, SOFT.tolist())
    assert sure["ece"] == pytest.approx(1 - SOFT.mean(), abs=1e-6)  # it says 1, and .75 are right
    assert sure["brier"] == pytest.approx(((1 - SOFT) ** 2).mean(), abs=1e-6)
    assert sure["log_loss"] > 4 * sure["entropy"]
    timid = reward_quality((PERFECT / 4).tolist(), SOFT.tolist())
    assert timid["ece"] > 0.1


def test_a_reward_model_by_hand() -> None:
    # σ(margin) is .75, .25, .5, .75; the labels are .9, .6, .7 and a tie.
    margins, p = [math.log(3), -math.log(3), 0.0, math.log(3)], [0.9, 0.6, 0.7, 0.5]
    found = reward_quality(margins, p)
    assert (found["n"], found["ties"]) == (4, 1)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)  # a tie has no better side
    # All three confidences of .75 are of one bin: outcomes .9, .4 and .5; the ½ is in its own.
    assert found["ece"] == pytest.approx(abs(0.9 + 0.4 + 0.5 - 3 * 0.75) / 4)
    assert found["brier"] == pytest.approx((0.15**2 + 0.35**2 + 0.2**2 + 0.25**2) / 4)
    nll = [
        -0.9 * math.log(0.75) - 0.1 * math.log(0.25),
        -0.6 * math.log(0.25) - 0.4 * math.log(0.75),
        math.log(2),
        -0.5 * math.log(0.75) - 0.5 * math.log(0.25),
    ]
    assert found["log_loss"] == pytest.approx(sum(nll) / 4)
    assert found["log_loss"] == pytest.approx(log_loss([0.75, 0.25, 0.5, 0.75], p))
    assert reward_quality([1.0, -1.0], [0.5, 0.5])["accuracy"] is None


rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


@given(rows)
def test_which_side_is_called_first_changes_nothing(found: list[tuple[float, float]]) -> None:
    p, y = (np.round(column, 6) for column in np.array(found).T)
    for score in (expected_calibration_error, brier):
        assert score(p, y) == pytest.approx(score(1 - p, 1 - y), abs=1e-6)


@given(rows)
def test_a_forecast_that_is_the_outcome_is_perfect(found: list[tuple[float, float]]) -> None:
    y = np.array(found)[:, 1]
    assert expected_calibration_error(y, y) == pytest.approx(0, abs=1e-9)
    assert brier(y, y) == 0
    others = np.array(found)[:, 0]
    assert log_loss(y, y) <= log_loss(others, y) + 1e-9


@given(rows)
def test_a_soft_outcome_is_the_mean_of_hard_ones(found: list[tuple[float, float]]) -> None:
    """One pair of which 7 of 10 voted for the first is ten pairs of one vote each."""
    p, votes = np.array(found)[:, 0], np.round(np.array(found)[:, 1] * 10)
    hard = np.concatenate([np.r_[np.ones(int(k)), np.zeros(10 - int(k))] for k in votes])
    many = np.repeat(p, 10)
    assert expected_calibration_error(p, votes / 10) == pytest.approx(
        expected_calibration_error(many, hard), abs=1e-9
    )
    if ((p > 0) & (p < 1)).all():
        assert log_loss(p, votes / 10) == pytest.approx(log_loss(many, hard))
        slope, of_votes = fit_temperature(p, votes / 10).slope, fit_temperature(many, hard).slope
        assert math.isfinite(slope) == math.isfinite(of_votes)


def test_the_temperature_of_soft_labels_is_that_of_their_votes() -> None:
    random = np.random.default_rng(3)
    z = random.normal(0, 2, 200)
    votes = random.binomial(10, 1 / (1 + np.exp(-0.5 * z)))
    p = 1 / (1 + np.exp(-z))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    hard = np.concatenate([np.r_[np.ones(k), np.zeros(10 - k)] for k in votes])
    model.fit(np.repeat(z, 10)[:, None], hard)
    found = fit_temperature(p, votes / 10)
    assert found.slope == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert found.low is not None
    assert found.low < 2 < found.high
    # Labels that all lean to the right side, but not surely, are no reason for an infinite slope.
    # logit .9 = ln 9 must become logit .7 = ln 7/3, and those of .1 and .3 are their mirrors
    slope = fit_temperature([0.9, 0.1], [0.7, 0.3]).slope
    assert slope == pytest.approx(math.log(7 / 3) / math.log(9))


def test_half_prefers_neither_side() -> None:
    confidence, outcome = folded([0.5, 0.8, 0.2], [1.0, 0.7, 0.7])
    assert confidence.tolist() == [0.5, 0.8, 0.8]
    assert outcome.tolist() == pytest.approx([0.5, 0.7, 0.3])


# ------------------------------------------------------------------- the same of a judge's labels


def audited(p: Floats, known: Floats) -> Any:
    n = len(p)
    both = np.repeat(p[:, None, None], 2, axis=2)
    cube = Cube(("c",), both, np.full(both.shape, 0.9), np.full(both.shape, "judged", object))
    ids = [f"{i * 7919:020x}"[::-1] for i in range(n)]
    return audit(Labels(ids, ids, ["preferred"] * n, p, known, np.ones((n, 2)), cube))["known"]


def test_a_judge_that_tells_peoples_shares_is_calibrated_everywhere() -> None:
    known = np.random.default_rng(5).uniform(0.02, 0.98, 600)
    found = audited(known, known)
    assert (found["ece"]["value"], found["brier"]["value"]) == (pytest.approx(0, abs=1e-9),) * 2
    assert found["temperature"]["value"] == pytest.approx(1)
    for point in found["reliability"]:
        assert point["value"] == pytest.approx(point["confidence"])
    sure = np.where(known > 0.5, 0.999, 0.001)
    assert audited(sure, known)["ece"]["value"] > 0.2
    assert known_ece(known, known) == pytest.approx(0, abs=1e-9)
    pairs = [Pair(Prompt.user(str(i)), "a", "b", float(y)) for i, y in enumerate(known)]
    labels = [Preference(pair, "preferred", float(pair.label or 0)) for pair in pairs]
    assert label_quality(pairs, labels, [])["ece"] == pytest.approx(0, abs=1e-9)


def test_a_known_tie_counts_in_calibration_and_not_in_accuracy() -> None:
    p, known = np.array([0.9, 0.9]), np.array([1.0, 0.5])
    found = audited(p, known)
    assert (found["accuracy"]["value"], found["accuracy"]["n"], found["ties"]) == (1.0, 1, 1)
    assert found["brier"]["value"] == pytest.approx((0.01 + 0.16) / 2)
    assert found["ece"]["value"] == pytest.approx(abs(1.5 - 1.8) / 2)
    ((stated, true),) = reliability_points(p, known, ["a", "b"])
    assert (stated, true.value, true.n) == (pytest.approx(0.9), pytest.approx(0.75), 2)
    pairs = [Pair(Prompt.user(str(i)), "a", "b", float(y)) for i, y in enumerate(known)]
    counted = label_quality(pairs, [Preference(x, "preferred", 0.9) for x in pairs], [])
    assert counted["gold_agreement"]["n"] == 1
    assert counted["brier"] == pytest.approx(0.085)
