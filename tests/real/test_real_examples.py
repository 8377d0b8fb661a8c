"""Worked examples on a real base model, whose folder the variable RLAIF_REAL_MODEL names."""

from __future__ import annotations

import os
import warnings

import pytest

from rlaif.constitution import Principle
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.judges.base import expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Prompt

FOLDER = os.environ.get("RLAIF_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="RLAIF_REAL_MODEL names no model")
PRINCIPLES = [
    Principle(id=name, compare=f"Which response is {name}?") for name in ("kinder", "shorter")
]
PAIRS = [
    Pair(Prompt.user(f"What do I do with {thing}?"), f"Eat the {thing}.", f"Who wants {thing}?")
    for thing in ("bread", "cheese", "soup")
]


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no chat template
        return HFEngine(FOLDER, EngineSettings(device="cpu"))


def test_a_base_model_learns_the_labels_from_examples_that_are_computed_once(
    engine: HFEngine,
) -> None:
    zero = PairwiseJudge(engine, PairwiseSettings(min_mass=0.0, examples="none"))
    shown = PairwiseJudge(engine, PairwiseSettings(min_mass=0.0))
    assert shown.examples is not None
    tokens = shown.examples.tokens
    assert tokens is not None
    asks = expand(PAIRS, PRINCIPLES)
    encoder = engine.encoder
    questions = sum(len(encoder.prompt(shown.render(ask))) - tokens for ask in asks)
    before = engine.usage.snapshot()
    masses = [v.mass or 0.0 for pair in PAIRS for v in shown.judge(expand([pair], PRINCIPLES))]
    spent = {k: v - before[k] for k, v in engine.usage.snapshot().items()}
    assert spent["submitted_tokens"] == questions + tokens * len(asks)
    assert spent["bound_tokens"] < questions + tokens
    assert spent["computed_tokens"] < spent["bound_tokens"] + 64 * len(PAIRS)
    before_masses = [v.mass or 0.0 for v in zero.judge(asks)]
    assert min(masses) > 0.7
    assert max(before_masses) < min(masses)
