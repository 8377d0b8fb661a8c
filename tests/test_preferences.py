from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Order, Pair, Prompt, Verdict

PAIR = Pair(Prompt.user("q"), "a", "b")


def verdict(principle: str, order: Order, p: float | None, pair: Pair = PAIR) -> Verdict:
    reason: Any = "too_long" if p is None else None
    return Verdict(f"{principle}{order}", pair.id, principle, order, "j", p, reason=reason)


def both(principle: str, p: float | None, q: float | None) -> list[Verdict]:
    return [verdict(principle, ORDERS[0], p), verdict(principle, ORDERS[1], q)]


def test_the_mean_is_over_orders_then_principles() -> None:
    (row,) = aggregate([PAIR], both("x", 0.9, 0.7) + both("y", 0.4, 0.2))
    assert row.p_first == pytest.approx((0.8 + 0.3) / 2)
    assert (row.status, row.verdicts, row.abstained) == ("preferred", 4, 0)
    assert dict(zip(row.principles, row.p_principles, strict=True)) == pytest.approx(
        {"x": 0.8, "y": 0.3}
    )


def test_weights_are_relative() -> None:
    verdicts = both("x", 1.0, 1.0) + both("y", 0.0, 0.0)
    (row,) = aggregate(
        [PAIR], verdicts, PreferenceSettings(aggregate="weighted"), weights={"x": 3, "y": 1}
    )
    assert row.p_first == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="no weight for y"):
        aggregate([PAIR], verdicts, PreferenceSettings(aggregate="weighted"), weights={"x": 3})


def test_a_principle_with_nothing_to_say_is_masked_by_its_margin() -> None:
    (row,) = aggregate(
        [PAIR], both("x", 0.9, 0.9) + both("y", 0.55, 0.5), PreferenceSettings(principle_margin=0.1)
    )
    assert row.principles == ("x",)
    assert row.p_first == pytest.approx(0.9)
    (row,) = aggregate([PAIR], both("y", 0.55, 0.5), PreferenceSettings(principle_margin=0.1))
    assert (row.status, row.p_first) == ("tie", None)


def test_half_a_pair_of_orders_does_not_count() -> None:
    (row,) = aggregate([PAIR], both("x", 0.9, None) + both("y", 0.2, 0.2))
    assert row.principles == ("y",)
    assert row.abstained == 1
    (row,) = aggregate([PAIR], both("x", 0.9, None))
    assert (row.status, row.p_first) == ("abstained", None)
    (row,) = aggregate([PAIR], [verdict("x", "first_second", 0.9)], orders=("first_second",))
    assert row.p_first == 0.9


@pytest.mark.parametrize(("p", "status"), [(0.5, "tie"), (0.54, "tie"), (0.56, "preferred")])
def test_ties_never_become_chosen_and_rejected(p: float, status: str) -> None:
    (row,) = aggregate([PAIR], both("x", p, p), PreferenceSettings(min_margin=0.05))
    assert row.status == status


def test_a_pair_without_verdicts_is_abstained() -> None:
    (row,) = aggregate([PAIR], [])
    assert (row.status, row.verdicts) == ("abstained", 0)


def test_hard_labels_round() -> None:
    (row,) = aggregate([PAIR], both("x", 0.3, 0.4), PreferenceSettings(soft=False))
    assert row.p_first == 0.0
    assert (row.chosen, row.p_chosen) == ("b", 1.0)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Input should be 'mean', 'weighted', .*, got 'median'"):
        aggregate([PAIR], [], PreferenceSettings(aggregate="median"))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_a_pair_and_its_mirror_sum_to_one(values: list[tuple[float, float]]) -> None:
    verdicts = [v for i, (p, q) in enumerate(values) for v in both(f"x{i}", p, q)]
    (row,) = aggregate([PAIR], verdicts)
    (mirror,) = aggregate([PAIR.swap()], [v.swap() for v in verdicts])
    assert row.p_first is not None
    assert mirror.p_first is not None
    assert row.p_first + mirror.p_first == pytest.approx(1.0)
