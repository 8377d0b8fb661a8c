"""Keys of stored rows stay: what a store of an earlier version holds is found again.

The literals are those of commit 2909231. One that changes has every user's completions sampled, or
verdicts asked for, once more.
"""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.constitution import Principle
from rlaif.engines.base import Sampling, ScriptedEngine
from rlaif.judges.base import Ask
from rlaif.judges.cot import CotJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import CotSettings, RationaleSettings
from rlaif.judges.text import TextJudge
from rlaif.records import Pair, Prompt
from rlaif.steps.executors import Memory
from rlaif.steps.revising import Chain, Reviser, contrast_stream
from rlaif.steps.sampling import completion_keys
from rlaif.steps.settings import ReviseSettings

ENGINE = ScriptedEngine(
    scorer=lambda _, options: [-1.0] * len(options), generator=lambda text, i: f"{len(text)}, {i}."
)
PROMPT = Prompt.user("Hi")
PLAIN: dict[str, Any] = {
    "n": 2,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 256,
    "seed": 7,
    "stop": (),
}
KIND = Principle(
    id="kind",
    compare="Which is kinder?",
    critique="What is unkind?",
    revise="Make it kind.",
    follow="Be kind.",
    violate="Be unkind.",
)
ASK = Ask(Pair(PROMPT, "yes", "no"), KIND, "first_second")


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({}, ["6bc100c47203ad6134d4", "960cdf2da10d1a7d7ef5"]),
        ({"temperature": 0.0}, ["1cc52f711ec2f5c13c70", "68417fdda74606751d0f"]),
        ({"top_p": 0.9}, ["228e453b90ae8e0c0df5", "a9d000f875235cc93333"]),
        ({"max_new_tokens": 16}, ["70c4e3be067cead608c0", "82ef0d3f3b3540170727"]),
        ({"seed": 0}, ["19a2206e22e94675bb92", "d6c84cb95a49fe6f0d64"]),
        ({"stop": ("\n\n", "###")}, ["b0936bd97cde10d5fb91", "0e535c951ffb4a2b80fc"]),
        ({"thinking": 0}, ["2f73f927e9a8ec5ddb1f", "4a086893744c1adc4523"]),
        ({"thinking": 64}, ["349afe359ff57c2ea2f4", "2e517b9d6014a1edc73a"]),
    ],
)
def test_of_completions(change: dict[str, Any], keys: list[str]) -> None:
    assert completion_keys(ENGINE, Sampling(**{**PLAIN, **change}), PROMPT) == keys


def test_of_revisions() -> None:
    reviser = Reviser(ENGINE, (KIND,), ReviseSettings())
    assert reviser.key(Chain(PROMPT, 0, "No."), 1, KIND) == "c906fbc523eb1455340b"


def test_of_contrasts() -> None:
    rows: Memory[Any] = Memory()
    list(contrast_stream([PROMPT], ENGINE, [KIND], Sampling(**PLAIN), rows))
    assert [c.key for c in rows.rows] == ["cf42918a06ea01d678ea", "69113f5947ffbe492fb2"]


def test_of_verdicts() -> None:
    several = CotSettings(rationale=RationaleSettings(samples=3, seed=5))
    judges = (
        PairwiseJudge(ENGINE),
        CotJudge(ENGINE),
        CotJudge(ENGINE, several),
        TextJudge(ENGINE),
    )
    assert [judge.key(ASK) for judge in judges] == [
        "817bdd03be5b895634d8",
        "3d26b1583da8d573223b",
        "e40fabb64d83e93de797",
        "42028613f4e4d328f1d1",
    ]
