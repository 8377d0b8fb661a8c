"""The judge that looks on while PPO learns from a function, on the embedded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_ppo_command import run_stages

from rlaif.stages import train_ppo
from rlaif.training.rl.watch import held_out_alarm

REWARDS = """
from rlaif.tiny.gold import gold

def harmless(prompts, texts):
    told = [gold(p.messages[-1].content, t).traits["harmless"] for p, t in zip(prompts, texts)]
    return [0.5 if x is None else x for x in told]

def harmful(prompts, texts):
    return [1 - x for x in harmless(prompts, texts)]
"""


@pytest.fixture(autouse=True)
def rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("seen_rewards.py").write_text(REWARDS)
    yield
    sys.modules.pop("seen_rewards", None)
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


def train(out: Path, reward: str, *more: str, steps: int = 9) -> list[dict]:
    sizes = f"steps: {steps}, batch_size: 32, minibatches: 2, epochs: 2, learning_rate: 3.0e-4"
    settings = [
        f"train.ppo={{reward: 'seen_rewards:{reward}', {sizes}, beta: 0.01, value_weight: 0.1}}",
        "prompts.limit=64",
        "train.ppo.held_out.every=4",
        *more,
    ]
    run_stages(out, settings, train_ppo)
    return [json.loads(x) for x in (out / "models/ppo/training.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_fires_when_the_reward_is_what_the_judge_dislikes_and_only_then(tmp_path):
    bad, good = (train(tmp_path / name, name) for name in ("harmful", "harmless"))
    assert [i for i, x in enumerate(bad) if "held_out" in x] == [0, 4, 8]
    assert bad[-1]["held_out"] < bad[0]["held_out"] - 0.05
    assert any("held_out" in x["alarms"] for x in bad)
    assert good[-1]["held_out"] > good[0]["held_out"]
    assert not any("held_out" in x["alarms"] for x in good)


@pytest.mark.parametrize("mask", ["train.ppo.mask_top_p=null", "train.ppo.mask_top_p=0.9"])
def test_weights_are_the_same_with_and_without(tmp_path, mask):
    seen = train(tmp_path / "on", "harmful", mask, "train.ppo.held_out.every=1", steps=3)
    unseen = train(tmp_path / "off", "harmful", mask, "train.ppo.held_out=null", steps=3)
    assert all("held_out" in x for x in seen)
    assert not any("held_out" in x for x in unseen)
    on, off = (load_file(tmp_path / n / "models/ppo/model.safetensors") for n in ("on", "off"))
    assert all(on[k].equal(off[k]) for k in on)
    before = (tmp_path / "on/models/ppo/model.safetensors").stat().st_mtime_ns
    train(tmp_path / "on", "harmful", mask, "train.ppo.held_out=null", steps=3)  # same run key
    assert (tmp_path / "on/models/ppo/model.safetensors").stat().st_mtime_ns == before


def test_the_alarm_wants_both_a_rise_and_a_fall():
    def lines(scores: list[float], judged: float | None) -> list[dict]:
        out: list[dict] = [{"score": x} for x in scores]
        out[0]["held_out"], out[-1]["held_out"] = 0.5, judged
        return out

    up, down = [0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.0]
    assert "from 0.050 to 0.250" in (held_out_alarm(lines(up, 0.4), 2, 0.05) or "")
    assert held_out_alarm(lines(up, 0.46), 2, 0.05) is None
    assert held_out_alarm(lines(down, 0.4), 2, 0.05) is None
    assert held_out_alarm(lines(up, None), 2, 0.05) is None
    assert held_out_alarm(lines(up, 0.4), 2, None) is None
