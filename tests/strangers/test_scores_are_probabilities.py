"""Whatever an engine returns, a label rests on log-probabilities that can be so, or on none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import Principle
from rlaif.engines.base import Scores, ScriptedEngine, checked
from rlaif.errors import EngineError
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.base import expand
from rlaif.judges.cot import CotJudge
from rlaif.judges.listwise import ListwiseJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.scores import PointwiseJudge, RubricJudge
from rlaif.records import Pair, Prompt
from rlaif.steps.executors import Memory, run_judge

PAIR = Pair(Prompt.user("Hello?"), "Hi, how are you?", "What?")
KIND = Principle(id="kind", compare="Which is kinder?")
JUDGES = [PairwiseJudge, CotJudge, AdaptiveJudge, PointwiseJudge, RubricJudge, ListwiseJudge]
TEN = (" 1", " 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9", " 10")


def says(*values: Any) -> ScriptedEngine:
    """An engine that returns these values, repeated for as many options as there are."""

    def scorer(_: str, options: Sequence[str]) -> list[Any]:
        return [values[i % len(values)] for i in range(len(options))]

    return ScriptedEngine(scorer=scorer, generator=lambda *_: "Because.")


@pytest.mark.parametrize("method", JUDGES)
@pytest.mark.parametrize(
    "values",
    [
        (12.3, 9.1),  # raw logits: their softmax reads as a label
        (0.0, 0.0),  # a mass of two
        (-0.5, -0.5),  # 1.21
        (True, False),
        (-1.0, True),
        ("-1.0", "-2.0"),
        (-1.0, None),
        (2e-6, -20.0),
        (-0.1, 10**400),
    ],
)
def test_no_method_makes_a_label_of_what_cannot_be_log_probabilities(method, values):
    judge = method(says(*values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts = judge.judge(expand([PAIR], [KIND]))
    assert [v.p_first for v in verdicts] == [None, None]
    reason = "not_finite" if 10**400 in values else "malformed"
    assert [v.reason for v in verdicts] == [reason] * 2


def test_the_first_nonsense_is_told_once_and_by_name():
    judge = PairwiseJudge(says(12.3, 9.1))
    with pytest.warns(UserWarning, match=r"scripted.*12.3 is above 0.*not logits"):
        judge.judge(expand([PAIR], [KIND]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.judge(expand([PAIR], [KIND]))


def test_nonsense_is_stored_as_an_abstention_beside_good_rows():
    def scorer(text: str, _: Sequence[str]) -> list[float]:
        return [3.0, 1.0] if "row 1?" in text else [-0.2, -2.0]

    pairs = [Pair(Prompt.user(f"row {i}?"), "yes", "no") for i in range(3)]
    memory: Memory = Memory()
    with pytest.warns(UserWarning, match="malformed"):
        run_judge(pairs, PairwiseJudge(ScriptedEngine(scorer=scorer)), [KIND], memory)
    assert [v.reason for v in memory.rows].count("malformed") == 2
    assert [v.p_first is None for v in memory.rows].count(False) == 4


@pytest.mark.parametrize(
    "values",
    [
        (1e-7, -20.0),  # rounding of a probability of one
        (np.float32(-0.1), np.float64(-3.0)),
        (-0.6875, -0.6875),  # log ½ in bfloat16: together 1.0056
        (0, -9),
    ],
)
def test_rounding_is_no_nonsense(values):
    scores = checked(Scores(values), 2)
    assert scores.failure is None
    assert scores.logprobs == pytest.approx([min(float(v), 0.0) for v in values])
    assert all(type(v) is float for v in scores.logprobs)


def test_another_number_of_values_is_the_engines_fault_and_said_so():
    engine = ScriptedEngine(scorer=lambda *_: [-1.0, -2.0, -3.0])
    with pytest.raises(EngineError, match="3 log-probabilities of 2 options"):
        PairwiseJudge(engine).judge(expand([PAIR], [KIND]))


anything = st.floats() | st.booleans() | st.integers() | st.none() | st.text(max_size=3)


@given(st.lists(anything, min_size=2, max_size=10))
def test_what_passes_the_check_is_a_distribution(values):
    scores = checked(Scores(tuple(values)), len(values))
    if scores.failure is None:
        assert math.fsum(map(math.exp, scores.logprobs)) <= 1.01
        assert all(-math.inf < x <= 0 for x in scores.logprobs)
        assert not any(isinstance(x, bool | str) or x is None for x in values)
    else:
        assert scores.failure in ("not_finite", "malformed")


@given(st.lists(st.floats(1e-30, 1), min_size=2, max_size=10), st.floats(0.01, 1))
def test_every_distribution_passes_unchanged(weights, mass):
    logs = tuple(math.log(w * mass / math.fsum(weights)) for w in weights)
    scores = checked(Scores(logs), len(logs))
    assert scores.failure is None
    assert scores.logprobs == tuple(min(x, 0.0) for x in logs)
