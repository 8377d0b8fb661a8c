"""An interval holds the truth as often as it says, where rows of one prompt are not independent.

Worlds are drawn whose truth is known and whose rows hang together within prompts; of 95 % intervals
some 95 in 100 must hold it. Intervals that take rows for independent hold it in 50 to 80.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from rlaif.errors import DataError
from rlaif.evaluation.attacks import Question, Trial
from rlaif.evaluation.attacks import report as attacks_report
from rlaif.evaluation.audit import Labels, audit
from rlaif.evaluation.jury import JuryAgreement
from rlaif.evaluation.labels import Cube
from rlaif.evaluation.metrics import LabelQuality
from rlaif.evaluation.policy import divergence
from rlaif.evaluation.winrate import winrate
from rlaif.records import ORDERS, Pair, Preference, Prompt, Verdict
from rlaif.statistics.calibration import fit_temperature
from rlaif.statistics.intervals import bootstrap, share, standard_error, t_quantile, wilson
from rlaif.training.reward import reward_quality

WORLDS = 120
ENOUGH = 0.88  # of 120 intervals at 95 %: 3.5 standard errors below
Floats = np.ndarray[Any, Any]


def hits(
    random: np.random.Generator, prompts: int, rows: int, p: float, together: float = 0.6
) -> tuple[Floats, list[str]]:
    """(prompts · rows,) of 0 and 1 with mean p; a share of a prompt's rows copy its first draw."""
    own = random.random((prompts, rows)) < p
    copied = random.random((prompts, rows)) < together
    found = np.where(copied, own[:, :1], own)
    names = [f"prompt {i}" for i in range(prompts) for _ in range(rows)]
    return found.astype(float).ravel(), names


def covered(world: Callable[[np.random.Generator], dict[str, Any]], truth: float) -> float:
    found = [world(np.random.default_rng([5, i])) for i in range(WORLDS)]
    return float(np.mean([i["low"] <= truth <= i["high"] for i in found]))


@pytest.mark.parametrize(
    ("prompts", "rows", "p"), [(12, 6, 0.5), (40, 4, 0.8), (40, 8, 0.95), (150, 3, 0.98)]
)
def test_shares(prompts: int, rows: int, p: float) -> None:
    worlds = [hits(np.random.default_rng([6, i]), prompts, rows, p) for i in range(400)]
    found = [share(x, names) for x, names in worlds]
    # Near 1, few prompts with a miss tell little of how prompts differ: 88 in 100 there.
    assert 0.87 <= np.mean([i.low <= p <= i.high for i in found]) <= 0.995
    alone = [wilson(float(x.sum()), len(x)) for x, _ in worlds]
    assert np.mean([i.low <= p <= i.high for i in alone]) < 0.88  # as if rows were independent


def test_a_share_by_hand() -> None:
    assert share([1] * 8 + [0] * 2) == wilson(8, 10)  # each its own cluster: just Wilson's
    assert share([1.0] * 40, ["a"] * 10 + ["b"] * 30).low == wilson(2, 2).low
    assert share([1.0, 0.0], ["a", "a"]).low == pytest.approx(wilson(0.5, 1).low)
    # Four prompts of two equal rows: the variance between them is 4/3 that of four items, and
    # t with 3 degrees of freedom stands for z.
    found = share([1, 1, 1, 1, 1, 1, 0, 0], list("aabbccdd"))
    size = 4 * (3 / 4) * (1.959964 / t.ppf(0.975, 3)) ** 2
    expected = wilson(0.75 * size, size)
    assert (found.value, found.n) == (0.75, 8)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)
    # Means of several items, weighted by how many they are, are those items.
    rows, names = [1, 1, 0, 1, 0, 0, 1, 1, 1], list("aaabbbccc")
    means = share([2 / 3, 1 / 3, 1], list("abc"), weights=[3, 3, 3])
    whole = share(rows, names)
    assert (means.value, means.low, means.high) == pytest.approx(
        (whole.value, whole.low, whole.high)
    )
    for bad in ([1.5], [-0.1]):
        with pytest.raises(DataError, match="from 0 to 1"):
            share(bad)


@pytest.mark.parametrize("df", [1, 2, 3, 5, 30])
def test_students_t(df: int) -> None:
    assert t_quantile(0.975, df) == pytest.approx(t.ppf(0.975, df), abs=0.004)


def test_the_standard_error_is_of_prompts() -> None:
    values = np.random.default_rng(1).normal(size=30)
    once = standard_error(values)
    assert once == pytest.approx(values.std(ddof=1) / 30**0.5)
    assert standard_error(np.repeat(values, 5), np.repeat(np.arange(30), 5).tolist()) == (
        pytest.approx(once)
    )
    ours = [np.log([0.5, 0.25])] * 10 + [np.log([0.5, 0.5])] * 10
    kl = divergence(ours, [np.log([0.25, 0.25])] * 20, ["a"] * 10 + ["b"] * 10)
    assert kl.stderr > 0.3  # two prompts tell little, however many samples they have


# ------------------------------------------------------------- everything that reports an interval


def tempered(
    random: np.random.Generator, prompts: int = 40, rows: int = 6, slope: float = 0.6
) -> tuple[Floats, Floats, list[str]]:
    """Forecasts too sure of themselves; the rows of a prompt have like forecasts and one luck."""
    z = np.repeat(random.normal(0, 1.5, prompts), rows) + random.normal(0, 0.3, prompts * rows)
    luck = np.repeat(random.random(prompts), rows)
    right = luck < 1 / (1 + np.exp(-slope * np.abs(z)))
    names = [str(i) for i in np.repeat(np.arange(prompts), rows)]
    return 1 / (1 + np.exp(-z)), (right == (z > 0)).astype(float), names


