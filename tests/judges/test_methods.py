"""Every method on a scripted engine, against numbers worked by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.constitution import Principle
from rlaif.engines.base import Generation, ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.files.templates import Rendered
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.base import Ask, Judge, expand
from rlaif.judges.cot import CotJudge
from rlaif.judges.listwise import ListwiseJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.reasoning import verdict_of
from rlaif.judges.scores import PointwiseJudge, RubricJudge, p_above
from rlaif.judges.settings import (
    AdaptiveSettings,
    CotSettings,
    ListwiseSettings,
    RationaleSettings,
    TextSettings,
)
from rlaif.judges.text import TextJudge, last_verdict, verdict_pattern
from rlaif.records import Pair, Prompt, Verdict
from rlaif.steps.executors import Memory, label_pairs, run_judge

KIND = Principle(id="kind", compare="Kinder?")
SHORT = Principle(id="short", compare="Shorter?")
PRINCIPLES = (KIND, SHORT)
PROMPT = Prompt.user("How are you?")
PAIR = Pair(PROMPT, "kind words", "rude words")


def logs(*ps: float) -> list[float]:
    return [math.log(p) for p in ps]


class Counting(ScriptedEngine):
    """A scripted engine that remembers the texts it was asked to score and to go on from."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.scored: list[str] = []
        self.continued: list[str] = []

    def score(self, prompts: Sequence[Rendered], options: Any) -> Any:
        self.scored += ["\n".join(m.text for m in p.messages) for p in prompts]
        return super().score(prompts, options)

    def generate(self, prompts: Sequence[Rendered], sampling: Any) -> Any:
        self.continued += ["\n".join(m.text for m in p.messages) for p in prompts]
        return super().generate(prompts, sampling)


def kind_is_a(text: str) -> bool:
    return text.index("<response_a>") < text.index("kind words") < text.index("</response_a>")


# ---- chain of thought


def reasons(text: str, i: int) -> str:
    return f"  Sample {i}: {'A' if kind_is_a(text) else 'B'} is kinder.\n"


def after_reasons(text: str, options: Sequence[str]) -> list[float]:
    assert list(options) == [" A", " B"]
    last = text.splitlines()[-3:]
    assert last[-1] == "Answer:"
    a_is_kinder = "A is kinder." in last[0]
    return logs(0.7, 0.2) if a_is_kinder else logs(0.2, 0.7)


def cot(**options: Any) -> CotJudge:
    engine = Counting(scorer=after_reasons, generator=reasons)
    return CotJudge(engine, CotSettings(rationale=RationaleSettings(**options)))


def test_a_rationale_is_written_first_and_the_labels_are_scored_after_it() -> None:
    judge = cot(clamp=None)
    verdicts = judge.judge(expand([PAIR], [KIND]))
    for verdict, letter in zip(verdicts, "AB", strict=True):
        assert verdict.p_first == pytest.approx(7 / 9)
        assert verdict.mass == pytest.approx(0.9)
        assert (verdict.logprob_first, verdict.logprob_second) == tuple(logs(0.7, 0.2))
        assert verdict.rationales == (f"Sample 0: {letter} is kinder.",)
        assert verdict.tokens == 6  # five words and the end, as the scripted engine counts
    engine = judge.engine
    assert isinstance(engine, Counting)
    assert [t.endswith("is kinder.\n\nAnswer:") for t in engine.scored] == [True, True]
    assert not any("is kinder" in t for t in engine.continued)


@pytest.mark.parametrize(("clamp", "p"), [(0.4, 0.6), (0.2, 7 / 9), (None, 7 / 9), (0.0, 7 / 9)])
def test_p_after_a_rationale_is_clamped(clamp: float | None, p: float) -> None:
    both = cot(clamp=clamp).judge(expand([PAIR, PAIR.swap()], [KIND]))
    assert [v.p_first for v in both] == pytest.approx([p, p, 1 - p, 1 - p])


