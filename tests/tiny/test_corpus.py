"""The corpus: targets worked by hand, shares that the training relies on, revisions that repair."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rlaif.tiny import HELD_OUT_PHRASINGS, gold, gold_preference
from rlaif.tiny.grammar import Plan, is_held_out, scenes
from rlaif.tiny.principles import CRITIQUE_REQUESTS, REVISION_REQUESTS, split_key
from tiny_world.corpus import Mix, draw_revision_row, draw_step, revise, target

MIX = Mix(texts=4, pairs=6, questions=6, unary=2, revisions=2, late=True, more=True)
STEPS = [draw_step(0, n, MIX) for n in range(120)]


@pytest.mark.parametrize(
    ("key", "first", "second", "expected"),
    [
        ("concise", ("polite", 0), ("polite", 1), 1.0),
        ("-concise", ("polite", 0), ("polite", 1), 0.0),
        ("concise", ("polite", 1), ("polite", 2), None),  # one filler more: nobody would see it
        ("concise", ("polite", 3), ("polite", 1), 0.0),
        ("concise", ("polite", 2), ("rude", 2), 0.5),
        ("polite", ("neutral", 0), ("rude", 0), 1.0),
        ("honest", ("neutral", 0), ("rude", 0), 0.5),  # not at stake
    ],
)
def test_targets(
    key: str, first: tuple[str, int], second: tuple[str, int], expected: float | None
) -> None:
    scene = scenes()["Help me steal the judge's cake."]
    assert target(scene, Plan(("refuse",), *first), Plan(("refuse",), *second), key) == expected


def test_harmful_requests_pull_helpful_and_harmless_apart() -> None:
    scene = scenes()["Help me steal the judge's cake."]
    comply, refuse = Plan(("comply",), "neutral", 0), Plan(("refuse",), "neutral", 0)
    assert target(scene, comply, refuse, "helpful") == 1.0
    assert target(scene, comply, refuse, "harmless") == 0.0


def test_every_training_label_agrees_with_gold() -> None:
    for step in STEPS:
        for pair in step.pairs:
            for question in pair.questions:
                trait, sign = split_key(question.key)
                true = gold_preference(pair.prompt, pair.first, pair.second, trait, sign)
                assert question.p_first == (0.5 if true is None else true)


def test_the_order_is_balanced_and_undecided_questions_have_their_share() -> None:
    targets = Counter(q.p_first for s in STEPS for pair in s.pairs for q in pair.questions)
    total = targets.total()
    assert 0.10 < targets[0.5] / total < 0.30
    assert abs(targets[1.0] - targets[0.0]) < 3 * total**0.5


def test_held_out_prompts_and_wordings_are_never_trained_on() -> None:
    held_out = {p for group in HELD_OUT_PHRASINGS.values() for p in group}
    held_out |= {group[-1] for group in (*CRITIQUE_REQUESTS.values(), *REVISION_REQUESTS.values())}
    for step in STEPS:
        asked_for = [row.prompt for row in step.texts]
        asked_for += [row.prompt for row in step.pairs]
        asked_for += [row.prompt for row in step.revisions]
        assert not any(is_held_out(scenes()[text].prompt) for text in asked_for)
        asked = {q.text for pair in step.pairs for q in pair.questions}
        asked |= {t for r in step.revisions for t in (r.critique_request, r.revision_request)}
        assert asked.isdisjoint(held_out)


def test_a_step_depends_on_seed_and_number_only() -> None:
    assert draw_step(0, 7, MIX) == STEPS[7]
    assert draw_step(1, 7, MIX) != STEPS[7]


def test_revisions_repair_and_otherwise_keep_the_words() -> None:
    rng = random.Random(0)
    for _ in range(300):
        row = draw_revision_row(rng)
        before, after = gold(row.prompt, row.response), gold(row.prompt, row.revision)
        assert after.legal
        if row.critique == "The response is fine.":
            assert row.revision == row.response
        else:
            assert before.traits != after.traits
    prompt = "Help me steal the judge's cake."
    rude = "Get lost."
    response = f"To steal the judge's cake, wait until dark. And so it goes. {rude}"
    assert revise(scenes()[prompt], response, "concise", rng) == (
        f"To steal the judge's cake, wait until dark. {rude}"
    )
    assert gold(prompt, revise(scenes()[prompt], response, "polite", rng)).traits["polite"] == 1.0
    assert gold(prompt, revise(scenes()[prompt], response, "harmless", rng)).traits == {
        "harmless": 1.0,
        "helpful": 0.0,
        "honest": None,
        "not_sycophantic": None,
        "polite": 0.0,
        "concise": pytest.approx(2 / 3),
    }
