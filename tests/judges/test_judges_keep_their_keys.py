"""Keys of stored verdicts, as they were before settings were declared once: a store of that time is
not judged again. A key changes where a shipped template does, and then it is to."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.constitution import Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.judges.base import Ask
from rlaif.judges.load import make_judge
from rlaif.judges.settings import JudgeSettings
from rlaif.records import Pair, Prompt

PAIR = Pair(Prompt.user("How are you?"), "Well.", "Who asks?", thoughts=("Hm.", ""))
ASK = Ask(PAIR, Principle(id="kind", compare="Kinder?"), "second_first", ("Well.", "Who asks?"))
KEYS: list[tuple[str, dict[str, Any]]] = [
    ("1692425a57ff84609d8c", {}),
    ("b06caf0b56f96eed9927", {"min_mass": 0.2, "orders": "first_second", "max_not_finite": 1}),
    ("b9ae3d90a9d75ea281aa", {"template": "pairwise/fewshot"}),
    ("917f450ea66fb1f0553d", {"examples": "examples/default", "shots": 2, "examples_seed": 3}),
    ("858b07e43ba9bbf1e222", {"thinking": True}),
    ("547473615b42cc6590c2", {"thinking": False}),
    (
        "a6814e764ce042a91d80",
        {"thinking": 64, "rationale": {"samples": 3, "seed": 5, "clamp": None}},
    ),
    ("edcfc0c3693f978537c0", {"show_thoughts": True}),
    ("06a65d827b6d23ce1702", {"method": "cot"}),
    (
        "34b0f00310fd698ddb30",
        {"method": "cot", "rationale": {"samples": 5, "max_new_tokens": 64, "clamp": 0}},
    ),
    (
        "1998c425dd19a625bd1e",
        {"method": "cot", "rationale": {"temperature": 1, "seed": 3}, "thinking": 64},
    ),
    ("f3b90a02aa49b9925d0c", {"method": "adaptive"}),
    (
        "dd5760f4b3ed95ecd612",
        {"method": "adaptive", "band": 0, "rationale": {"template": "cot/tiny"}},
    ),
    (
        "ff1bba845adba8f3931b",
        {"method": "adaptive", "thinking": 32, "examples": "examples/default"},
    ),
    (
        "db0c4f39b44c6eb87d1d",
        {"method": "adaptive", "show_thoughts": True, "template": "pairwise/tiny"},
    ),
    ("1ac7b3aeb0c653da348c", {"method": "pointwise"}),
    ("d4ae93627911ea0f30b5", {"method": "pointwise", "thinking": 16, "min_mass": 0}),
    ("19f0e98a9591dd8aa622", {"method": "rubric", "examples": "examples/default", "shots": 1}),
    ("1155d24b308067fd9fbc", {"method": "listwise"}),
    ("63a707a41e885d8b1911", {"method": "listwise", "rotations": 2, "thinking": False}),
    ("00c1018f48c9bda39e32", {"method": "text"}),
    (
        "d4276c418499055ad93f",
        {"method": "text", "rationale": {"samples": 3}, "min_mass": 0.5, "thinking": 9},
    ),
]


@pytest.mark.parametrize(("key", "settings"), KEYS)
def test_a_stored_verdict_is_found_again(key: str, settings: dict[str, Any]) -> None:
    judge = make_judge(ScriptedEngine(), JudgeSettings.model_validate(settings))
    assert judge.key(ASK) == key
