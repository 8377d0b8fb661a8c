"""The audit's numbers against scikit-learn, SciPy and numbers worked by hand."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, cohen_kappa_score

from rlaif.errors import DataError
from rlaif.evaluation.audit import Labels, audit, failed
from rlaif.evaluation.labels import Cube
from rlaif.evaluation.settings import LabelLimits
from rlaif.statistics import calibration, intervals, slots

EXACT = 1e-9


def ids_of(n: int, mirrored: Any = None) -> list[str]:
    names = [hashlib.sha256(str(i).encode()).hexdigest()[:20] for i in range(n)]
    return [
        ("~" if mirrored is not None and mirrored[i] else "") + name for i, name in enumerate(names)
    ]


def labels_of(
    p: Any,
    known: Any,
    *,
    verdicts: Any = None,
    reason: Any = None,
    mass: Any = None,
    lengths: Any = None,
    statuses: Any = None,
    prompts: Any = None,
    ids: Any = None,
) -> Labels:
    """Labels of P pairs; by default one principle whose verdicts in both orders are the label."""
    p = np.array([np.nan if v is None else v for v in p], dtype=float)
    known = np.array([np.nan if v is None else v for v in known], dtype=float)
    n = len(p)
    if verdicts is None:
        verdicts = np.repeat(p[:, None, None], 2, axis=2)
    verdicts = np.asarray(verdicts, dtype=float)
    if reason is None:
        reason = np.where(np.isfinite(verdicts), "judged", "too_long").astype(object)
    if mass is None:
        mass = np.where(np.isfinite(verdicts), 0.9, np.nan)
    if statuses is None:
        statuses = ["abstained" if np.isnan(v) else "tie" if v == 0.5 else "preferred" for v in p]
    names = tuple(f"c{i}" for i in range(verdicts.shape[1]))
    return Labels(
        ids or ids_of(n),
        prompts or ids_of(n),
        statuses,
        p,
        known,
        np.ones((n, 2)) if lengths is None else np.asarray(lengths, dtype=float),
        Cube(names, verdicts, np.asarray(mass, dtype=float), reason),
    )


def noisy(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts that are too sure of themselves, and outcomes."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 1.5, n)
    y = (random.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return 1 / (1 + np.exp(-2.5 * z)), y


def test_against_scikit_learn() -> None:
    p, y = noisy(600)
    found = audit(labels_of(p, y))["known"]
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(y, p > 0.5), abs=EXACT)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=EXACT)
    assert found["accuracy"]["n"] == found["brier"]["n"] == found["kappa"]["n"] == 600
    for name in ("accuracy", "kappa", "ece", "brier", "accuracy_all"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    fit.fit(np.log(p / (1 - p))[:, None], y)
    heat = found["temperature"]
    assert heat["slope"] == pytest.approx(fit.coef_[0, 0], abs=1e-6)  # as far as its solver goes
    assert heat["value"] == pytest.approx(1 / heat["slope"], abs=EXACT)
    assert heat["low"] < 2.5 < heat["high"]
    assert heat["ece"]["value"] < found["ece"]["value"]
    assert heat["brier"]["value"] < found["brier"]["value"]


def test_the_temperature_is_where_the_likelihood_is_flat() -> None:
    p, y = noisy(400, seed=3)
    z = np.log(p) - np.log1p(-p)
    slope = calibration.fit_temperature(p, y).slope
    assert float((z * (y - 1 / (1 + np.exp(-slope * z)))).sum()) == pytest.approx(0, abs=1e-8)


def test_kappa_is_scikit_learns_of_the_turned_pairs() -> None:
    p, y = noisy(300, seed=1)
    mirrored = np.random.default_rng(5).random(300) < 0.5
    ids = ids_of(300, mirrored)
    turned = np.array([int(i.removeprefix("~")[0], 16) % 2 == 1 for i in ids]) != mirrored
    found = audit(labels_of(p, y, ids=ids))["known"]["kappa"]["value"]
    expected = cohen_kappa_score((p > 0.5) != turned, (y > 0.5) != turned)
    assert found == pytest.approx(expected, abs=EXACT)


def test_a_file_with_the_better_response_first_has_a_kappa() -> None:
    p, y = noisy(2_000, seed=2)
    p = np.where(y == 1, p, 1 - p)  # each pair the other way round where the second is better
    found = audit(labels_of(p, np.ones(2_000)))["known"]
    assert found["kappa"]["value"] == pytest.approx(2 * found["accuracy"]["value"] - 1, abs=0.02)
    lover = audit(labels_of(np.full(2_000, 0.9), np.ones(2_000)))["known"]  # says "first" always
    assert lover["accuracy"]["value"] == 1.0  # which the file rewards, and κ of turned pairs too:
    assert lover["kappa"]["value"] == 1.0  # aggregated over both orders it is no slot any more


def test_a_pair_and_its_mirror_give_the_same_audit() -> None:
    p, y = noisy(200, seed=4)
    lengths = np.random.default_rng(6).integers(1, 400, (200, 2)).astype(float)
    one = audit(labels_of(p, y, lengths=lengths))
    two = audit(labels_of(1 - p, 1 - y, lengths=lengths[:, ::-1], ids=ids_of(200, np.ones(200))))
    for part in ("known", "length"):
        for name in one[part]:
            if isinstance(one[part][name], dict) and "value" in one[part][name]:
                assert one[part][name]["value"] == pytest.approx(
                    two[part][name]["value"], abs=EXACT
                )


def test_by_hand() -> None:
    # Pairs: right, wrong, tie, abstention, unknown truth, known tie.
    p = [0.9, 0.4, 0.5, None, 0.8, 0.7]
    found = audit(labels_of(p, [1, 1, 0, 1, None, 0.5], lengths=[(9, 3)] * 6))
    assert found["status"] == {"preferred": 4, "tie": 1, "abstained": 1}
    known = found["known"]
    assert (known["pairs"], known["ties"]) == (4, 1)
    assert (known["accuracy"]["value"], known["accuracy"]["n"]) == (0.5, 2)
    assert known["accuracy_all"]["value"] == (1 + 0 + 0.5 + 0.5) / 4
    # a known tie has the outcome ½
    assert known["brier"]["value"] == pytest.approx((0.01 + 0.36 + 0.04) / 3, abs=EXACT)
    # 0.9 is right, 0.4 is the forecast "0" with confidence 0.6, and wrong; 0.7 is half right
    assert known["ece"]["value"] == pytest.approx((0.1 + 0.6 + 0.2) / 3, abs=EXACT)
    # both known better ones are first, three times as long; the tie at a 0 is not preferred
    groups = {g["name"]: g["n"] for g in known["by_length"]}
    assert groups["over twice as long"] == 2
    assert sum(groups.values()) == 2
    judge = found["judge"]
    assert (judge["verdicts"], judge["abstained"]["value"]) == (12, pytest.approx(2 / 12))
    assert judge["abstained_by_reason"]["too_long"]["n"] == 12
    assert judge["label_mass"]["value"] == pytest.approx(0.9)
    assert judge["label_mass"]["n"] == 10
    # preferred 4: 0.9, 0.8, 0.7 for the longer first, 0.4 for the shorter
    assert (found["length"]["longer"]["value"], found["length"]["longer"]["n"]) == (0.75, 4)


def test_slots_by_hand() -> None:
    # consistent; slot one both times; slot two both times; near ½ in both: no question
    both = np.array([[0.9, 0.8], [0.8, 0.3], [0.2, 0.9], [0.51, 0.49], [0.7, 0.2]])[:, None, :]
    judge = audit(labels_of(both.mean(axis=(1, 2)), [None] * 5, verdicts=both))["judge"]
    assert (judge["questions"], judge["leaning"]["value"], judge["leaning"]["n"]) == (5, 0.8, 5)
    assert judge["swap_consistency"]["value"] == pytest.approx(1 / 4)
    assert judge["same_slot_rate"]["value"] == pytest.approx(3 / 4)
    assert judge["first_slot_share"]["value"] == pytest.approx(2 / 3)
    assert judge["first_slot_share"]["n"] == 3
    rates = slots.position_bias(both[[0, 1, 2, 4], 0, 0], both[[0, 1, 2, 4], 0, 1])
    assert {k: judge[k]["value"] for k in rates} == pytest.approx(rates)


def test_the_correlation_is_pearsons_over_pairs_and_mirrors() -> None:
    random = np.random.default_rng(7)
    lengths, p = random.integers(0, 300, (80, 2)).astype(float), random.random(80)
    x = np.log((lengths[:, 0] + 1) / (lengths[:, 1] + 1))
    expected = pearsonr(np.r_[x, -x], np.r_[p - 0.5, 0.5 - p]).statistic
    found = audit(labels_of(p, [None] * 80, lengths=lengths))
    assert found["length"]["correlation"]["value"] == pytest.approx(expected, abs=EXACT)
    assert found["known"] is None
    assert found["length"]["known_correlation"] is None


def test_a_judge_that_likes_length_shows() -> None:
    random = np.random.default_rng(8)
    lengths = random.integers(10, 1000, (400, 2)).astype(float)
    p = np.where(lengths[:, 0] > lengths[:, 1], 0.8, 0.2)
    found = audit(labels_of(p, random.integers(0, 2, 400), lengths=lengths))
    assert found["length"]["correlation"]["low"] > 0.6
    assert found["length"]["longer"]["value"] > 0.99
    groups = found["known"]["by_length"]
    assert groups[0]["value"] == 0  # the better one is far shorter, and the judge wrong
    assert groups[-1]["value"] == 1


def test_temperatures_that_do_not_exist() -> None:
    at_chance = calibration.fit_temperature([0.9, 0.9, 0.1], [0, 0, 1])
    assert (at_chance.value, at_chance.slope) == (None, -np.inf)
    separable = calibration.fit_temperature([0.9, 0.8], [1, 1])
    assert (separable.value, separable.slope) == (None, np.inf)
    worse = calibration.fit_temperature([0.9, 0.8, 0.7], [0, 0, 1])
    assert worse.value is None
    assert worse.slope < 0
    sure = calibration.fit_temperature([1.0, 0.0, 0.9, 0.8, 0.6], [1, 0, 1, 0, 1])
    assert (sure.n, sure.certain) == (3, 2)
    flat = calibration.fit_temperature([0.5, 0.5], [1, 0])
    assert (flat.value, flat.slope) == (None, 0.0)
    assert calibration.fit_temperature([1.0], [0]).n == 0
    heat = audit(labels_of([0.9, 0.8], [1, 1]))["known"]["temperature"]
    assert (heat["value"], heat["slope"], heat["ece"]) == (None, None, None)


def test_a_temperature_moves_forecasts_and_keeps_certainty() -> None:
    heat = calibration.Temperature(2.0, 1.0, 3.0, 0.5, 9, 0)
    # logit 0.9 = ln 9; half of it is ln 3, which is 0.75
    assert heat([0.9, 0.5, 0.0, 1.0]) == pytest.approx([0.75, 0.5, 0.0, 1.0])


def test_intervals_draw_whole_prompts() -> None:
    p, y = noisy(40, seed=9)
    once = audit(labels_of(p, y))["known"]
    prompts = [name for name in ids_of(40) for _ in range(6)]
    many = audit(labels_of(np.repeat(p, 6), np.repeat(y, 6), prompts=prompts))["known"]
    for name in ("accuracy", "ece", "kappa"):
        width = once[name]["high"] - once[name]["low"]
        assert many[name]["high"] - many[name]["low"] == pytest.approx(width, rel=0.25)


def test_bootstrap_of_a_mean_is_bootstrap() -> None:
    values = np.random.default_rng(1).random(50)
    names = [i // 2 for i in range(50)]
    of = intervals.bootstrap_of(lambda w: float((w * values).sum() / w.sum()), 50, names, seed=4)
    mean = intervals.bootstrap(values, names, resamples=1000, seed=4)
    assert (of.value, of.low, of.high) == pytest.approx((mean.value, mean.low, mean.high))
    with pytest.raises(DataError, match="3 items, but 2 cluster names"):
        intervals.bootstrap_of(lambda w: float(w.sum()), 3, ["a", "b"])


def test_nothing_to_audit_is_none_and_not_zero() -> None:
    found = audit(labels_of([None, None], [1, None]))
    assert found["known"]["accuracy"] is None
    assert found["known"]["accuracy_all"]["value"] == 0.5
    assert found["judge"]["swap_consistency"] is None
    assert found["length"]["correlation"] is None
    with pytest.raises(DataError, match="one row a pair"):
        labels_of([0.9], [1, 1])


GOOD = {"verdicts": 100, "abstained": 50, "swap_consistency": 0.9, "questions": 40}
GOOD |= {"gold_agreement": {"value": 0.45, "low": 0.3, "high": 0.6, "n": 40}}


@pytest.mark.parametrize(
    ("quality", "limits", "names"),
    [
        (GOOD, {"max_abstained": 0.5, "min_swap_consistency": 0.9, "min_accuracy": 0.6}, []),
        ({**GOOD, "abstained": 51}, {"max_abstained": 0.5}, ["max_abstained"]),
        ({**GOOD, "abstained": 51}, {}, []),
        (GOOD, {"min_accuracy": 0.61}, ["min_accuracy"]),
        (
            {**GOOD, "swap_consistency": 0.1},
            {"min_swap_consistency": 0.3},
            ["min_swap_consistency"],
        ),
        # one question of three: the interval reaches 0.79, which proves nothing
        ({**GOOD, "swap_consistency": 1 / 3, "questions": 3}, {"min_swap_consistency": 0.7}, []),
        # nine of twenty, or fifteen of twenty-four: both may be a coin's
        (
            {"swap_consistency": 0.45, "questions": 20},
            {"min_swap_consistency": 0.5},
            ["min_swap_consistency"],
        ),
        (
            {"swap_consistency": 0.625, "questions": 24},
            {"min_swap_consistency": 0.5},
            ["min_swap_consistency"],
        ),
        ({"swap_consistency": 0.625, "questions": 24}, {"min_swap_consistency": 0.4}, []),
        ({"swap_consistency": 0.75, "questions": 24}, {"min_swap_consistency": 0.5}, []),
        # four that agree are no coin's; of three nothing can be told
        ({"swap_consistency": 1.0, "questions": 4}, {"min_swap_consistency": 0.5}, []),
        ({"swap_consistency": 2 / 3, "questions": 3}, {"min_swap_consistency": 0.5}, []),
        ({}, {"max_abstained": 0.0, "min_swap_consistency": 1.0, "min_accuracy": 1.0}, []),
    ],
)
def test_limits(quality: Any, limits: Any, names: list[str]) -> None:
    off = dict.fromkeys(LabelLimits.model_fields)
    assert list(failed(quality, LabelLimits(**off | limits))) == names


def test_a_limit_says_what_was_found() -> None:
    (text,) = failed({**GOOD, "abstained": 51}, LabelLimits()).values()
    assert text == "the judge abstained in 51 of 100 verdicts (51.0%; the limit is 50.0%)"
