"""Several policies on the same prompts: length control, ratings and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression

from rlaif.errors import DataError
from rlaif.evaluation.standings import ELO, RIDGE, length_controlled, paired, ratings
from rlaif.evaluation.winrate import Comparison, compare
from rlaif.records import Preference, Prompt


def played(p: float | None, i: int = 0, longer_by: int = 0) -> Comparison:
    if p is None:
        return Comparison(f"prompt {i}", "abstained", None, None, longer_by)
    outcome = "tie" if p == 0.5 else "win" if p > 0.5 else "loss"
    return Comparison(f"prompt {i}", outcome, p, None, longer_by)


def liking_length(n: int, theta: float, phi: float, seed: int = 0) -> list[Comparison]:
    """Outcomes of a judge that likes length: σ(θ + φ tanh(Δ/100)), with noise."""
    random = np.random.default_rng(seed)
    lengths = random.normal(80, 100, n).round().astype(int)
    p = expit(theta + phi * np.tanh(lengths / 100) + random.normal(0, 0.3, n))
    return [played(float(x), i, int(d)) for i, (x, d) in enumerate(zip(p, lengths, strict=True))]


def test_length_control_is_the_regression_that_scikit_learn_fits() -> None:
    found = liking_length(300, 0.2, 1.5)
    ours = length_controlled([*found, played(None, 300, 5000)])
    p, d = np.array([c.p for c in found]), np.array([c.longer_by for c in found], float)
    x = np.stack([np.ones(300), np.tanh(d / np.std(d, ddof=1))], axis=1)
    theirs = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs.fit(
        np.concatenate([x, x]), [1] * 300 + [0] * 300, sample_weight=np.concatenate([p, 1 - p])
    )
    assert ours is not None
    assert ours.value == pytest.approx(theirs.predict_proba([[1.0, 0.0]])[0, 1], abs=1e-6)
    assert ours.effect["value"] == pytest.approx(theirs.coef_[0, 1], abs=1e-5)
    assert (ours.n, ours.separated) == (300, False)  # what was abstained on is not among them


def test_a_policy_that_only_got_longer_wins_nothing_at_equal_length() -> None:
    found = liking_length(400, 0.0, 2.0)
    raw = np.mean([c.p for c in found])
    ours = length_controlled(found)
    assert ours is not None
    assert raw > 0.65
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low < 0.5 < ours.high
    assert ours.high - ours.low < 0.1
    shorter = length_controlled([played(1 - c.p, i, -c.longer_by) for i, c in enumerate(found)])
    assert shorter is not None
    assert shorter.value == pytest.approx(1 - ours.value)  # the same from the other side


def test_answers_of_one_length_have_the_plain_mean() -> None:
    ours = length_controlled([played(p, i) for i, p in enumerate([0.9, 0.8, 0.5, 0.2])] * 50)
    assert ours is not None
    assert ours.value == pytest.approx(0.6, abs=1e-4)  # but for the ridge
    assert (ours.effect["value"], ours.spread) == (0.0, 0.0)


def test_who_always_wins_has_no_interval() -> None:
    always = length_controlled([played(1.0, i, 10 * i) for i in range(50)])
    assert always is not None
    assert always.separated
    assert (always.low, always.high) == (None, None)
    assert 0.9 < always.value < 1
    by_length = length_controlled([played(float(i % 2), i, 10 if i % 2 else -10) for i in range(8)])
    assert by_length is not None
    assert by_length.separated  # the longer one always wins: of equal ones nothing is known
    assert length_controlled([played(None)]) is None


def test_the_lengths_are_those_of_the_answers() -> None:
    prompts = [Prompt.user(str(i)) for i in range(3)]

    def label(pairs):  # type: ignore[no-untyped-def]
        return [Preference(pair, "preferred", 0.9) for pair in pairs]

    found = compare(prompts, ["four", "", "same"], ["fifteen letters", "ab", "same"], label)
    assert [c.longer_by for c in found] == [-11, -2, 0]
    assert [c.score for c in found] == [1.0, 0.0, 0.5]


def test_ratings_of_two_by_hand() -> None:
    games = {("a", "base"): [played(p, i) for i, p in enumerate([1, 1, 1, 0.5, 0])]}
    found = ratings(games, "base")  # 3.5 of 5, and the prior's half of a tenth
    assert found["base"].value == 0
    assert found["a"].value == pytest.approx(400 * math.log10(3.55 / 1.55))
    assert found["a"].n == 5
    assert found["a"].settled
    turned = ratings(
        {("base", "a"): [played(1 - c.p, i) for i, c in enumerate(*games.values())]}, "base"
    )
    assert turned["a"].value == pytest.approx(found["a"].value)
    assert (turned["a"].low, turned["a"].high) == pytest.approx((found["a"].low, found["a"].high))


def test_ratings_are_what_a_general_optimiser_finds() -> None:
    random = np.random.default_rng(1)
    names = ["base", "x", "y", "z"]
    games = {
        (a, b): [played(float(p), i) for i, p in enumerate(random.uniform(0.1 * j, 1, 30))]
        for j, a in enumerate(names)
        for b in names[:j]
    }
    rows = [(names.index(a), names.index(b), c.p, 1.0) for (a, b), cs in games.items() for c in cs]
    rows += [(i, j, 0.5, 0.1) for i in range(4) for j in range(i)]

    def loss(s: np.ndarray) -> float:
        return -sum(
            w * (p * log_expit(s[i] - s[j]) + (1 - p) * log_expit(s[j] - s[i]))
            for i, j, p, w in rows
        )

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    found = ratings(games, "base")
    assert [found[n].value for n in names] == pytest.approx(ELO * (best - best[0]), abs=0.01)
    for name in names[1:]:
        one = found[name]
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_who_never_lost_has_a_finite_rating_and_no_interval() -> None:
    games = {
        ("a", "base"): [played(p, i) for i, p in enumerate([0.9, 0.4] * 10)],
        ("b", "base"): [played(1.0, i) for i in range(20)],
    }
    found = ratings(games, "base")
    assert found["a"].settled
    assert not found["b"].settled
    assert (found["b"].low, found["b"].high) == (None, None)
    assert math.isfinite(found["b"].value)
    assert found["b"].value > found["a"].value
    with pytest.raises(DataError, match="base in some"):
        ratings({("a", "b"): [played(1.0)]}, "base")
    with pytest.raises(DataError, match="outcome is known"):
        ratings({("a", "base"): [played(None)]}, "base")


def test_what_one_prompt_says_has_no_interval() -> None:
    """A bootstrap of prompts that all say the same, or of one, would have one of no width."""
    assert ratings({("a", "base"): [played(0.7)]}, "base")["a"].low is None
    found = ratings({("a", "base"): [played(0.5, i) for i in range(20)]}, "base")
    assert found["a"].settled
    assert (found["a"].value, found["a"].low, found["a"].high) == (pytest.approx(0), None, None)
    assert (found["base"].low, found["base"].high) == (0, 0)
    one = paired({"p": [1.0]}, {"p": [0.0]})
    assert one is not None
    assert (one.value, one.low, one.high, one.beyond) == (1.0, None, None, False)
    two = paired({"p": [1.0], "q": [0.9]}, {"p": [0.0], "q": [0.0]})
    assert two is not None
    assert two.beyond


def test_the_rating_interval_covers() -> None:
    """Prompts drawn again and again: the truth lies in the interval about as often as it says."""
    random, truth, hits = np.random.default_rng(2), 0.4, 0
    for seed in range(60):
        p = (random.uniform(size=80) < expit(truth)).astype(float)
        one = ratings({("a", "base"): [played(x, i) for i, x in enumerate(p)]}, "base", seed=seed)[
            "a"
        ]
        hits += one.low is not None and one.high is not None and one.low <= ELO * truth <= one.high
    assert hits >= 51  # binomial(60, .95): fewer has a probability under 0.1 %


def test_differences_are_paired() -> None:
    """What both policies gain on easy prompts cancels: the difference is surer than either."""
    random = np.random.default_rng(3)
    easy = random.uniform(0, 0.8, 100)
    one = {f"p{i}": [x + 0.1] for i, x in enumerate(easy)}
    other = {f"p{i}": [x, x] for i, x in enumerate(easy)}
    found = paired({**one, "alone": [1.0]}, other)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.n == 100
    assert paired({"a": [1.0]}, {"b": [0.0]}) is None
