"""From Python as from the command line: the same defaults, the same reasons, errors that help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import log
from typing import Any, get_args, get_type_hints

import pytest

import rlaif
from rlaif.config import PreferencesConfig, SamplingConfig
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.engines.settings import ModelSettings
from rlaif.judges.load import judge_class
from rlaif.judges.methods import METHODS
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.judges.settings import JudgeSettings
from rlaif.records import Pair, Prompt
from rlaif.steps.executors import Memory, label_pairs, run_judge

PAIR = Pair(Prompt.user("Hi?"), "Yes.", "No.")
ASKED = [Principle(id="kind", compare="Which is kinder?")]


def scripted(first: float, second: float) -> ScriptedEngine:
    return ScriptedEngine(scorer=lambda _, __: [log(first), log(second)])


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("function", [label_pairs, aggregate])
def test_rules_have_the_defaults_of_the_config(function: Callable[..., Any]) -> None:
    config, found = PreferencesConfig().model_dump(), PreferenceSettings().model_dump()
    assert {"aggregate", "orders", "min_margin", "principle_margin"} <= found.keys()
    assert found == {name: config[name] for name in found}
    assert config.keys() - found.keys() == {
        "people",
        "people_weight",
    }  # of stored decisions
    # `orders` are those in which the judge is asked
    assert not (found.keys() - {"orders"}) & defaults(function).keys()


@pytest.mark.parametrize("method", METHODS)
def test_judges_have_the_defaults_of_the_config(method: str) -> None:
    config = JudgeSettings().model_dump()
    taken, _ = get_args(get_type_hints(judge_class(method).__init__)["settings"])  # or None
    found = taken().model_dump()
    shared = config.keys() & found.keys()
    assert "template" in shared
    assert {name: found[name] for name in shared} == {name: config[name] for name in shared}


def test_rationales_and_samples_have_the_defaults_of_the_config() -> None:
    thinking = {"thinking": ModelSettings().thinking}  # a setting of the model
    assert rlaif.RationaleSettings() == JudgeSettings().rationale
    config, found = SamplingConfig().model_dump() | thinking, rlaif.Sampling().model_dump()
    assert found == {name: config[name] for name in found}


def test_labels_have_the_reasons_of_their_verdicts() -> None:
    (label,) = label_pairs([PAIR], PairwiseJudge(scripted(0.01, 0.02)), ASKED)
    assert (label.status, label.reason) == ("abstained", "low_mass")
    long = ScriptedEngine(scorer=lambda _, __: [0.0, 0.0], max_length=1)
    (label,) = label_pairs([PAIR], PairwiseJudge(long), ASKED)
    assert (label.status, label.reason) == ("abstained", "too_long")


def test_a_small_margin_is_a_tie_as_in_a_run() -> None:
    judge = PairwiseJudge(
        ScriptedEngine(scorer=lambda text, _: [log(0.52), log(0.48)][:: _side(text)])
    )
    (label,) = label_pairs([PAIR], judge, ASKED)
    assert (label.status, round(label.p_first or 0, 3)) == ("tie", 0.52)


def _side(text: str) -> int:
    return 1 if text.index("Yes.") < text.index("No.") else -1


@pytest.mark.parametrize(
    ("judge", "pairs", "principles", "words"),
    [
        (scripted(0.5, 0.5), [PAIR], ASKED, "expected a Judge.*ScriptedEngine.*PairwiseJudge"),
        ("tiny", [PAIR], ASKED, r"expected a Judge, got str.*load_engine\('tiny'\)"),
        (PairwiseJudge, [PAIR], ASKED, "got the class PairwiseJudge itself"),
        (PairwiseJudge(scripted(0.5, 0.5)), "pairs.jsonl", ASKED, "read_pairs"),
        (PairwiseJudge(scripted(0.5, 0.5)), [{"prompt": "x"}], ASKED, "list of Pair.*dict"),
        (PairwiseJudge(scripted(0.5, 0.5)), [PAIR], "harmless", r"Constitution.load\('harmless'\)"),
    ],
)
def test_wrong_objects_get_a_type_error(
    judge: Any, pairs: Any, principles: Any, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        label_pairs(pairs, judge, principles)


@pytest.mark.parametrize("method", METHODS)
def test_a_judge_needs_an_engine(method: str) -> None:
    made: Any = judge_class(method)
    for wrong, words in (
        ("tiny", r"expected an Engine, got str.*load_engine\('tiny'\)"),
        (ScriptedEngine, "the class ScriptedEngine itself"),
        (PairwiseJudge(scripted(0.5, 0.5)), "expected an Engine.*this is a Judge"),
    ):
        with pytest.raises(TypeError, match=words):
            made(wrong)


def test_own_judges_are_refused_with_what_they_lack() -> None:
    class Half:
        name = "half"

        def judge(self, asks: Any) -> Any:
            return [None for _ in asks]

    half: Any = Half()
    with pytest.raises(TypeError, match="expected a Judge, got Half, which has no together, key"):
        run_judge([PAIR], half, ASKED, Memory())


def test_what_is_documented_is_exported() -> None:
    for name in (
        "Judge",
        "Engine",
        "Template",
        "load_template",
        "ScriptedEngine",
        "read_demonstrations",
        "Ask",
        "Verdict",
    ):
        assert name in rlaif.__all__
    assert all(getattr(rlaif, name) is not None for name in rlaif.__all__)
    assert Constitution.load("harmless")