def test_samples_are_averaged_each_clamped() -> None:
    def differ(text: str, i: int) -> str:
        return ("A" if kind_is_a(text) == (i < 3) else "B") + " is kinder."

    engine = ScriptedEngine(scorer=after_reasons, generator=differ)
    judge = CotJudge(engine, CotSettings(rationale=RationaleSettings(samples=4, clamp=0.3)))
    (verdict, _) = judge.judge(expand([PAIR], [KIND]))
    assert verdict.p_first == pytest.approx((3 * 0.7 + 0.3) / 4)
    assert len(verdict.rationales) == 4
    assert verdict.logprob_first == pytest.approx((3 * math.log(0.7) + math.log(0.2)) / 4)
    assert judge.sampling.temperature == 1
    assert cot().sampling.temperature == 0
    with pytest.raises(ConfigError, match="all the same"):
        RationaleSettings(samples=4, temperature=0)
    with pytest.raises(ConfigError, match=r"clamp.*less than 0\.5"):
        RationaleSettings(clamp=0.5)


class Cut(ScriptedEngine):
    """An engine of which every `nth` text is cut by the length limit."""

    nth = 1

    def generate(self, prompts: Sequence[Rendered], sampling: Any) -> list[list[Generation]]:
        rows = super().generate(prompts, sampling)
        return [
            [
                replace(g, finish_reason="length") if i % self.nth == 0 else g
                for i, g in enumerate(r)
            ]
            for r in rows
        ]


@pytest.mark.parametrize(("nth", "p"), [(1, None), (2, 0.6), (3, 0.6)])
def test_half_a_rationale_is_none(nth: int, p: float | None) -> None:
    engine = Cut(scorer=after_reasons, generator=reasons)
    engine.nth = nth
    (verdict, _) = CotJudge(engine, CotSettings(rationale=RationaleSettings(samples=4))).judge(
        expand([PAIR], [KIND])
    )
    assert (verdict.p_first, verdict.reason) == (p, None if p else "cut")
    assert len(verdict.rationales) == 4
    assert verdict.tokens > 0


def test_too_few_samples_that_answer_are_an_abstention() -> None:
    assert verdict_of([0.2, 0.6, "cut"]) == pytest.approx(0.4)
    assert verdict_of([0.2, "cut"]) == 0.2
    assert verdict_of([0.2, "low_mass", "cut", "low_mass"]) == "low_mass"


# ---- text


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A is kinder. [[A]]", 0),
        ("First I thought [[A]], but no: [[B]]", 1),
        ("Neither. [[C]].", 2),
        ("The answer is A.", None),  # nothing is hunted for
        ("[[A]] it was, but now [[D]]", None),  # the last verdict is not one of those offered
        ("[[ A ]]", None),
        ("[[A]", None),
        ("[[[A]]]", None),
        ("Score: 9 [[incorrect]]", None),
        ("[[A", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts_if_it_was_offered(text: str, index: int | None) -> None:
    options = ("[[A]]", "[[B]]", "[[C]]")
    assert last_verdict(text, options, verdict_pattern(options)) == index


@pytest.mark.parametrize("options", [("A", "B"), ("[[A]]", "(B)"), ("[[A]]", "B")])
def test_verdicts_without_brackets_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="the same brackets"):
        verdict_pattern(options)


