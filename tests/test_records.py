from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.records import Message, Pair, Preference, Prompt, Verdict, content_id

texts = st.text(max_size=40)
probabilities = st.floats(0, 1, allow_nan=False)


@given(texts, texts, texts, probabilities)
def test_swapping_a_pair_twice_gives_it_back(prompt: str, a: str, b: str, label: float) -> None:
    pair = Pair(Prompt.user(prompt), a, b, label)
    again = pair.swap().swap()
    assert (again.first, again.second, again.id) == (a, b, pair.id)
    assert again.label == pytest.approx(label, abs=1e-15)


@given(texts, texts, texts)
def test_a_pair_and_its_mirror_have_ids_that_name_each_other(prompt: str, a: str, b: str) -> None:
    pair = Pair(Prompt.user(prompt), a, b)
    ids = {pair.id, pair.swap().id}
    assert len({i.removeprefix("~") for i in ids}) == 1
    assert len(ids) == (1 if a == b else 2)


@given(probabilities)
def test_swapping_a_verdict_tells_the_same_of_the_mirrored_pair(p: float) -> None:
    pair = Pair(Prompt.user("q"), "b", "a")
    verdict = Verdict("k", pair.id, "x", "first_second", "j", p, -1.0, -2.0, 0.5)
    swapped = verdict.swap()
    assert swapped.pair_id == pair.swap().id
    assert swapped.p_first == 1.0 - p
    assert swapped.order == "second_first"
    assert (swapped.logprob_first, swapped.logprob_second) == (-2.0, -1.0)
    twice = swapped.swap()
    assert twice.pair_id == verdict.pair_id
    assert twice.p_first == pytest.approx(p, abs=1e-15)


def test_a_verdict_is_a_probability_or_a_reason_never_both_or_neither() -> None:
    with pytest.raises(ValueError, match="either p_first or a reason"):
        Verdict("k", "p", "x", "first_second", "j", None)
    with pytest.raises(ValueError, match="either p_first or a reason"):
        Verdict("k", "p", "x", "first_second", "j", 0.5, reason="too_long")
    abstention = Verdict("k", "p", "x", "first_second", "j", None, reason="too_long")
    assert abstention.abstained
    assert abstention.swap().reason == "too_long"


def test_a_tie_has_no_chosen_completion() -> None:
    pair = Pair(Prompt.user("q"), "a", "b")
    tie = Preference(pair, "tie", 0.5)
    with pytest.raises(ValueError, match="no chosen completion"):
        _ = tie.chosen
    second = Preference(pair, "preferred", 0.2)
    assert (second.chosen, second.rejected) == ("b", "a")
    assert second.p_chosen == pytest.approx(0.8)


def test_ids_are_of_content_alone() -> None:
    here = Prompt((Message("user", "hi"),), source="a.jsonl:1")
    there = Prompt((Message("user", "hi"),), source="b.jsonl:9")
    assert here.id == there.id
    assert here.id != Prompt.user("hi ").id
    assert content_id("a", "bc") != content_id("ab", "c")
    assert len(content_id()) == 20
    assert content_id("\ud800") != content_id("?")  # a lone surrogate is text like any other
