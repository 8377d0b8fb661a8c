"""The methods on the embedded model: what it has learnt it judges, what it has not it abstains on.

The model says by its own templates which formats it was trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlaif.bench.methods import draw_work, judges, measure
from rlaif.engines.base import Engine
from rlaif.engines.load import load_engine
from rlaif.judges.settings import JudgeSettings

NEEDED = {
    "cot": ("cot",),
    "adaptive": ("cot",),
    "pointwise": ("pointwise",),
    "rubric": ("rubric",),
    "listwise": ("listwise",),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("tiny", device="cpu")


def learnt(engine: Engine, method: str) -> bool:
    return all(name in engine.templates for name in NEEDED[method])


@pytest.mark.parametrize("method", ["cot", "pointwise", "rubric", "listwise"])
def test_a_format_the_model_has_not_learnt_is_never_reported_as_a_judgement(
    engine: Engine, method: str
) -> None:
    if learnt(engine, method):
        judge: Any = type(judges(engine)[method])(
            engine, JudgeSettings(template=f"{method}/default")
        )
    else:
        judge = judges(engine)[method]
    work = draw_work(1)
    found = measure(judge, replace(work, pairs=work.pairs[::5]))
    assert found["abstained"] == found["verdicts"] > 0


@pytest.mark.slow
def test_adaptive_comes_near_chain_of_thought_at_a_part_of_its_price(engine: Engine) -> None:
    if not learnt(engine, "adaptive"):
        pytest.skip("the embedded model has not learnt rationales yet")
    work, by = draw_work(4), judges(engine)
    full, adaptive = measure(by["cot"], work), measure(by["adaptive"], work)
    assert adaptive["agreement"]["rate"] >= full["agreement"]["rate"] - 0.01
    assert adaptive["decoded_tokens"] <= 0.4 * full["decoded_tokens"]
    assert 0 < adaptive["reasoned"] < full["reasoned"] == full["verdicts"]


@pytest.mark.parametrize("method", ["pointwise", "rubric", "listwise"])
def test_a_format_the_model_has_learnt_agrees_with_the_truth(engine: Engine, method: str) -> None:
    if not learnt(engine, method):
        pytest.skip(f"the embedded model has not learnt {method} yet")
    found = measure(judges(engine)[method], draw_work(4))
    assert found["agreement"]["rate"] >= 0.7  # a coin gets 0.5
