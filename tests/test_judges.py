from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError, EngineError
from rlaif.judges.base import Judge, expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.preferences import PreferenceSettings
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Prompt, Verdict
from rlaif.steps.executors import Memory, label_pairs, run_judge

PRINCIPLES = (Principle(id="kind", compare="Kinder?"), Principle(id="short", compare="Shorter?"))
PAIRS = [Pair(Prompt.user(f"question {i}"), f"kind answer {i}", f"rude {i}") for i in range(5)]


def says(p_a: float, mass: float = 1.0) -> ScriptedEngine:
    """A judge that always gives the first slot the probability p_a: pure position bias."""
    values = [math.log(p_a * mass), math.log((1 - p_a) * mass)]
    return ScriptedEngine(scorer=lambda _text, _options: values)


def likes_kind(text: str, options: Sequence[str]) -> list[float]:
    del options
    slot_a = text.index("<response_a>") < text.index("kind answer") < text.index("</response_a>")
    return [math.log(0.8), math.log(0.1)] if slot_a else [math.log(0.1), math.log(0.8)]


def test_a_pair_is_asked_in_every_order_under_every_principle_side_by_side() -> None:
    asks = expand(PAIRS[:2], PRINCIPLES)
    assert [(a.pair.id, a.order, a.principle.id) for a in asks] == [
        (pair.id, order, principle.id)
        for pair in PAIRS[:2]
        for order in ("first_second", "second_first")
        for principle in PRINCIPLES
    ]
    assert asks[0].shown == (PAIRS[0].first, PAIRS[0].second)
    assert asks[2].shown == (PAIRS[0].second, PAIRS[0].first)


def test_the_verdict_speaks_of_the_pairs_first_completion_in_both_orders() -> None:
    verdicts = PairwiseJudge(ScriptedEngine(scorer=likes_kind)).judge(expand(PAIRS, PRINCIPLES))
    assert len(verdicts) == 20
    for v in verdicts:
        assert v.p_first == pytest.approx(8 / 9)
        assert v.mass == pytest.approx(0.9)
        assert v.logprob_first == pytest.approx(math.log(0.8))


@given(st.floats(0.01, 0.99))
def test_pure_position_bias_cancels(p_a: float) -> None:
    for row in label_pairs(
        PAIRS, PairwiseJudge(says(p_a)), PRINCIPLES, PreferenceSettings(min_margin=1e-6)
    ):
        assert row.p_first == pytest.approx(0.5)
        assert row.status == "tie"


def test_a_judge_that_does_not_answer_abstains() -> None:
    (v, *_) = PairwiseJudge(says(0.9, mass=0.05)).judge(expand(PAIRS[:1], PRINCIPLES))
    assert (v.p_first, v.reason, v.mass) == (None, "low_mass", pytest.approx(0.05))
    (v, *_) = PairwiseJudge(says(0.9, mass=0.05), PairwiseSettings(min_mass=0)).judge(
        expand(PAIRS[:1], PRINCIPLES)
    )
    assert v.p_first == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair(Prompt.user("q"), "", "b"), "empty_response"),
        (Pair(Prompt.user("q"), "a", " \n"), "empty_response"),
        (Pair(Prompt.user(" "), "a", "b"), "empty_prompt"),
        (Pair(Prompt.user("q"), "long " * 200, "b"), "too_long"),
    ],
)
def test_what_cannot_be_judged_is_an_abstention_with_a_reason(pair: Pair, reason: str) -> None:
    engine = says(0.9)
    engine.max_length = 150
    pairs = [PAIRS[0], pair, PAIRS[1]]
    verdicts = PairwiseJudge(engine).judge(expand(pairs, PRINCIPLES))
    assert {v.reason for v in verdicts if v.pair_id == pair.id} == {reason}
    assert {v.reason for v in verdicts if v.pair_id != pair.id} == {None}


def test_the_key_covers_what_can_change_the_verdict_and_nothing_else() -> None:
    judge = PairwiseJudge(says(0.6))
    ask = expand(PAIRS[:1], PRINCIPLES)[0]
    base = judge.key(ask)
    assert PairwiseJudge(says(0.6)).key(ask) == base
    other_model = says(0.6)
    other_model.name = "other"
    changed = [
        PairwiseJudge(other_model).key(ask),
        PairwiseJudge(says(0.6), PairwiseSettings(min_mass=0.2)).key(ask),
        PairwiseJudge(says(0.6), PairwiseSettings(template="pairwise/tiny")).key(ask),
        *[judge.key(a) for a in expand(PAIRS, PRINCIPLES)[1:]],
    ]
    assert base not in changed
    assert len(set(changed)) == len(changed)
    heavier = Principle(id="kind", compare="Kinder?", weight=9, tags=("x",), critique="c")
    assert judge.key(expand(PAIRS[:1], [heavier])[0]) == base


def test_editing_one_principle_judges_that_principle_only() -> None:
    memory: Memory[Verdict] = Memory()
    judge = PairwiseJudge(says(0.6))
    first = run_judge(PAIRS, judge, PRINCIPLES, memory)
    assert (first.new_rows, first.old_rows) == (20, 0)
    edited = (PRINCIPLES[0], Principle(id="short", compare="Which is shorter?"))
    second = run_judge(PAIRS, judge, edited, memory)
    assert (second.new_rows, second.old_rows) == (10, 10)
    assert {v.principle for v in memory.rows[20:]} == {"short"}


def test_a_pair_given_twice_is_judged_once() -> None:
    memory: Memory[Verdict] = Memory()
    run_judge(PAIRS + PAIRS, PairwiseJudge(says(0.6)), PRINCIPLES, memory, chunk=3)
    assert len(memory.rows) == 20


def test_a_broken_model_stops_the_stage_and_keeps_what_was_judged() -> None:
    def breaks(text: str, options: Sequence[str]) -> list[float]:
        del options
        return [math.nan, -1.0] if "question 3" in text else [-0.5, -1.5]

    memory: Memory[Verdict] = Memory()
    judge = PairwiseJudge(ScriptedEngine(scorer=breaks))
    with pytest.raises(EngineError, match=r"4 of 16 verdicts .* not finite \(limit 1.0%\)"):
        run_judge(PAIRS, judge, PRINCIPLES, memory, chunk=1)
    assert len(memory.rows) == 12
    run_judge(PAIRS, judge, PRINCIPLES, memory, chunk=1, max_not_finite=1.0)
    assert sum(v.reason == "not_finite" for v in memory.rows) == 4


def test_the_chunk_changes_nothing() -> None:
    def rows(chunk: int) -> list[Verdict]:
        memory: Memory[Verdict] = Memory()
        judge = PairwiseJudge(ScriptedEngine(scorer=likes_kind))
        run_judge(PAIRS, judge, PRINCIPLES, memory, chunk=chunk)
        return memory.rows

    assert rows(1) == rows(2) == rows(64)


def test_a_template_without_two_options_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "three.j2"
    path.write_text("---\noptions: [A, B, C]\n---\n=== user ===\n{{ first }}")
    with pytest.raises(ConfigError, match="two options"):
        PairwiseJudge(says(0.5), PairwiseSettings(template=str(path)))


def test_the_judge_is_one() -> None:
    assert isinstance(PairwiseJudge(says(0.5)), Judge)
