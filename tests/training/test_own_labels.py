"""Reward models and policies that learn what people said of pairs: no judge is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import people
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.records import Prompt
from rlaif.store import RunStore


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_reward_model_of_peoples_pairs(tmp_path: Path) -> None:
    from rlaif.training.reward import RewardModel

    rows = people(120)
    pairs, out = write(tmp_path / "pairs.jsonl", rows[:100]), tmp_path / "run"
    told = command(
        "train",
        "reward",
        "--pairs",
        pairs,
        "--labels",
        "own",
        "--out",
        str(out),
        "--set",
        "train.reward.trunk=frozen",
        "--set",
        "threads=1",
    )
    assert "held-out accuracy" in told
    store = RunStore.open_readonly(out)
    assert not len(store.table("verdicts"))
    assert not len(store.table("preferences"))
    assert store.read_manifest()["stages"]["reward"]["labels"] == "own"
    model = RewardModel(out / "models" / "reward")
    prompts = [Prompt.user(row["prompt"]) for row in rows[100:]]
    chosen, rejected = (
        np.array(model.rewards(prompts, [row[key] for row in rows[100:]]))
        for key in ("chosen", "rejected")
    )
    assert (chosen > rejected).mean() > 0.8  # people's taste, which is not the judge's
    assert "out of date" not in command("status", str(out))
    write(tmp_path / "pairs.jsonl", rows[:80])  # other pairs are another model's
    again = command("train", "reward", str(out), "--set", "threads=1")
    assert "80 pairs read" in again
    assert "reward: 72 pairs" in again  # eight are held out


def test_dpo_on_peoples_pairs(tmp_path: Path) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", people(12)), tmp_path / "run"
    command(
        "train",
        "dpo",
        "--pairs",
        pairs,
        "--labels",
        "own",
        "--out",
        str(out),
        "--set",
        "train.dpo.learning_rate=1e-4",
        "--set",
        "threads=1",
    )
    metrics = json.loads((out / "models" / "dpo" / "metrics.json").read_text())
    assert metrics["pairs"] == 12
    assert not len(RunStore.open_readonly(out).table("preferences"))


def test_pairs_without_labels_are_told(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"How do I bake {x}?", "first": "With flour.", "second": "In an oven."}
        for x in ("bread", "a cake", "a pie", "rolls")
    ]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    where = ["--set", "pairs.columns={prompt: prompt, first: first, second: second}"]
    with pytest.raises((DataError, ConfigError), match="none of its 4 pairs has a label"):
        CliRunner().invoke(
            app,
            [
                "train",
                "reward",
                "--pairs",
                pairs,
                "--labels",
                "own",
                "--out",
                str(tmp_path / "r"),
                *where,
            ],
            catch_exceptions=False,
        )


def test_a_run_without_labels_is_told_of_both_ways(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--labels own"):
        CliRunner().invoke(
            app, ["train", "reward", "--out", str(tmp_path / "run")], catch_exceptions=False
        )
