"""Critique → revision → supervised fine-tuning, from the command line; the gold checker counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app

SMALL = (
    "--set",
    "sampling.n=1",
    "--set",
    "sampling.max_new_tokens=72",
    "--set",
    "revise.max_new_tokens=72",
    "--set",
    "threads=1",
)
LEARN = (
    "--set",
    "train.sft.epochs=2",
    "--set",
    "train.sft.batch_size=16",
    "--set",
    "train.sft.learning_rate=0.0007",
)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_a_policy_that_learns_from_its_own_revisions_has_more_of_the_trait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(
        "revise",
        "--prompts",
        "tiny",
        "--limit",
        "64",
        "--constitution",
        "concise",
        "--rounds",
        "1",
        "--out",
        "r",
        *SMALL,
    )
    written = run("export", "r", "sft.jsonl", "--what", "revisions")
    rows = len(Path("sft.jsonl").read_text().splitlines())
    assert f"{rows} revision written" in written
    assert rows > 60
    said = run("train", "sft", "--out", "r", "--data", "sft.jsonl", *LEARN)
    assert f"sft: {rows} answers, 8 steps" in said
    run("eval", "winrate", "--out", "r", "--limit", "48", "--set", "evaluate.winrate=false")
    found: dict[str, Any] = json.loads(Path("r/evaluation/policies.json").read_text())
    before, after = found["base"], found["sft"]
    assert before["legal"]["n"] == after["legal"]["n"] == 48
    gain = after["traits"]["concise"]["value"] - before["traits"]["concise"]["value"]
    assert gain > 0.1  # held-out prompts, other than those that were revised
    assert after["legal"]["value"] > 0.8
    manifest = json.loads(Path("r/manifest.json").read_text())["stages"]
    assert manifest["revise"]["chains"] == 64 - manifest["revise"]["not_started"]
    assert manifest["sft"]["rows"] == rows
    assert (manifest["sft"]["data"], manifest["sft"]["model"]) == ("sft.jsonl", "tiny")
