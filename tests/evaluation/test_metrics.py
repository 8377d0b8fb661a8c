"""Metrics against scikit-learn, closed forms and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, cohen_kappa_score

from rlaif.errors import DataError
from rlaif.evaluation import metrics
from rlaif.records import Order, Pair, Preference, Prompt, Verdict
from rlaif.statistics import agreement, calibration, intervals, slots


def test_against_scikit_learn():
    random = np.random.default_rng(0)
    p, y = random.random(500), random.integers(0, 2, 500)
    assert calibration.brier(p, y) == pytest.approx(brier_score_loss(y, p))
    assert agreement.accuracy(p, y) == pytest.approx(accuracy_score(y, p > 0.5))
    a, b = random.integers(0, 3, 500).tolist(), random.integers(0, 3, 500).tolist()
    assert agreement.cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


def test_calibration_error_by_hand():
    # (0.6, 0.7]: confidence 0.7, all right, 2 of 4; (0.9, 1]: confidence 0.95, half right
    p, y = [0.7, 0.3, 0.95, 0.05], [1, 0, 1, 1]
    assert calibration.expected_calibration_error(p, y) == pytest.approx(0.5 * 0.3 + 0.5 * 0.45)
    assert calibration.expected_calibration_error([1.0, 0.0], [1, 0]) == 0


def test_calibrated_forecasts_have_little_calibration_error():
    random = np.random.default_rng(1)
    p = random.random(50_000)
    assert calibration.expected_calibration_error(p, random.random(50_000) < p) < 0.01


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_calibration_does_not_depend_on_what_is_called_one(rows):
    p, y = np.array(rows).T
    if np.any(p == 0.5):
        return
    mirrored = calibration.expected_calibration_error(1 - p, 1 - y)
    assert calibration.expected_calibration_error(p, y) == pytest.approx(mirrored, abs=1e-6)


def test_wilson_by_hand():
    # 8 of 10 at 95 %: Wilson 0.490–0.943 (Brown, Cai & DasGupta's worked form)
    interval = intervals.wilson(8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    none, every = intervals.wilson(0, 20), intervals.wilson(20, 20)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(3.8416 / (20 + 3.8416), abs=1e-4)  # z²/(n + z²)
    assert none.high == pytest.approx(1 - every.low)
    with pytest.raises(DataError):
        intervals.wilson(3, 2)


def test_bootstrap_is_near_the_normal_interval():
    values = np.random.default_rng(2).normal(3, 2, 400)
    interval = intervals.bootstrap(values, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.04)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.04)
    assert intervals.bootstrap(values, seed=1) == interval


def test_bootstrap_by_cluster_is_wider_when_a_cluster_repeats_itself():
    values = np.random.default_rng(3).normal(0, 1, 50)
    repeated, names = np.repeat(values, 8), np.repeat(np.arange(50), 8).tolist()
    clustered, alone = intervals.bootstrap(repeated, names), intervals.bootstrap(repeated)
    once = intervals.bootstrap(values)
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low, rel=0.1)
    assert alone.high - alone.low < 0.5 * (clustered.high - clustered.low)
    assert intervals.bootstrap([1.0, 0.0], ["a", "a"]).low == 0.5


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(4)
    draws = [random.exponential(1, 60) for _ in range(200)]
    hits = [i.low <= 1 <= i.high for i in (intervals.bootstrap(d, resamples=400) for d in draws)]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_position_bias_by_hand():
    # consistent twice; slot one twice, slot two once
    bias = slots.position_bias([0.9, 0.2, 0.8, 0.7, 0.1], [0.8, 0.3, 0.4, 0.1, 0.9])
    assert bias["same_slot_rate"] == pytest.approx(0.6)
    assert bias["swap_consistency"] == pytest.approx(0.4)
    assert bias["first_slot_share"] == pytest.approx(2 / 3)
    # picks of slot one: order 1 → y n y y n, order 2 (second shown first) → n y y y n
    assert bias["says_first"] == pytest.approx(0.6)
    assert slots.position_bias([0.9], [0.9])["first_slot_share"] == 0.5


def test_an_indifferent_judge_has_no_slot_and_a_slot_lover_has():
    noise, slot_lover, clear = (0.52, 0.47), (0.9, 0.1), (0.3, 0.45)
    mask = slots.leaning(*np.array([noise, slot_lover, clear]).T)
    assert mask.tolist() == [False, True, True]


def test_numbers_that_are_none():
    with pytest.raises(DataError, match="non-empty"):
        calibration.brier([], [])
    with pytest.raises(DataError, match="no number"):
        agreement.accuracy([float("nan")], [1])
    with pytest.raises(DataError, match="unlike length"):
        calibration.brier([0.1], [1, 0])


def _verdict(pair: Pair, order: Order, p: float | None) -> Verdict:
    reason = "too_long" if p is None else None
    mass = None if p is None else 0.9
    return Verdict(
        f"{pair.id}{order}", pair.id, "kind", order, "judge", p, mass=mass, reason=reason
    )


def test_label_quality():
    pairs = [Pair(Prompt.user(f"q{i}"), "good", "bad", source=str(i)) for i in range(4)]
    preferences = [
        Preference(pairs[0], "preferred", 0.9),
        Preference(pairs[1], "preferred", 0.2),
        Preference(pairs[2], "tie", 0.5),
        Preference(pairs[3], "abstained", None),
    ]
    verdicts = [
        _verdict(pairs[0], "first_second", 0.9),
        _verdict(pairs[0], "second_first", 0.9),
        _verdict(pairs[1], "first_second", 0.7),
        _verdict(pairs[1], "second_first", 0.1),
        _verdict(pairs[3], "first_second", None),
    ]
    found = metrics.label_quality(pairs, preferences, verdicts, lambda _: 1.0)
    assert found["pairs"] == 4
    assert found["status"] == {"preferred": 2, "tie": 1, "abstained": 1}
    assert found["abstained_by_reason"] == {"too_long": 1}
    assert found["gold_agreement"]["value"] == 0.5
    assert found["gold_agreement"]["n"] == 2
    assert found["swap_consistency"] == 0.5
    assert found["label_mass"] == pytest.approx(0.9)
    assert found["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.8)
    assert found["by_principle"]["kind"]["n"] == 2
    nothing = metrics.label_quality(pairs, preferences, [], lambda _: None)
    assert nothing["gold_agreement"] is None
    assert nothing["swap_consistency"] is None


def test_label_quality_of_parts_is_that_of_the_whole():
    random = np.random.default_rng(5)
    pairs = [Pair(Prompt.user(f"q{i}"), "a", "b", float(i % 3 > 0)) for i in range(40)]
    ps = [None if x < 0.1 else round(float(x), 1) for x in random.random(40)]
    preferences = [
        Preference(pair, "abstained" if p is None else "tie" if p == 0.5 else "preferred", p)
        for pair, p in zip(pairs, ps, strict=True)
    ]
    orders: list[Order] = ["first_second", "second_first"]
    verdicts = [
        [_verdict(pair, order, p if order == orders[0] else 0.5) for order in orders]
        for pair, p in zip(pairs, ps, strict=True)
    ]
    whole = metrics.label_quality(pairs, preferences, [v for both in verdicts for v in both])
    quality = metrics.LabelQuality()
    for i in range(0, 40, 7):
        here = slice(i, i + 7)
        quality.add(pairs[here], preferences[here], [v for both in verdicts[here] for v in both])
    assert quality.result() == whole