def test_a_written_verdict_is_a_vote() -> None:
    def writes(text: str, i: int) -> str:
        best, worst = ("A", "B") if kind_is_a(text) else ("B", "A")
        return [f"So [[{best}]]", f"So [[{best}]]", f"So [[{worst}]]", "Hm [[C]]", "I cannot."][i]

    engine = ScriptedEngine(generator=writes)
    for n, p in ((1, 1.0), (2, 1.0), (3, 2 / 3), (4, 2.5 / 4), (5, 2.5 / 4)):
        judge = TextJudge(engine, TextSettings(rationale=RationaleSettings(samples=n)))
        both = judge.judge(expand([PAIR], [KIND]))
        assert [v.p_first for v in both] == pytest.approx([p, p])
        assert len(both[0].rationales) == n
    silent = TextJudge(ScriptedEngine(generator=lambda _t, _i: "The answer is (A)."))
    (verdict, _) = silent.judge(expand([PAIR], [KIND]))
    assert (verdict.p_first, verdict.reason) == (None, "unparsable")
    assert verdict.rationales == ("The answer is (A).",)
    cut = TextJudge(Cut(generator=lambda _t, _i: "[[A]] and"))
    assert cut.judge(expand([PAIR], [KIND]))[0].reason == "cut"


# ---- scores


def test_the_label_of_two_scores_is_worked_by_hand() -> None:
    # P(S1 > S2): 2 over 1: .5·.25; 3 over 1 or 2: .5·(.25 + .75). Equal: 2 and 2: .5·.75
    assert p_above((0, 0.5, 0.5), (0.25, 0.75, 0)) == pytest.approx(0.125 + 0.5 + 0.375 / 2)
    assert p_above((0.2, 0.8), (0.5, 0.5)) == pytest.approx(0.5 + (0.8 - 0.5) / 2)


