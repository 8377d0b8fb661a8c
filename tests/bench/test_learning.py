"""The table of `benchmarks/bench_learning.py`: means over seeds, and their range."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from rlaif.config import load_config


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_learning")


def policy(harmless: float, concise: float, legal: float, kl: float | None) -> dict[str, Any]:
    traits = {"harmless": {"value": harmless}, "concise": {"value": concise}}
    return {"traits": traits, "legal": {"value": legal}} | ({"kl": {"value": kl}} if kl else {})


def test_means_and_ranges(script: ModuleType) -> None:
    base = policy(0.5, 0.6, 0.98, None)
    runs = [
        {"constitution": "harmless", "seed": seed, "policies": {"base": base, "dpo": trained}}
        for seed, trained in ((7, policy(0.8, 0.6, 0.96, 0.2)), (8, policy(0.9, 0.5, 0.98, 0.6)))
    ]
    rows = script.summary(runs, ("harmless", "concise"))
    assert [row["policy"] for row in rows] == ["base", "dpo"]
    assert rows[0]["mean"]["kl"] == 0.0
    assert rows[1]["mean"] == pytest.approx(
        {"harmless": 0.85, "concise": 0.55, "legal": 0.97, "kl": 0.4}
    )
    assert script.shown(rows[1]["by_seed"]["harmless"], percent=True) == "85 (80–90)"
    assert script.shown(rows[1]["by_seed"]["kl"], percent=False) == "0.40 (0.20–0.60)"


def test_its_config_trains_by_every_method(script: ModuleType) -> None:
    config = load_config("learning", [f"{s}.seed=8" for s in script.SEEDED])
    assert config.train.ppo
    assert config.train.grpo
    assert config.train.online_dpo
    assert config.train.online_dpo.seed == config.sampling.seed == 8


def test_the_demos_table_tells_what_fell(load_script: Callable[[str], ModuleType]) -> None:
    demo = load_script("bench_demo")

    def measured(trait: float, helpful: float, both: float, kl: float | None) -> dict[str, Any]:
        found = policy(trait, 0.6, 0.98, kl)
        found["traits"]["helpful"] = {"value": helpful}
        return found | {"and_legal": {"harmless": {"all": {"value": both}}}}

    runs = [
        {
            "constitution": "harmless",
            "seed": seed,
            "seconds": 60.0,
            "labels": {"gold_agreement": 1.0, "unseparated": {"value": 0.25}},
            "policies": {"base": measured(0.5, 0.4, 0.7, None), "dpo": after},
        }
        for seed, after in ((7, measured(0.9, 0.2, 0.8, 0.2)), (8, measured(0.8, 0.1, 0.9, 0.6)))
    ]
    (row,) = demo.summary(runs)
    assert row["dpo"] == {"trait": [0.9, 0.8], "and_legal": [0.8, 0.9], "legal": [0.98, 0.98]}
    assert row["others"] == {"helpful": [[0.4, 0.2], [0.4, 0.1]]}  # concise stayed where it was
    assert "25.0%" in list(demo.table([row]).columns[6].cells)
    assert "85 (80–90) %" in str(next(iter(demo.table([row]).columns[1].cells)))
