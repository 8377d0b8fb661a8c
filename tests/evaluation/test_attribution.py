"""Shapley values, labels without one principle, the same rules over arrays."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.evaluation.attribution import Opinions
from rlaif.evaluation.cases import decisive
from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.vectors import VectorRule
from rlaif.judges.ensembles import RULES, SURE
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Preference, Prompt, Verdict

NAMES = ("a", "b", "c", "d")
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5}
one = st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
rows = st.lists(st.tuples(one, one, one, one), min_size=1, max_size=6)
any_rule = st.builds(
    LabelRule,
    st.sampled_from(RULES),
    st.just(WEIGHTS),
    st.fixed_dictionaries({n: st.sampled_from([None, 1, 2]) for n in NAMES}),
    st.sampled_from([0.05, 0.2, 0.45]),
)


def opinions(table: Any, rule: LabelRule, names: tuple[str, ...] = NAMES) -> Opinions:
    p = np.array(table, dtype=float).T
    n = p.shape[1]
    ids = [str(i) for i in range(n)]
    return Opinions(names, p, rule, 0.05, ids, ids, np.ones((2, n)))


def worth(row: dict[str, float], rule: LabelRule) -> float:
    """By the rule that makes labels, pair by pair."""
    p = min(max(rule(row), SURE), 1 - SURE)
    return math.log(p / (1 - p)) if row else 0.0


def known(row: Any, names: tuple[str, ...] = NAMES) -> dict[str, float]:
    return {n: p for n, p in zip(names, row, strict=True) if not math.isnan(p)}


@given(rows, any_rule)
def test_a_rule_over_arrays_is_the_rule(table: Any, rule: LabelRule) -> None:
    found = VectorRule(NAMES, rule).labels(np.array(table).T)
    for row, label in zip(table, found.tolist(), strict=True):
        if known(row):
            assert label == pytest.approx(rule(known(row)), abs=1e-12)
        else:
            assert math.isnan(label)


@given(rows, any_rule)
def test_shapley_values_are_the_means_over_all_orders(table: Any, rule: LabelRule) -> None:
    """Against the definition: every order of the players, one after the other."""
    values, errors = opinions(table, rule).shapley
    assert not errors.any()
    for i, row in enumerate(table):
        told, added = known(row), dict.fromkeys(NAMES, 0.0)
        orders = list(itertools.permutations(told))
        for order in orders:
            for k, name in enumerate(order):
                before = worth({n: told[n] for n in order[:k]}, rule)
                added[name] += worth({n: told[n] for n in order[: k + 1]}, rule) - before
        for c, name in enumerate(NAMES):
            assert values[c, i] == pytest.approx(added[name] / len(orders), abs=1e-9)
        assert values[:, i].sum() == pytest.approx(worth(told, rule), abs=1e-9)


def test_shapley_values_by_hand() -> None:
    """v(a) = log 9, v(b) = 0, v(ab) = log(0.7/0.3): φ(a) = (log 9 + log 7/3)/2."""
    found, _ = opinions([(0.9, 0.5)], LabelRule(), ("a", "b")).shapley
    whole = math.log(7 / 3)
    first = (math.log(9) + whole) / 2
    assert found[:, 0] == pytest.approx([first, whole - first])
    # In the tier above, a holds the label at its own 0.9: b adds nothing to it.
    found, _ = opinions([(0.9, 0.2)], LabelRule(tiers={"a": 1}), ("a", "b")).shapley
    alone = -math.log(4)
    assert found[:, 0] == pytest.approx([(math.log(9) * 2 - alone) / 2, alone / 2])


@pytest.mark.parametrize("name", RULES)
def test_sampled_values_sum_to_the_log_odds_and_state_their_error(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    names = tuple(f"p{i}" for i in range(13))
    table = rng.uniform(0, 1, (40, 13))
    table[rng.uniform(size=table.shape) < 0.2] = math.nan
    rule = LabelRule(name, {n: 1.0 + i for i, n in enumerate(names)}, {names[0]: 1})
    found = opinions(table, rule, names)
    values, errors = found.shapley
    wholes = [worth(known(row, names), rule) for row in table.tolist()]
    assert values.sum(axis=0) == pytest.approx(wholes, abs=1e-9)
    assert (errors[~np.isnan(found.p)] >= 0).all()
    monkeypatch.setattr("rlaif.evaluation.attribution.MOST_EXACT", 13)
    exact, none = opinions(table, rule, names).shapley
    assert not none.any()
    off = np.abs(values - exact) / np.maximum(errors, 1e-12)
    told = errors > 1e-9
    assert np.mean(off[told] < 2) > 0.9  # of a normal error 95 %
    if told.any():
        assert 0.7 < math.sqrt(np.mean((values - exact) ** 2) / np.mean(errors**2)) < 1.4


def verdicts(row: dict[str, float]) -> list[Verdict]:
    return [Verdict(f"{n}{o}", PAIR.id, n, o, "j", p) for n, p in row.items() for o in ORDERS]


PAIR = Pair(Prompt.user("q"), "a", "b")


@given(rows, any_rule)
def test_a_label_without_a_principle_is_the_label_of_the_other_verdicts(
    table: Any, rule: LabelRule
) -> None:
    found = opinions(table, rule)
    settings = PreferenceSettings(
        aggregate=rule.name, tier_margin=rule.tier_margin, min_margin=found.min_margin
    )
    for i, row in enumerate(table):
        for c, name in enumerate(NAMES):
            left = {n: p for n, p in known(row).items() if n != name}
            (label,) = aggregate(
                [PAIR], verdicts(left), settings, weights=WEIGHTS, tiers=rule.tiers
            )
            p = found.without[c, i]
            if label.p_first is None:
                assert math.isnan(p)
                continue
            assert p == pytest.approx(label.p_first, abs=1e-12)
            if abs(abs(p - 0.5) - found.min_margin) > 1e-9 and abs(p - 0.5) > 1e-9:
                side = found.side(np.array([p]))[0]
                assert (side != 0) == (label.status == "preferred")
                assert side == 0 or (side > 0) == label.first_is_chosen


@given(rows, any_rule)
@settings(deadline=None)
def test_who_decided_is_who_is_said_to_have_decided_elsewhere(table: Any, rule: LabelRule) -> None:
    found = opinions(table, rule)
    for row, column, side in zip(table, found.decided.tolist(), found.sides.tolist(), strict=True):
        told = known(row)
        if not side:
            assert column == -1
            continue
        label = Preference(PAIR, "preferred", rule(told), tuple(told), tuple(told.values()))
        name = decisive(label, rule)
        if NAMES[column] != name:  # equals up to rounding
            assert name is not None
            pull = [rule({**told, n: 0.5}) for n in (NAMES[column], name)]
            assert pull[0] == pytest.approx(pull[1], abs=1e-9)