levels = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3).map(
    lambda ws: tuple(w / sum(ws) for w in ws)
)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(levels, levels)
def test_the_label_of_two_scores_is_a_sum_over_all_outcomes(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    direct = sum(
        a * b * (1.0 if i > j else 0.5 if i == j else 0.0)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    )
    assert p_above(first, second) == pytest.approx(direct)
    assert p_above(first, second) + p_above(second, first) == pytest.approx(1.0)


MARKS = {"kind words": 9, "rude words": 2, "some words": 5}


def marks(text: str, options: Sequence[str]) -> list[float]:
    assert [o.strip() for o in options] == [str(k) for k in range(1, 11)]
    (mark,) = [m for words, m in MARKS.items() if words in text]
    # 0.6 on the mark, 0.3 on the one below; all at a mass of 0.9 and a bit
    return logs(*[0.6 if k == mark else 0.3 if k == mark - 1 else 1e-9 for k in range(1, 11)])


def test_pointwise_takes_the_expectation_over_the_marks() -> None:
    engine = Counting(scorer=marks)
    pairs = [PAIR, Pair(PROMPT, "some words", "kind words"), PAIR]
    verdicts = PointwiseJudge(engine).judge(expand(pairs, PRINCIPLES))
    assert len(engine.scored) == 3 * len(PRINCIPLES)  # three completions, each asked about once
    assert verdicts[0].score_first == pytest.approx(9 * 2 / 3 + 8 / 3, abs=1e-6)
    assert verdicts[0].score_second == pytest.approx(2 * 2 / 3 + 1 / 3, abs=1e-6)
    assert verdicts[0].p_first == pytest.approx(1.0, abs=1e-6)
    assert verdicts[0].mass == pytest.approx(0.9, abs=1e-6)
    assert verdicts[4].p_first == pytest.approx(0.0, abs=1e-6)


def test_rubric_asks_yes_or_no() -> None:
    def says(text: str, options: Sequence[str]) -> list[float]:
        assert list(options) == [" No", " Yes"]
        return logs(0.2, 0.6) if "kind words" in text else logs(0.6, 0.3)

    (verdict,) = RubricJudge(ScriptedEngine(scorer=says)).judge([Ask(PAIR, KIND, "first_second")])
    assert verdict.p_first == pytest.approx(0.5 + (0.75 - 1 / 3) / 2)
    assert verdict.score_first == pytest.approx(1.75)
    assert verdict.mass == pytest.approx(0.8)


def test_a_live_reward_is_the_mean_scaled_score() -> None:
    judge = PointwiseJudge(Counting(scorer=marks))
    texts = ["kind words", "", "rude words"]
    found = judge.rewards([PROMPT] * 3, texts, PRINCIPLES)
    expected = 2 * (9 * 2 / 3 + 8 / 3 - 1) / 9 - 1
    assert found == [pytest.approx(expected, abs=1e-6), None, pytest.approx(4 / 27 - 1, abs=1e-6)]
    low = PointwiseJudge(ScriptedEngine(scorer=lambda _t, _o: logs(*[0.001] * 10)))
    assert low.rewards([PROMPT], ["kind words"], [KIND]) == [None]
    (verdict, _) = low.judge(expand([PAIR], [KIND]))
    assert (verdict.p_first, verdict.reason) == (None, "low_mass")


# ---- listwise

WORTH = {"kind words": 2.0, "some words": 0.5, "rude words": -1.0, "no words": 0.0}


def best_of(bias: Sequence[float] = (0, 0, 0, 0)) -> Any:
    """First-choice probabilities by worth, each slot liked by so much more."""

    def says(text: str, options: Sequence[str]) -> list[float]:
        shown = re.findall(r"<response>\n(.+)\n</response>", text)
        assert len(shown) == len(options)
        values = [WORTH[s] + b for s, b in zip(shown, bias, strict=False)]
        total = math.log(sum(map(math.exp, values)))
        return [v - total for v in values]

    return says


LISTED = [Pair(PROMPT, a, b) for a in WORTH for b in WORTH if a < b]


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_rotations_take_out_a_liking_for_any_place(bias: list[float]) -> None:
    judge = ListwiseJudge(ScriptedEngine(scorer=best_of(bias)))
    for ask, verdict in zip(
        asks := expand(LISTED, [KIND], together=True), judge.judge(asks), strict=True
    ):
        gap = WORTH[ask.pair.first] - WORTH[ask.pair.second]
        assert verdict.p_first == pytest.approx(1 / (1 + math.exp(-gap)))
        assert verdict.score_first is not None
        assert verdict.score_second is not None
        assert verdict.score_first - verdict.score_second == pytest.approx(gap)


def test_a_list_is_shown_once_in_each_rotation_of_each_order() -> None:
    engine = Counting(scorer=best_of())
    ListwiseJudge(engine).judge(expand(LISTED, PRINCIPLES, together=True))
    assert len(engine.scored) == 4 * 2 * 2
    assert len(set(engine.scored)) == 4 * 2 * 2
    engine.scored.clear()
    ListwiseJudge(engine, ListwiseSettings(rotations=1)).judge(
        expand(LISTED, [KIND], together=True)
    )
    assert len(engine.scored) == 2


def test_the_list_is_part_of_the_key() -> None:
    judge = ListwiseJudge(ScriptedEngine(scorer=best_of()))
    whole = {a.pair.id: judge.key(a) for a in expand(LISTED, [KIND], together=True)}
    other = {a.pair.id: judge.key(a) for a in expand(LISTED[::-1], [KIND], together=True)}
    assert whole == other  # in whatever order the pairs stand
    part = {a.pair.id: judge.key(a) for a in expand(LISTED[:2], [KIND], together=True)}
    assert not set(part.values()) & set(whole.values())


def test_a_list_longer_than_the_labels_is_refused() -> None:
    texts = [f"text {i}" for i in range(18)]
    pairs = [Pair(PROMPT, a, texts[0]) for a in texts[1:]]
    judge = ListwiseJudge(ScriptedEngine(scorer=best_of()))
    with pytest.raises(ConfigError, match=r"18 completions of one prompt, but .* has 16 labels"):
        judge.judge(expand(pairs, [KIND], together=True))


# ---- adaptive


def sure_of(p_kind: float, bias: float = 0.0, mass: float = 0.9) -> Any:
    """A judge that prefers the kind one so much by prefill, leans to A by `bias`, and knows better
    after a rationale."""

    def says(text: str, options: Sequence[str]) -> list[float]:
        if "is kinder." in text:
            return after_reasons(text, options)
        p = (p_kind if kind_is_a(text) else 1 - p_kind) + bias
        return logs(p * mass, (1 - p) * mass)

    return says


@pytest.mark.parametrize(
    ("p_kind", "bias", "mass", "escalated"),
    [
        (0.9, 0.0, 0.9, False),
        (0.65, 0.0, 0.9, False),
        (0.55, 0.0, 0.9, True),  # near ½
        (0.65, 0.3, 0.9, True),  # A in both orders
        (0.9, 0.05, 0.9, False),
        (0.9, 0.0, 0.05, True),  # no answer
    ],
)
def test_only_what_prefill_cannot_tell_is_reasoned_about(
    p_kind: float, bias: float, mass: float, escalated: bool
) -> None:
    engine = Counting(scorer=sure_of(p_kind, bias, mass), generator=reasons)
    judge = AdaptiveJudge(
        engine, AdaptiveSettings(band=0.1, rationale=RationaleSettings(clamp=0.2))
    )
    asks = expand([PAIR], [KIND])
    verdicts = judge.judge(asks)
    assert [bool(v.rationales) for v in verdicts] == [escalated] * 2
    assert [v.tokens > 0 for v in verdicts] == [escalated] * 2
    assert len(engine.continued) == 2 * escalated
    assert [v.key for v in verdicts] == [judge.key(ask) for ask in asks]
    expected = [7 / 9, 7 / 9] if escalated else [p_kind + bias, p_kind - bias]
    assert [v.p_first for v in verdicts] == pytest.approx(expected)


def test_what_else_is_asked_changes_no_adaptive_verdict() -> None:
    engine = ScriptedEngine(scorer=sure_of(0.65, 0.3), generator=reasons)
    judge = AdaptiveJudge(engine)
    asks = expand([PAIR, PAIR.swap()], PRINCIPLES)
    whole = judge.judge(asks)
    assert [judge.judge([ask])[0] for ask in asks] == whole


# ---- all of them


def everything(text: str, options: Sequence[str]) -> list[float]:
    """Log-probabilities that depend on all of the text and on the option's place."""
    seed = sum(ord(c) * (i % 7 + 1) for i, c in enumerate(text))
    raw = [1.0 + (seed * (k + 3)) % 11 for k in range(len(options))]
    return [math.log(0.95 * r / sum(raw)) for r in raw]


def writes_something(text: str, i: int) -> str:
    return f"Because {len(text) % 5}. [[{'ABC'[(sum(map(ord, text)) + i) % 3]}]]"


METHODS: dict[str, Any] = {
    "pairwise": PairwiseJudge,
    "cot": CotJudge,
    "cot of three": lambda e: CotJudge(
        e, CotSettings(rationale=RationaleSettings(samples=3, clamp=None))
    ),
    "adaptive": lambda e: AdaptiveJudge(e, AdaptiveSettings(band=0.2)),
    "pointwise": PointwiseJudge,
    "rubric": RubricJudge,
    "listwise": ListwiseJudge,
    "one rotation": lambda e: ListwiseJudge(e, ListwiseSettings(rotations=1)),
    "text": TextJudge,
}
SOME = [
    Pair(Prompt.user(f"question {i // 3}"), f"words {i}", f"other words {i % 2}") for i in range(9)
]


def judge_of(name: str) -> Any:
    return METHODS[name](ScriptedEngine(scorer=everything, generator=writes_something))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_judge(name: str) -> None:
    judge = judge_of(name)
    assert isinstance(judge, Judge)
    assert set(judge.about()) - {"min_mass"} == {
        "fingerprint",
        "weights",
        "template",
        "template_hash",
        "device",
    }


texts = st.text(st.sampled_from("ab .<"), min_size=1, max_size=6)


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None)  # a busy machine is slow, not wrong
@given(texts, texts)
def test_after_debiasing_the_mirrored_pair_has_the_complement(
    name: str, first: str, second: str
) -> None:
    pair, judge = Pair(PROMPT, first, second), judge_of(name)
    (one,), (other,) = (label_pairs([p], judge, [KIND]) for p in (pair, pair.swap()))
    assert (one.p_first is None) == (other.p_first is None)
    if one.p_first is not None and other.p_first is not None and first != second:
        assert one.p_first + other.p_first == pytest.approx(1.0)
    for ask, verdict in zip(asks := expand([pair], [KIND]), judge.judge(asks), strict=True):
        back = verdict.swap().swap()  # equal but for the rounding of 1 − (1 − p)
        assert replace(back, p_first=verdict.p_first, reason=verdict.reason) == verdict
        if verdict.p_first is not None:
            assert back.p_first == pytest.approx(verdict.p_first)
        mirrored = replace(ask, pair=pair.swap(), order=verdict.swap().order)
        (seen,) = judge.judge([mirrored])  # the same question, told of the mirrored pair
        if seen.p_first is not None and first != second:
            assert seen.p_first == pytest.approx(verdict.swap().p_first)
            assert seen.score_first == verdict.score_second


