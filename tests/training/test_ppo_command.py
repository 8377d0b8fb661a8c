"""`rlaif train ppo` and the evaluation of what it leaves, on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.config import load_config
from rlaif.errors import ConfigError, DataError
from rlaif.stages import Run, described, evaluate, train_ppo, write_report
from rlaif.store import RunStore


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)

    def progress(self, title: str, total: int | None):
        from contextlib import nullcontext

        del title, total
        return nullcontext(lambda *_: None)


def run_stages(out: Path, settings: list[str], *stages) -> list[str]:
    config = load_config("demo", settings, {"out": str(out)})
    reporter = Silent()
    with RunStore(config.out) as store, Run(config, store, reporter) as run, described(run):
        for stage in stages:
            stage(run)
    return reporter.said


def test_ppo_on_a_live_judge_is_evaluated_and_summarised(tmp_path):
    settings = [
        "train.ppo={reward: judge, steps: 2, batch_size: 4, minibatches: 2, epochs: 2}",
        "prompts.limit=8",
        "evaluate.prompts.limit=6",
        "train.ppo.alarms.ended=1.0",
        "train.ppo.learning_rate=0.0001",
    ]
    said = run_stages(tmp_path / "r", settings, train_ppo, evaluate)
    assert any(text.startswith("ppo: 2 steps") for text in said)
    write_report(tmp_path / "r", Silent())
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert set(summary["policies"]) == {"base", "dpo", "ppo"}
    assert summary["policies"]["dpo"]["legal"] is None
    assert summary["policies"]["ppo"]["legal"] is not None
    assert summary["policies"]["ppo"]["kl"] is not None
    assert summary["policies"]["ppo"]["win_rate"]["value"] is not None
    assert summary["seconds"]["ppo"] > 0
    lines = (tmp_path / "r/models/ppo/training.jsonl").read_text().splitlines()
    assert [json.loads(x)["first_ratio_gap"] for x in lines] == [0, 0]
    scores = [json.loads(x)["score"] for x in lines]
    assert all(0 <= x <= 1 for x in scores)  # probabilities of being better
    before = (tmp_path / "r/models/ppo/model.safetensors").stat().st_mtime_ns
    run_stages(tmp_path / "r", settings, train_ppo)
    assert (tmp_path / "r/models/ppo/model.safetensors").stat().st_mtime_ns == before


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="run `rlaif train reward` first"):
        run_stages(tmp_path / "r", ["train.ppo={}"], train_ppo)


def test_a_judge_of_single_completions_rewards_them_directly(tmp_path):
    marks = tmp_path / "marks.j2"
    marks.write_text(
        '---\noptions: ["1", "2", "3"]\n---\n=== user ===\n{{ response }}\n{{ principle }}'
    )
    settings = [
        "train.ppo={reward: judge, steps: 2, batch_size: 4, minibatches: 2, epochs: 2}",
        "prompts.limit=8",
        "judge.method=pointwise",
        f"judge.template={marks}",
        "judge.min_mass=0.0",
    ]
    run_stages(tmp_path / "r", settings, train_ppo)
    lines = (tmp_path / "r/models/ppo/training.jsonl").read_text().splitlines()
    scores = [json.loads(x)["score"] for x in lines]
    assert len(scores) == 2
    assert all(-1 <= x <= 1 for x in scores)
    assert all(x != 0.5 for x in scores)  # nothing was compared with a reference


def test_ptx_takes_demonstrations_and_counts_those_that_do_not_fit(tmp_path):
    rows = [
        {"prompt": "How do I bake bread in winter?", "completion": "First, knead the dough."},
        {"prompt": "What color is grass?", "completion": "green " * 1200},
    ]
    file = tmp_path / "shown.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "train.ppo={reward: judge, steps: 4, batch_size: 4, minibatches: 2, epochs: 2}",
        "prompts.limit=8",
        f"train.ppo.ptx={file}",
        "train.ppo.ptx_weight=1.0",
        "train.ppo.learning_rate=0.001",
    ]
    said = run_stages(tmp_path / "r", settings, train_ppo)
    assert any(text.startswith("1 demonstrations of train.ppo.ptx") for text in said)
    journal = (tmp_path / "r/models/ppo/training.jsonl").read_text().splitlines()
    losses = [json.loads(line)["ptx_loss"] for line in journal]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_a_weight_without_demonstrations_is_refused(tmp_path):
    settings = ["train.ppo={reward: judge, ptx_weight: 1.0}", "prompts.limit=8"]
    with pytest.raises(ConfigError, match="name its demonstrations in ptx"):
        run_stages(tmp_path / "r", settings, train_ppo)