def test_the_fitted_temperature() -> None:
    def held(clustered: bool) -> float:
        found = []
        for i in range(300):
            p, y, names = tempered(np.random.default_rng([7, i]))
            fit = fit_temperature(p, y, names if clustered else None)
            if fit.low is not None:  # else no temperature is claimed: 4 of 300 look like chance
                found.append(fit.low <= 1 / 0.6 and (fit.high is None or fit.high >= 1 / 0.6))
        assert len(found) > 290
        return float(np.mean(found))

    assert 0.91 <= held(clustered=True) <= 0.99
    assert held(clustered=False) < 0.7


def labels_of(x: Floats, names: list[str]) -> Labels:
    """Labels that are right where x is 1; the orders agree there, and elsewhere not."""
    p = np.where(x == 1, 0.9, 0.1)
    both = np.stack([p, np.where(x == 1, 0.9, 0.6)], axis=1)[:, None, :]
    ids = [f"{i:020x}" for i in range(len(x))]
    cube = Cube(("c",), both, np.full(both.shape, 0.9), np.full(both.shape, "judged", object))
    names = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    known, lengths = np.ones(len(x)), np.ones((len(x), 2))
    return Labels(ids, names, ["preferred"] * len(x), p, known, lengths, cube)


AUDITED: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda found: found["known"]["accuracy"],
    lambda found: found["known"]["accuracy_all"],
    lambda found: found["known"]["by_principle"]["c"],
    lambda found: next(g for g in found["known"]["by_length"] if g["n"]),
    lambda found: found["judge"]["swap_consistency"],
]


def test_the_audit() -> None:
    found = [audit(labels_of(*hits(np.random.default_rng([8, i]), 25, 6, 0.8))) for i in range(80)]
    for of in AUDITED:
        held = np.mean([of(a)["low"] <= 0.8 <= of(a)["high"] for a in found])
        assert held >= 0.86


def pairs_of(names: list[str]) -> list[Pair]:
    prompts = {name: Prompt.user(name) for name in names}
    return [Pair(prompts[name], f"a {i}", f"b {i}", 1.0) for i, name in enumerate(names)]


def verdicts(pair: Pair, judge: str, *ps: float) -> list[Verdict]:
    return [
        Verdict(f"{pair.id}{judge}{o}", pair.id, "c", o, judge, p)
        for o, p in zip(ORDERS, ps, strict=False)
    ]


def quality_of(x: Floats, names: list[str]) -> dict[str, Any]:
    pairs, quality = pairs_of(names), LabelQuality()
    for pair, right in zip(pairs, x, strict=True):  # in parts, as they come
        p = 0.9 if right else 0.1
        said = verdicts(pair, "j", p, 0.9 if right else 0.95)
        quality.add([pair], [Preference(pair, "preferred", p)], said)
    return quality.result()


@pytest.mark.parametrize("name", ["gold_agreement", "swap_interval"])
def test_labels(name: str) -> None:
    assert covered(lambda r: quality_of(*hits(r, 25, 6, 0.8))[name], 0.8) >= ENOUGH


def test_win_rates() -> None:
    def world(random: np.random.Generator) -> dict[str, Any]:
        x, names = hits(random, 25, 6, 0.7)
        pairs = pairs_of(names)

        def label(asked: Any) -> list[Preference]:
            return [
                Preference(p, "preferred", 0.9 if right else 0.1)
                for p, right in zip(asked, x, strict=True)
            ]

        found = winrate(
            [p.prompt for p in pairs], [p.first for p in pairs], [p.second for p in pairs], label
        )
        return found.as_dict()

    assert covered(world, 0.7) >= ENOUGH


def test_jurors() -> None:
    def world(random: np.random.Generator) -> dict[str, Any]:
        x, names = hits(random, 25, 6, 0.75)
        jury, pairs = JuryAgreement({"j": ORDERS[:1], "k": ORDERS[:1]}), pairs_of(names)
        jury.add(
            pairs,
            [
                v
                for pair, same in zip(pairs, x, strict=True)
                for v in verdicts(pair, "j", 0.9) + verdicts(pair, "k", 0.9 if same else 0.1)
            ],
        )
        (row,) = jury.agreement()
        return dict(row["same_side"])

    assert covered(world, 0.75) >= ENOUGH


def test_attacks() -> None:
    from rlaif.constitution import Principle

    principle = Principle(id="c", compare="Which is better?")

    def world(random: np.random.Generator) -> dict[str, Any]:
        x, names = hits(random, 25, 6, 0.3)
        answered = [
            (
                Trial(Question(pair, principle, 0.1), "f", ()),
                verdicts(pair, "j", 0.9 if flipped else 0.1),
            )
            for pair, flipped in zip(pairs_of(names), x, strict=True)
        ]
        return dict(attacks_report(answered)["f"]["flipped"])

    assert covered(world, 0.3) >= ENOUGH


def test_reward_models() -> None:
    def world(random: np.random.Generator) -> dict[str, Any]:
        x, names = hits(random, 25, 6, 0.8)
        found = reward_quality((2 * x - 1).tolist(), [1.0] * len(x), names)
        return dict(found["intervals"]["accuracy"])

    assert covered(world, 0.8) >= ENOUGH


def test_means() -> None:
    def world(random: np.random.Generator) -> dict[str, Any]:
        values = np.repeat(random.normal(1, 1, 40), 5) + random.normal(0, 0.2, 200)
        return bootstrap(values, np.repeat(np.arange(40), 5).tolist(), resamples=400).as_dict()

    assert covered(world, 1.0) >= ENOUGH
