"""`rlaif train grpo|rloo|online-dpo` with the live judge, and the evaluation of what they leave."""

from __future__ import annotations

import json

import pytest
from test_ppo_command import Silent, run_stages

from rlaif.cli.common import with_section
from rlaif.errors import DataError
from rlaif.stages import (
    evaluate,
    label,
    sample,
    train_grpo,
    train_online_dpo,
    train_rloo,
    train_sft,
    write_report,
)

GROUP = "{steps: 2, batch_size: 4, group: 2, learning_rate: 0.0001"
SETTINGS = [
    f"train.grpo={GROUP}}}",
    f"train.rloo={GROUP}, against: reference}}",
    "train.online_dpo={steps: 2, batch_size: 4, learning_rate: 0.0001}",
    "prompts.limit=8",
    "evaluate.prompts.limit=4",
]


def journal(folder, name):
    return [json.loads(x) for x in (folder / f"models/{name}/training.jsonl").open()]


def test_the_judge_rewards_and_labels_and_the_policies_are_evaluated(tmp_path):
    run = tmp_path / "r"
    said = run_stages(run, SETTINGS, train_grpo, train_rloo, train_online_dpo, evaluate)
    for name in ("grpo", "rloo", "online-dpo"):
        assert any(text.startswith(f"{name}: 2 steps") for text in said), said
        assert all(x["judge_tokens"] > 0 for x in journal(run, name))
    scores = [x["score"] for x in journal(run, "grpo")]
    assert scores == pytest.approx([0.5, 0.5])  # in a group, what one wins another loses
    assert all(0 <= x["score"] <= 1 for x in journal(run, "rloo"))
    write_report(run, Silent())
    summary = json.loads((run / "summary.json").read_text())
    for name in ("grpo", "rloo", "online-dpo"):
        assert summary["policies"][name]["kl"] is not None
        assert summary["policies"][name]["win_rate"]["value"] is not None
        assert summary["seconds"][name] > 0
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages["grpo"]["judge_tokens"] == sum(x["judge_tokens"] for x in journal(run, "grpo"))
    before = (run / "models/grpo/model.safetensors").stat().st_mtime_ns
    run_stages(run, SETTINGS, train_grpo)  # finds its work done
    assert (run / "models/grpo/model.safetensors").stat().st_mtime_ns == before


def test_sft_learns_from_a_file_and_from_the_best_of_the_run(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hello.", "completion": "Hello, dear friend."}\n' * 3)
    settings = [f"train.sft={{data: {rows}, batch_size: 2}}", "prompts.limit=8"]
    said = run_stages(tmp_path / "r", settings, train_sft)
    assert any(text.startswith("sft: 3 answers, 2 steps") for text in said), said
    best = ["train.sft={}", "prompts.limit=8", "evaluate.prompts.limit=4"]
    with pytest.raises(DataError, match="run `rlaif label` first"):
        run_stages(tmp_path / "r", best, train_sft)
    said = run_stages(tmp_path / "r", best, sample, label, train_sft, evaluate)
    assert any(text.startswith("sft: ") and "1 steps" in text for text in said), said
    policies = json.loads((tmp_path / "r/evaluation/policies.json").read_text())
    assert set(policies) == {"base", "sft"}


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="run `rlaif train reward` first"):
        run_stages(tmp_path / "r", ["train.grpo={reward: model}"], train_grpo)


def test_a_command_gives_its_section(tmp_path):
    named = {"train.grpo.steps": 3}
    found = with_section("grpo", "demo", str(tmp_path), ["train.grpo.group=4"], named).train.grpo
    assert (found.steps, found.group) == (3, 4)
    assert with_section("online_dpo", "demo", str(tmp_path), None, {}).train.online_dpo.steps == 500
