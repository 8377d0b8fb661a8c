"""Two runs' labels of the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.evaluation.compare import THE_RULE, Comparison, LabelRule, flipped, joined, moves
from rlaif.judges.ensembles import RULES, Rule
from rlaif.records import Pair, Preference, Prompt


def labelled(
    number: int, opinions: Mapping[str, float], rule: Rule = "mean", swap: bool = False
) -> Preference:
    """The preference that a rule makes of some principles' opinions."""
    p = LabelRule(rule)(opinions)
    pair = Pair(Prompt.user(f"question {number}"), "an answer", "better not")
    status = "tie" if p == 0.5 else "preferred"
    made = Preference(pair, status, p, tuple(opinions), tuple(opinions.values()))  # type: ignore[arg-type]
    return made.swap() if swap else made


def compared(
    a: Sequence[Preference], b: Sequence[Preference], *rules: LabelRule, keep: int = 20
) -> Comparison:
    rows = {row.pair.id: row for row in b}
    found = Comparison((rules[0], rules[1]) if rules else (LabelRule(), LabelRule()), keep=keep)
    for left, right in joined([a], lambda ids: {i: rows[i] for i in ids if i in rows}):
        found.add(left, right)
    return found


def test_agreement_and_kappa_are_those_worked_by_hand() -> None:
    # 10 pairs, both sides: A 6 first, 4 second; B agrees on 4 of the first and 3 of the second.
    a = [labelled(i, {"x": 0.9 if i < 6 else 0.1}) for i in range(10)]
    b = [labelled(i, {"x": 0.8 if i < 4 or i == 9 else 0.2}) for i in range(10)]
    found = compared(a, b)
    agreed = found.agreement()
    assert agreed is not None
    assert agreed.same_side.value == pytest.approx(0.7)
    # p_o = .7, p_e = .6·.5 + .4·.5 = .5, κ = .2/.5
    assert agreed.kappa.value == pytest.approx(0.4)
    assert found.flip_count == 3
    assert found.sides == {
        ("first", "first"): 4,
        ("first", "second"): 2,
        ("second", "first"): 1,
        ("second", "second"): 3,
    }
    assert found.by_principle()["x"].same_side == agreed.same_side


def test_the_principle_that_turned_a_pair_is_the_one_that_moved_it_farthest() -> None:
    a = labelled(0, {"harm": 0.9, "help": 0.6, "style": 0.5})
    b = labelled(0, {"harm": 0.1, "help": 0.5, "style": 0.6})
    flip = flipped(a, b, (LabelRule(), LabelRule()))
    assert flip is not None
    assert flip.turned_by == "harm"
    assert flip.alone  # (0.1 + 0.6 + 0.5) / 3 = 0.4: the other side
    assert flip.moves == pytest.approx({"harm": -0.8 / 3, "help": -0.1 / 3, "style": 0.1 / 3})
    assert sum(flip.moves.values()) == pytest.approx(flip.p[1] - flip.p[0])


def test_one_alone_may_not_be_enough() -> None:
    a = labelled(0, {"x": 0.8, "y": 0.8})
    b = labelled(0, {"x": 0.3, "y": 0.4})
    flip = flipped(a, b, (LabelRule(), LabelRule()))
    assert flip is not None
    assert (flip.turned_by, flip.alone) == ("x", False)  # 0.55 with the x of B


def test_a_principle_that_only_one_run_has_turns_pairs_too() -> None:
    a = labelled(0, {"x": 0.6})
    b = labelled(0, {"x": 0.6, "new": 0.1})
    found = compared([a], [b])
    (flip,) = found.flips
    assert (flip.turned_by, flip.alone) == ("new", True)
    back = flipped(b, a, (LabelRule(), LabelRule()))
    assert back is not None
    assert (back.turned_by, back.alone) == ("new", True)


def test_another_rule_on_the_same_opinions_is_named() -> None:
    opinions = {"x": 0.55, "y": 0.55, "z": 0.1}
    rules = (LabelRule("majority"), LabelRule("mean"))
    found = compared([labelled(0, opinions, "majority")], [labelled(0, opinions)], *rules)
    (flip,) = found.flips
    assert (flip.turned_by, flip.alone) == (THE_RULE, True)
    assert list(flip.moves) == [THE_RULE]


def test_weights_count_and_those_of_the_other_run_stand_in() -> None:
    before, after = {"x": 0.8}, {"x": 0.8, "y": 0.2}
    found = moves(
        before, after, LabelRule("weighted", {"x": 1}), LabelRule("weighted", {"x": 1, "y": 3})
    )
    assert found == pytest.approx({"y": (0.8 + 3 * 0.2) / 4 - 0.8})


def test_a_pair_that_stands_the_other_way_round_is_the_same_pair() -> None:
    a = [labelled(i, {"x": 0.9}) for i in range(3)]
    b = [labelled(i, {"x": 0.9}, swap=i == 1) for i in range(2)]
    found = compared(a, b)
    assert (found.both, found.only_a, found.flip_count) == (2, 1, 0)
    assert found.change == pytest.approx(0)


def test_ties_and_abstentions_are_neither_agreement_nor_flips() -> None:
    pair = Pair(Prompt.user("q"), "a", "b")
    none = Preference(pair, "abstained", None, reason="low_mass")
    tie = Preference(pair, "tie", 0.5)
    sure = Preference(pair, "preferred", 0.9, ("x",), (0.9,))
    found = Comparison()
    for other in (none, tie):
        assert found.add(sure, other) is None
    assert found.agreement() is None
    assert found.change == pytest.approx(0.4)  # of the pair that has two labels
    assert found.result()["labels"] == [
        {"a": "first", "b": "tie", "pairs": 1},
        {"a": "first", "b": "abstained", "pairs": 1},
    ]


def test_the_flips_kept_are_those_farthest_apart() -> None:
    a = [labelled(i, {"x": 0.5 + i / 20}) for i in range(1, 9)]
    b = [labelled(i, {"x": 0.4}) for i in range(1, 9)]
    found = compared(a, b, keep=3)
    assert found.flip_count == 8
    assert [round(flip.change, 2) for flip in found.flips] == [0.5, 0.45, 0.4]


P = st.floats(0.01, 0.99)


@given(
    st.dictionaries(st.sampled_from("abc"), P, min_size=1),
    st.dictionaries(st.sampled_from("abc"), P, min_size=1),
    st.sampled_from([r for r in RULES if r != "weighted"]),
)
def test_the_mirrored_pair_moves_the_other_way(
    before: dict[str, float], after: dict[str, float], rule: Rule
) -> None:
    one = moves(before, after, LabelRule(rule), LabelRule())
    mirror = moves(
        {k: 1 - p for k, p in before.items()},
        {k: 1 - p for k, p in after.items()},
        LabelRule(rule),
        LabelRule(),
    )
    for name in {**one, **mirror}:
        assert one.get(name, 0) == pytest.approx(-mirror.get(name, 0), abs=1e-6)


@given(st.floats(0, 1), st.lists(P, max_size=3))
def test_swapping_a_label_twice_is_nothing(p: float, opinions: list[float]) -> None:
    names = tuple(map(str, range(len(opinions))))
    pair = Pair(Prompt.user("q"), "a", "b", label=0.25)
    row = Preference(pair, "preferred", p, names, tuple(opinions), p_raw=p)
    twice = row.swap().swap()
    assert twice.pair == pair
    assert twice.p_first == pytest.approx(p)
    assert twice.p_principles == pytest.approx(tuple(opinions))
    assert row.swap().p_raw == pytest.approx(1 - p)
    if p != 0.5:
        assert row.swap().chosen == row.chosen
