"""Alarms and a held-out judge in GRPO, RLOO and online DPO, on rewards made to be hacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlaif import tiny
from rlaif.records import Preference, Prompt
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.scorers import FunctionScorer, Labels
from rlaif.training.rl.settings import (
    AlarmLimits,
    GRPOSettings,
    HeldOutSettings,
    OnlineDPOSettings,
    OnlineSettings,
    RLOOSettings,
)
from rlaif.training.settings import Runtime

PROMPTS = [Prompt.user(p.text) for p in tiny.prompts("train", limit=6)]
ONLY = {"kl": None, "entropy": None, "ended": None}
QUICK: dict[str, Any] = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "max_new_tokens": 32,
    "alarms": AlarmLimits(**ONLY, length=1.25, held_out=0.01),
    "held_out": HeldOutSettings(every=2, prompts=6),
    "checkpoint_every": 2,
}


def shortness(_: object, texts: list[str]) -> list[float]:
    return [-len(text) / 100 for text in texts]


def length(_: object, texts: list[str]) -> list[float]:
    return [len(text) / 100 for text in texts]


JUDGE = FunctionScorer(length, "length")  # likes what the reward does not


def shorter(pairs: Any) -> list[Preference]:
    def p(a: int, b: int) -> float:
        return 0.5 if a == b else 0.95 if a < b else 0.05

    found = [(pair, p(len(pair.first), len(pair.second))) for pair in pairs]
    return [Preference(pair, "tie" if x == 0.5 else "preferred", x) for pair, x in found]


KINDS: dict[str, OnlineSettings] = {
    "grpo": GRPOSettings(**QUICK, group=4, no_end_score=None),
    "rloo": RLOOSettings(**QUICK, group=4, no_end_score=None, iterations=2),
    "online-dpo": OnlineDPOSettings(**QUICK | {"batch_size": 6}, keep_cut=True),
}


def train(name: str, out: Path, *, judge: FunctionScorer | None = JUDGE, on_log: Any = None) -> Any:
    settings, runtime = KINDS[name], Runtime("cpu", on_log=on_log)
    if isinstance(settings, OnlineDPOSettings):
        how: Any = {"judge": judge, "runtime": runtime}
        return train_online_dpo(PROMPTS, "tiny", out, Labels(shorter, "k"), settings, **how)
    scorer = FunctionScorer(shortness, "shortness")
    return train_group(PROMPTS, "tiny", out, scorer, settings, judge=judge, runtime=runtime)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(x) for x in (folder / "training.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", list(KINDS))
def test_alarms_fire_where_the_reward_is_hacked_and_resuming_is_exact(
    name: str, tmp_path: Path
) -> None:
    heard: list[dict[str, Any]] = []
    result = train(name, tmp_path / "whole", on_log=heard.append)
    rows = lines(tmp_path / "whole")
    a_step = len(rows) // KINDS[name].steps
    assert [i for i, x in enumerate(rows) if "held_out" in x] == [
        a_step * i for i in (0, 2, 4, 6, 7)
    ]
    assert {"length", "held_out"} <= {alarm for row in rows for alarm in row["alarms"]}
    assert "what is rewarded" in result.metrics["alarms"]["length"]["first"]
    assert result.metrics["held_out"] == rows[-a_step]["held_out"] < rows[0]["held_out"]
    assert [row["step"] for row in heard] == [row["step"] for row in rows]

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 5 * a_step:
            raise Stopped

    with pytest.raises(Stopped):
        train(name, tmp_path / "cut", on_log=stop)
    train(name, tmp_path / "cut", on_log=heard.append)
    assert lines(tmp_path / "cut") == rows

    train(name, tmp_path / "alone", judge=None, on_log=heard.append)  # the judge changes nothing
    whole, *others = (
        load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut", "alone")
    )
    for other in others:
        assert all(torch.equal(whole[k], other[k]) for k in whole)