@pytest.mark.parametrize("name", METHODS)
def test_neither_chunk_nor_order_nor_resume_changes_a_verdict(name: str) -> None:
    def rows(chunk: int, pairs: Sequence[Pair] = SOME, stops: int | None = None) -> list[Verdict]:
        memory: Memory[Verdict] = Memory()
        for part in (pairs[:stops], pairs) if stops else (pairs,):
            run_judge(part, judge_of(name), PRINCIPLES, memory, chunk=chunk)
        return sorted(memory.rows, key=lambda v: v.key)

    whole = rows(64)
    assert len(whole) == len(SOME) * len(PRINCIPLES) * 2
    assert rows(1) == whole
    assert rows(2) == whole
    assert rows(4, stops=6) == whole  # what was done is found again
    assert rows(2, pairs=SOME[3:] + SOME[:3]) == whole


@pytest.mark.parametrize("name", METHODS)
def test_every_method_abstains_on_what_cannot_be_judged(name: str) -> None:
    pairs = [
        Pair(PROMPT, "kind words", " "),
        Pair(Prompt.user(" "), "kind words", "rude words"),
        PAIR,
    ]
    verdicts = judge_of(name).judge(expand(pairs, [KIND], together=True))
    assert [v.reason for v in verdicts[:4]] == ["empty_response"] * 2 + ["empty_prompt"] * 2
    assert {v.reason for v in verdicts[4:]} <= {None, "unparsable"}


