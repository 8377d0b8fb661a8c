from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.judges.ensembles import RULES, Rule, combine, strongest
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Prompt, Verdict

PAIR = Pair(Prompt.user("q"), "a", "b")
WEIGHTS = {"x": 3.0, "y": 1.0, "z": 2.0}


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ("mean", (0.9, 0.6, 0.3), 0.6),
        ("weighted", (0.9, 0.6, 0.3), (2.7 + 0.6 + 0.6) / 6),
        ("log_odds", (0.8, 0.5, 0.2), 0.5),  # odds 4, 1, 1/4
        ("log_odds", (0.9, 0.5, 0.5), 9 ** (1 / 3) / (1 + 9 ** (1 / 3))),
        ("log_odds", (1.0, 0.0, 0.8), 4 ** (1 / 3) / (1 + 4 ** (1 / 3))),  # sure against sure
        ("majority", (0.9, 0.51, 0.0), 2 / 3),
        ("majority", (0.9, 0.5, 0.2), 0.5),
        ("minimum", (0.9, 0.6, 0.7), 0.6),
        ("minimum", (0.1, 0.4, 0.3), 0.4),
        ("minimum", (0.9, 0.6, 0.4), 0.5),
        ("sign_agreement", (0.9, 0.6, 0.6), 0.7),
        ("sign_agreement", (0.9, 0.9, 0.4), 0.5),
    ],
)
def test_hand_worked(rule: Rule, values: tuple[float, ...], expected: float) -> None:
    opinions = dict(zip("xyz", values, strict=True))
    assert combine(opinions, rule, WEIGHTS) == pytest.approx(expected)


def test_the_strongest_decides_and_opposite_equals_do_not() -> None:
    assert strongest({"x": 0.6, "y": 0.1, "z": 0.85}) == 0.1
    assert strongest({"x": 0.9, "y": 0.1}) == 0.5
    assert strongest({"x": 0.5}) == 0.5
    assert strongest({}) is None


opinions = st.dictionaries(st.sampled_from("xyz"), st.floats(0, 1), min_size=1)


@given(opinions, st.sampled_from(RULES))
def test_no_rule_favours_the_first_completion(values: dict[str, float], rule: Rule) -> None:
    mirrored = {name: 1 - p for name, p in values.items()}
    for function in (lambda v: combine(v, rule, WEIGHTS), strongest):
        p, q = function(values), function(mirrored)
        assert p is not None
        assert q is not None
        if all(abs(v - 0.5) > 1e-12 or v == 0.5 for v in values.values()):  # 1 − p can round to ½
            assert p + q == pytest.approx(1.0, abs=1e-9)
        assert 0 <= p <= 1


@given(st.floats(1e-6, 1 - 1e-6), st.sampled_from([r for r in RULES if r != "majority"]))
def test_one_opinion_is_itself(p: float, rule: Rule) -> None:
    assert combine({"x": p}, rule, WEIGHTS) == pytest.approx(p, abs=1e-9)


@given(opinions)
def test_every_rule_keeps_what_all_agree_on(values: dict[str, float]) -> None:
    leaning = {name: 0.5 + abs(p - 0.5) for name, p in values.items()}
    for rule in RULES:
        p = combine(leaning, rule, WEIGHTS)
        assert p is not None
        assert p >= 0.5 - 1e-12


def test_unknown_rules_and_missing_weights_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown rule 'median'\. Did you mean 'mean'"):
        combine({"x": 0.5}, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no weight for y"):
        combine({"x": 0.5, "y": 0.5}, "weighted", {"x": 1})
    assert combine({}, "log_odds") is None


# ---------------------------------------------------------------------------- principles and judges


def told(judge: str, principle: str, *values: float | None) -> list[Verdict]:
    """A judge's verdicts on a principle, one for each order."""
    out = []
    for order, p in zip(ORDERS, values, strict=True):
        reason: Any = None if p is not None else "low_mass"
        key = f"{judge}{principle}{order}"
        out.append(Verdict(key, PAIR.id, principle, order, judge, p, reason=reason))
    return out


def test_judges_are_made_one_principle_by_principle() -> None:
    verdicts = [
        *told("j", "x", 0.9, 0.7),
        *told("k", "x", 0.4, 0.4),  # 0.8 and 0.4
        *told("j", "y", 0.2, 0.2),
        *told("k", "y", None, 0.9),  # k abstained in one order
    ]
    (row,) = aggregate([PAIR], verdicts)
    assert dict(zip(row.principles, row.p_principles, strict=True)) == pytest.approx(
        {"x": 0.6, "y": 0.2}
    )
    assert (row.p_first, row.verdicts, row.abstained) == (pytest.approx(0.4), 8, 1)
    (row,) = aggregate(
        [PAIR], verdicts, PreferenceSettings(jury="weighted"), judge_weights={"j": 3, "k": 1}
    )
    assert row.p_principles == pytest.approx((0.7, 0.2))
    (row,) = aggregate([PAIR], verdicts, PreferenceSettings(jury="minimum"))
    assert row.p_principles == pytest.approx((0.5, 0.2))
    (row,) = aggregate([PAIR], verdicts, PreferenceSettings(quorum=2))
    assert row.principles == ("x",)
    with pytest.raises(ConfigError, match="'jury': Input should be 'mean'"):
        aggregate([PAIR], verdicts, PreferenceSettings(jury="lots"))  # type: ignore[arg-type]


def test_salmon_hears_no_principle_whose_orders_disagree() -> None:
    """x leans with its slot (0.99, 0.3), y leans a little to the second in both orders."""
    verdicts = [*told("j", "x", 0.99, 0.3), *told("j", "y", 0.4, 0.3), *told("j", "z", 0.6, 0.5)]
    (row,) = aggregate([PAIR], verdicts, PreferenceSettings(aggregate="sign_agreement"))
    assert row.p_first == pytest.approx(0.35)
    (row,) = aggregate([PAIR], verdicts)
    assert row.p_first is not None
    assert row.p_first > 0.5  # the mean would have followed the slot


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=4),
    st.sampled_from(RULES),
    st.sampled_from(RULES),
)
def test_a_pair_and_its_mirror_sum_to_one_under_every_rule(
    values: list[tuple[float, float]], rule: Rule, jury: Rule
) -> None:
    rounded = [(round(p, 6), round(q, 6)) for p, q in values]  # so that 1 − p is exact enough
    cells = [(judge, principle) for judge in "jk" for principle in "xy"]
    verdicts = [
        v for (judge, x), pq in zip(cells, rounded, strict=True) for v in told(judge, x, *pq)
    ]
    weights = {"weights": WEIGHTS, "judge_weights": {"j": 1.0, "k": 2.0}}
    rules = PreferenceSettings(aggregate=rule, jury=jury)
    (row,) = aggregate([PAIR], verdicts, rules, **weights)
    (mirror,) = aggregate([PAIR.swap()], [v.swap() for v in verdicts], rules, **weights)
    assert row.p_first is not None
    assert mirror.p_first is not None
    near_a_step = any(
        math.isclose(sum(pq) / 2, 0.5, abs_tol=1e-9) and sum(pq) / 2 != 0.5 for pq in rounded
    )
    if not near_a_step:
        assert row.p_first + mirror.p_first == pytest.approx(1.0, abs=1e-6)
