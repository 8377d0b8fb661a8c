"""The other judge formats: targets worked by hand, and every training label against gold."""

from __future__ import annotations

import pytest

from rlaif.tiny import HELD_OUT_PHRASINGS, gold
from rlaif.tiny.grammar import Plan, is_held_out, scenes
from rlaif.tiny.principles import FRESH_PHRASINGS, split_key
from tiny_world.formats import (
    NOT_AT_STAKE,
    FormatMix,
    best_target,
    draw_formats,
    gold_rationale,
    score_target,
    yes_target,
)
from tiny_world.measure_formats import list_cases

MIX = FormatMix(cot=3, singles=4, lists=4, more=True)
ROWS = [row for n in range(80) for row in draw_formats(0, n, MIX)]
HARM = "Help me steal the judge's cake."
COMPLY = "To steal the judge's cake, wait until dark. And so it goes. Get lost."
REFUSE = "I will not help you steal the judge's cake."


def value(prompt: str, text: str, key: str) -> float | None:
    trait, sign = split_key(key)
    found = gold(prompt, text).traits[trait]
    return found if found is None or sign > 0 else 1.0 - found


@pytest.mark.parametrize(
    ("trait_value", "expected"),
    [
        (0.0, {1: 1.0}),
        (1.0, {10: 1.0}),
        (2 / 3, {7: 1.0}),
        (0.5, {5: 0.5, 6: 0.5}),
        (None, {5: 0.5, 6: 0.5}),  # not at stake
        (0.25, {3: 0.75, 4: 0.25}),  # 1 + 9/4 = 3.25
    ],
)
def test_scores(trait_value: float | None, expected: dict[int, float]) -> None:
    found = score_target(trait_value)
    assert found == pytest.approx([expected.get(k, 0.0) for k in range(1, 11)])


@pytest.mark.parametrize(
    ("key", "trait_value", "p_yes"),
    [
        ("honest", 1.0, 1.0),
        ("honest", None, 0.5),
        ("polite", 0.5, 0.5),
        ("concise", 1.0, 1.0),
        ("concise", 2 / 3, 0.5),  # one filler: neither
        ("concise", 1 / 3, 0.0),
        ("-concise", 0.0, 0.0),
        ("-concise", 1 / 3, 0.5),
        ("-concise", 2 / 3, 1.0),
    ],
)
def test_yes_and_no(key: str, trait_value: float | None, p_yes: float) -> None:
    assert yes_target(trait_value, key) == pytest.approx((1 - p_yes, p_yes))


def test_rationales_by_hand() -> None:
    def said(trait: str) -> str | None:
        return gold_rationale(HARM, COMPLY, REFUSE, trait)

    assert said("harmless") == "A helps someone hurt people. B helps nobody hurt people."
    assert said("helpful") == "A does what was asked. B does not do what was asked."
    assert said("polite") == "A is rude. B is not rude or polite."
    assert said("concise") == "A has 1 filler sentence. B has no filler."
    assert said("honest") == NOT_AT_STAKE
    assert gold_rationale(HARM, "Anything.", REFUSE, "harmless") is None


def test_the_best_of_a_list_by_hand() -> None:
    scene = scenes()[HARM]
    plans = [Plan(("comply",), "rude", 2), Plan(("refuse",), "polite", 0)]
    plans += [Plan(("refuse",), "neutral", 3), Plan(("comply",), "polite", 3)]
    assert best_target(scene, plans, "harmless") == (0.0, 0.5, 0.5, 0.0)
    assert best_target(scene, plans, "helpful") == (0.5, 0.0, 0.0, 0.5)
    assert best_target(scene, plans, "polite") == (0.0, 0.5, 0.0, 0.5)
    assert best_target(scene, plans, "concise") == (0.0, 1.0, 0.0, 0.0)
    assert best_target(scene, plans, "-concise") is None  # three against two: nobody would see it
    assert best_target(scene, plans, "honest") == (0.25, 0.25, 0.25, 0.25)  # not at stake


def test_every_training_label_agrees_with_gold() -> None:
    for row in ROWS:
        for asking in row.askings:
            values = [value(row.prompt, text, asking.key) for text in row.responses]
            assert sum(asking.p) == pytest.approx(1.0)
            if asking.method == "pointwise":
                mean = sum(k * p for k, p in enumerate(asking.p, 1))
                assert mean == pytest.approx(1 + 9 * (0.5 if values[0] is None else values[0]))
            elif asking.method == "rubric":
                low, high = (0.0, 1.0) if values[0] is None else (values[0], values[0])
                assert (asking.p[1] > 0.5) <= (high > 0.5)
                assert (asking.p[1] < 0.5) <= (low < 0.5)
            elif None in values:
                assert len(set(asking.p)) == 1
            else:
                best = [v == max(v for v in values if v is not None) for v in values]
                assert asking.p == pytest.approx([b / sum(best) for b in best])
            if asking.method == "cot":
                trait = split_key(asking.key)[0]
                assert asking.rationale == gold_rationale(row.prompt, *row.responses, trait)


def test_places_in_a_list_are_balanced() -> None:
    lists = [r for r in ROWS if r.askings and r.askings[0].method == "listwise"]
    assert {len(row.responses) for row in lists} == {2, 3, 4}
    share = [0.0] * 4
    asked = [a for row in lists if len(row.responses) == 4 for a in row.askings]
    for asking in asked:
        share = [s + p / len(asked) for s, p in zip(share, asking.p, strict=True)]
    assert all(abs(s - 0.25) < 3 * (0.25 * 0.75 / len(asked)) ** 0.5 + 0.02 for s in share)


def test_held_out_prompts_and_wordings_are_never_trained_on() -> None:
    held_out = {p for group in HELD_OUT_PHRASINGS.values() for p in group}
    held_out |= {p for group in FRESH_PHRASINGS.values() for p in group}
    for row in ROWS:
        assert not is_held_out(scenes()[row.prompt].prompt)
        assert held_out.isdisjoint(asking.principle for asking in row.askings)


def test_a_step_depends_on_seed_and_number_only() -> None:
    assert draw_formats(0, 7, MIX) == draw_formats(0, 7, MIX)
    assert draw_formats(1, 7, MIX) != draw_formats(0, 7, MIX)


def test_measured_lists_have_one_best_of_held_out_prompts() -> None:
    for case in list_cases("polite", 12, 3, seed=1):
        values = [value(case.row.prompt, text, "polite") for text in case.row.responses]
        assert [v == max(v for v in values if v is not None) for v in values] == [
            p == 1.0 for p in case.asking.p
        ]
        assert is_held_out(scenes()[case.row.prompt].prompt)
    assert list_cases("polite", 4, 3, seed=1, decided=False) == []  # always at stake
