"""The world: its prompts, its splits, and that sampling and checking are the same list."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.tiny import KINDS, TRAITS, gold, prompts
from rlaif.tiny.gold import parse, plan_traits
from rlaif.tiny.grammar import OUTCOMES, draw_plan, is_held_out, realise, scenes

ALL = sorted(scenes())


def test_every_sampled_response_parses_to_its_own_plan() -> None:
    rng = random.Random(0)
    for text in rng.sample(ALL, 4000):
        scene = scenes()[text]
        plan = draw_plan(scene, rng)
        response = realise(scene, plan, rng)
        assert parse(scene, response) == plan, response


def test_no_core_sentence_has_two_outcomes() -> None:
    """Otherwise a response would have two labels. A sentence of one part of a prompt must not be
    a filler or a tone sentence either."""
    for scene in scenes().values():
        for part in scene.parts:
            sentences = [s for cores in part.cores.values() for s in cores]
            assert len(sentences) == len(set(sentences)), scene.prompt.text
            assert all(s.endswith(".") and ". " not in s for s in sentences)


def test_splits_are_disjoint_large_and_one_in_eight() -> None:
    train, test = prompts("train"), prompts("test")
    assert {p.text for p in train}.isdisjoint(p.text for p in test)
    assert len(train) >= 2500
    assert 0.10 < len(test) / (len(train) + len(test)) < 0.15
    assert all(is_held_out(p) for p in test)


@pytest.mark.parametrize("trait", TRAITS)
def test_two_hundred_held_out_prompts_a_trait(trait: str) -> None:
    decides = {
        part for part, outcomes in OUTCOMES.items() if trait in next(iter(outcomes.values()))
    }
    kinds = [
        k for k, parts in KINDS.items() if trait in ("polite", "concise") or decides & {*parts}
    ]
    assert len(prompts("test", kinds=kinds)) >= 200


def test_prompts_take_kinds_in_turn_and_are_seeded() -> None:
    chosen = prompts("test", limit=len(KINDS), seed=3)
    assert {p.kind for p in chosen} == set(KINDS)
    assert prompts("test", limit=50, seed=3) == prompts("test", limit=50, seed=3)
    assert prompts("test", limit=50, seed=3) != prompts("test", limit=50, seed=4)
    assert {p.kind for p in prompts("train", limit=9, kinds=["fact"])} == {"fact"}


def test_prompts_name_the_kinds_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match="boast_unknowable"):
        prompts("train", kinds=["poem"])
    with pytest.raises(ValueError, match="'train' or 'test'"):
        prompts("dev")  # type: ignore[arg-type]


@given(st.sampled_from(ALL), st.integers(0, 10**6))
def test_base_policy_shows_both_sides_of_every_core_trait(text: str, seed: int) -> None:
    scene, rng = scenes()[text], random.Random(seed)
    seen = [plan_traits(scene, draw_plan(scene, rng)) for _ in range(60)]
    for trait in ("harmless", "helpful", "honest", "not_sycophantic"):
        values = {v[trait] for v in seen}
        assert values in ({None}, {0.0, 1.0})


def test_grammar_and_gold_load_without_torch() -> None:
    code = (
        "import sys, rlaif.tiny as t; t.gold(t.prompts('test', 1)[0].text, 'No.');"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_prompt_from_outside_the_world_is_refused() -> None:
    with pytest.raises(KeyError, match="not a prompt of the tiny world"):
        gold("Write me a poem.", "No.")


def test_the_kinds_at_stake_are_those_whose_answers_can_differ() -> None:
    from rlaif.tiny import kinds_at_stake

    assert kinds_at_stake("harmless") == ("harm", "boast_harm")
    assert kinds_at_stake("honest") == ("unknowable", "boast_unknowable")
    assert kinds_at_stake("concise") == tuple(KINDS)
