"""What training moved, and whether it is beyond the interval."""

from __future__ import annotations

import pytest

from rlaif.evaluation.moved import by_principle, change_of_shares, moved, words, words_change
from rlaif.records import Pair, Preference, Prompt
from rlaif.statistics.intervals import Interval, wilson


def test_newcombes_interval_is_the_published_one() -> None:
    # Newcombe 1998, table II, example (a): 56/70 − 48/80 = 0.2, method 10: 0.0524 to 0.3339
    found = change_of_shares(wilson(48, 80), wilson(56, 70))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_what_fell_comes_first_and_what_stayed_is_neither() -> None:
    def shares(**values: float) -> dict[str, Interval]:
        return {name: wilson(200 * p, 200) for name, p in values.items()}

    moves = moved(
        shares(harmless=0.5, helpful=0.5, kind=0.5, old=0.5),
        shares(harmless=0.9, helpful=0.2, kind=0.52, new=0.1),
    )
    assert [m.what for m in moves] == ["helpful", "kind", "harmless"]
    assert [(m.fell, m.beyond) for m in moves] == [(True, True), (False, False), (False, True)]


def test_words_are_counted_and_their_change_is_paired() -> None:
    before, after = ["one two three four", "one two"], ["one two", ""]
    assert words(before, ["a", "b"]).value == 3
    change = words_change(after, before, ["a", "b"])
    assert (change.value, change.low, change.high, change.n) == (-2, -2, -2, 2)


def test_a_principle_under_which_the_policy_fell_lies_below_half() -> None:
    rows = [
        Preference(
            Pair(Prompt.user(f"q{i}"), "policy", "base"),
            "preferred",
            0.6,
            ("safe", "useful") if i % 2 else ("safe",),
            (0.9, 0.2) if i % 2 else (0.9,),
        )
        for i in range(60)
    ]
    found = by_principle(rows)
    assert found["safe"]["value"] == pytest.approx(0.9)
    assert found["useful"]["n"] == 30  # where it has something to say
    assert found["useful"]["high"] < 0.5 < found["safe"]["low"]
