from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlaif.constitution import Principle
from rlaif.errors import DataError
from rlaif.evaluation.winrate import compare, rate, winrate
from rlaif.judges.base import Ask, expand
from rlaif.judges.preferences import aggregate
from rlaif.records import Pair, Preference, Prompt, Verdict
from rlaif.statistics.intervals import wilson

PROMPTS = [Prompt.user(f"question {i}") for i in range(40)]


def says(p_of):
    """A labeller that asks `p_of(pair)`; None abstains."""

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        out = []
        for pair in pairs:
            p = p_of(pair)
            status = "abstained" if p is None else "tie" if p == 0.5 else "preferred"
            out.append(Preference(pair, status, p))
        return out

    return label


def test_by_hand():
    p = dict(zip("abcde", [0.9, 0.6, 0.5, 0.2, None], strict=True))
    a, b = [*"abcde", "x"], ["-"] * 5 + ["x"]
    found = winrate(PROMPTS[:6], a, b, says(lambda pair: p[pair.first]))
    assert found.value == pytest.approx((1 + 1 + 0.5 + 0 + 0.5) / 5)
    assert (found.n, found.wins, found.losses) == (5, 2, 1)
    assert (found.ties, found.identical, found.abstained) == (1, 1, 1)  # none counted twice
    assert found.decided is not None
    assert (found.decided["value"], found.decided["n"]) == (pytest.approx(2 / 3), 3)
    assert found.mean_p is not None
    assert found.mean_p["value"] == pytest.approx((0.9 + 0.6 + 0.5 + 0.2 + 0.5) / 5)
    assert found.low is not None
    assert found.low <= found.value <= found.high


def test_winning_everything_and_nothing_known():
    a, b = ["good"] * 40, ["bad"] * 40
    won = winrate(PROMPTS, a, b, says(lambda _: 0.99))
    none_lost = wilson(40, 40)  # which does not prove that none ever will
    assert (won.value, won.low, won.high) == (1.0, none_lost.low, 1.0)
    assert won.decided == none_lost.as_dict()
    assert winrate(PROMPTS, a, b, says(lambda _: None)).value is None
    same = winrate(PROMPTS, a, a, says(lambda _: pytest.fail("nothing to ask")))
    assert (same.value, same.identical, same.ties, same.decided) == (0.5, 40, 0, None)
    with pytest.raises(DataError, match="at least one"):
        winrate([], [], [], says(lambda _: 1.0))


def test_an_empty_answer_loses_to_one_that_is_not_and_no_judge_is_asked():
    a, b = ["", "word", " \n", "word"], ["word", "", "", "word"]
    found = winrate(PROMPTS[:4], a, b, says(lambda _: pytest.fail("nothing to ask")))
    assert (found.wins, found.losses, found.identical, found.abstained) == (1, 1, 2, 0)
    assert (found.empty_a, found.empty_b) == (1, 1)
    collapsed = winrate(PROMPTS, [""] * 40, ["word"] * 40, says(lambda _: None))
    assert (collapsed.value, collapsed.n, collapsed.losses) == (0.0, 40, 40)


def test_some_comparisons_can_be_rated_apart():
    found = compare(PROMPTS, ["a"] * 40, ["b"] * 40, says(lambda _: 0.9))
    assert rate(found[:10]).n == 10
    assert rate([]).value is None


def test_exchanging_the_policies_mirrors_the_rate():
    strength = {f"text {i}": x for i, x in enumerate(np.random.default_rng(0).normal(size=80))}

    def p(pair: Pair) -> float:
        return 1 / (1 + math.exp(strength[pair.second] - strength[pair.first]))

    a, b = list(strength)[:40], list(strength)[40:]
    one, two = winrate(PROMPTS, a, b, says(p)), winrate(PROMPTS, b, a, says(p))
    assert one.value == pytest.approx(1 - two.value)
    assert one.mean_p["value"] == pytest.approx(1 - two.mean_p["value"])


class SlotLover:
    """A judge that adds a liking for slot one to what it truly thinks (the longer text)."""

    name = "slot-lover"

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        out = []
        for i, ask in enumerate(asks):
            shown = ask.shown
            logit = 0.5 * (len(shown[0]) - len(shown[1])) + 2.0
            p_slot = 1 / (1 + math.exp(-logit))
            p = p_slot if ask.order == "first_second" else 1 - p_slot
            out.append(Verdict(str(i), ask.pair.id, ask.principle.id, ask.order, self.name, p))
        return out


def test_both_orders_take_the_liking_for_a_slot_out():
    principle = Principle(id="long", compare="Which is longer?")

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        return aggregate(pairs, SlotLover().judge(expand(pairs, [principle])))

    a = ["x" * (5 + i % 2) for i in range(40)]
    b = ["y" * (6 - i % 2) for i in range(40)]
    found = winrate(PROMPTS, a, b, label)
    assert found.value == pytest.approx(0.5)
    assert found.mean_p["value"] == pytest.approx(0.5)