@pytest.mark.parametrize("name", [n for n in METHODS if n != "text"])
def test_a_format_that_was_not_learnt_abstains(name: str) -> None:
    def mumbles(text: str, options: Sequence[str]) -> list[float]:
        return [x + math.log(0.05) for x in everything(text, options)]

    judge = METHODS[name](ScriptedEngine(scorer=mumbles, generator=writes_something))
    found = judge.judge(expand([PAIR], PRINCIPLES, together=True))
    assert {v.reason for v in found} == {"low_mass"}


@pytest.mark.parametrize("name", METHODS)
def test_every_key_covers_the_method_model_pair_order_and_principle(name: str) -> None:
    asks = expand(SOME, PRINCIPLES, together=True)
    keys = [judge_of(name).key(ask) for ask in asks]
    assert len(set(keys)) == len(keys)
    assert keys == [judge_of(name).key(ask) for ask in asks]
    others = {judge_of(n).key(asks[0]) for n in METHODS}
    assert len(others) == len(METHODS)
    edited = [replace(a, principle=Principle(id=a.principle.id, compare="Edited?")) for a in asks]
    assert not {judge_of(name).key(a) for a in edited} & set(keys)
    heavier = [replace(a, principle=a.principle.model_copy(update={"weight": 9.0})) for a in asks]
    assert [judge_of(name).key(a) for a in heavier] == keys


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 2},
        {"clamp": None},
        {"max_new_tokens": 9},
        {"temperature": 0.5},
        {"temperature": 0.5, "seed": 1},
    ],
)
def test_every_setting_of_a_rationale_is_in_the_key(changes: dict[str, Any]) -> None:
    engine, ask = ScriptedEngine(), expand([PAIR], [KIND])[0]
    changed = CotJudge(engine, CotSettings(rationale=RationaleSettings(**changes)))
    assert changed.key(ask) != CotJudge(engine).key(ask)
    drawn = RationaleSettings(temperature=0.5)
    if changes != {"temperature": 0.5}:
        assert changed.key(ask) != CotJudge(engine, CotSettings(rationale=drawn)).key(ask)
    same = RationaleSettings(temperature=0, seed=9)  # nothing is drawn at 0, whatever the seed
    assert CotJudge(engine, CotSettings(rationale=same)).key(ask) == CotJudge(engine).key(ask)
    adaptive = AdaptiveJudge(engine, AdaptiveSettings(rationale=RationaleSettings(**changes)))
    assert adaptive.key(ask) != AdaptiveJudge(engine).key(ask)
    assert AdaptiveJudge(engine, AdaptiveSettings(band=0.3)).key(ask) != AdaptiveJudge(engine).key(
        ask
    )


