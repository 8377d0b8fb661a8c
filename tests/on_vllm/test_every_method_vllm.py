"""Every judge on vLLM says what it says on Transformers."""

from __future__ import annotations

import pytest

from rlaif.constitution import Principle
from rlaif.engines.hf import HFEngine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import VLLMSettings
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.base import expand
from rlaif.judges.cot import CotJudge
from rlaif.judges.listwise import ListwiseJudge
from rlaif.judges.scores import PointwiseJudge, RubricJudge
from rlaif.judges.settings import (
    AdaptiveSettings,
    CotSettings,
    ListwiseSettings,
    RationaleSettings,
    ScoreSettings,
    TextSettings,
)
from rlaif.judges.text import TextJudge
from rlaif.records import Pair, Prompt

PRINCIPLES = (Principle(id="kind", compare="Kinder?"),)
TEXTS = ("Mix flour, then wait.", "I will not.", "Ask people.")
PAIRS = [Pair(Prompt.user("Bread?"), a, b) for a in TEXTS for b in TEXTS if a < b]
GREEDY = RationaleSettings(max_new_tokens=24, clamp=None)
PAIR = "{{ first }}|{{ second }}|{{ principle }}\n=== assistant ===\n"
BODIES = {
    "pairwise": ('[" A", " B"]', PAIR + "So:"),
    "cot": ('[" A", " B"]', PAIR + "{% if rationale is not none %}{{ rationale }}\nSo:{% endif %}"),
    "text": ('["[[A]]", "[[B]]"]', PAIR),
    "pointwise": ('["1", "2", "3", "10"]', "{{ response }}|{{ principle }}"),
    "rubric": ('["No", "Yes"]', "{{ response }}|{{ principle }}"),
    "listwise": ('["A", "B", "C"]', "{% for r in responses %}{{ r }}\n{% endfor %}{{ principle }}"),
}


@pytest.fixture(scope="module")
def engines(folder):
    ours = load_engine(folder("llama"), engine="vllm", vllm=VLLMSettings(cache_gib=0.25))
    yield ours, HFEngine(folder("llama"))
    ours.close()


def judge_of(method, engine, files):
    if method == "cot":
        return CotJudge(engine, CotSettings(template=files["cot"], min_mass=0.0, rationale=GREEDY))
    if method == "text":
        return TextJudge(engine, TextSettings(template=files["text"], rationale=GREEDY))
    if method == "adaptive":
        return AdaptiveJudge(
            engine,
            AdaptiveSettings(
                template=files["pairwise"],
                rationale=GREEDY.but(template=files["cot"]),
                min_mass=0.0,
                band=0.5,
            ),
        )
    if method == "listwise":
        return ListwiseJudge(engine, ListwiseSettings(template=files[method], min_mass=0.0))
    made = {"pointwise": PointwiseJudge, "rubric": RubricJudge}[method]
    return made(engine, ScoreSettings(template=files[method], min_mass=0.0))


@pytest.mark.parametrize("method", ["cot", "adaptive", "pointwise", "rubric", "listwise", "text"])
def test_verdicts_are_those_of_transformers(engines, tmp_path, method):
    files = {}
    for name, (options, body) in BODIES.items():
        path = tmp_path / f"{name}.j2"
        stop = list("aeinorst ")  # a random model says one of these soon
        path.write_text(f"---\noptions: {options}\nstop: {stop}\n---\n=== user ===\n{body}")
        files[name] = str(path)
    asks = expand(PAIRS, PRINCIPLES, together=True)
    ours, reference = (judge_of(method, engine, files).judge(asks) for engine in engines)
    if method != "text":  # of which a random model says nothing
        assert any(v.p_first is not None for v in ours)
    for one, other in zip(ours, reference, strict=True):
        assert (one.key, one.reason, one.rationales) == (other.key, other.reason, other.rationales)
        assert one.p_first == pytest.approx(other.p_first, abs=1e-3)
        assert one.mass == pytest.approx(other.mass, abs=1e-3)