def test_a_live_judge_of_single_completions_is_a_scorer() -> None:
    from functools import partial

    from rlaif.training.rl.scorers import DirectScorer

    judge = PointwiseJudge(ScriptedEngine(scorer=marks))
    scorer = DirectScorer(partial(judge.rewards, principles=PRINCIPLES), "key")
    found = scorer.score([PROMPT] * 2, ["kind words", " "], [True, False])
    assert found == [pytest.approx(2 * (9 * 2 / 3 + 8 / 3 - 1) / 9 - 1, abs=1e-6), None]
    assert scorer.key != DirectScorer(partial(judge.rewards, principles=(KIND,)), "other").key


def test_the_mean_of_a_weighted_reward_follows_the_weights() -> None:
    def says(text: str, options: Sequence[str]) -> list[float]:
        del options
        return logs(0.1, 0.9) if "Kinder?" in text else logs(0.6, 0.4)

    judge = RubricJudge(ScriptedEngine(scorer=says))
    heavy = (KIND.model_copy(update={"weight": 3.0}), SHORT)
    assert judge.rewards([PROMPT], ["x"], heavy) == [pytest.approx((0.8 - 0.2) / 2)]
    weighted = judge.rewards([PROMPT], ["x"], heavy, weighted=True)
    assert weighted == [pytest.approx((3 * 0.8 - 0.2) / 4)]


def test_a_tier_of_a_live_reward_counts_its_margin_of_the_one_above() -> None:
    def says(text: str, options: Sequence[str]) -> list[float]:
        del options
        good = "plum" in text if "Kinder?" in text else "fig" in text
        return logs(0.1, 0.9) if good else logs(0.9, 0.1)

    judge = RubricJudge(ScriptedEngine(scorer=says))
    ranked = (KIND.model_copy(update={"tier": 1}), SHORT)
    texts = ["plum", "fig", "plum, fig"]  # marks ±0.8
    found = judge.rewards([PROMPT] * 3, texts, ranked, tier_margin=0.25)
    assert found == [pytest.approx(x) for x in (0.8 * 0.75 / 1.25, -0.8 * 0.75 / 1.25, 0.8)]
    # weights count within a tier, and not between tiers
    heavy = (ranked[0], SHORT.model_copy(update={"weight": 9.0}))
    same = judge.rewards([PROMPT] * 3, texts, heavy, weighted=True, tier_margin=0.25)
    assert same == [pytest.approx(x) for x in found]
