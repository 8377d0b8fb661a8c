from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from small_models import how, make_preferences

from rlaif.errors import ConfigError
from rlaif.records import Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.models import load_policy
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import TRACKERS, DPOSettings, LoraSettings, Runtime

ABSENT = [name for name in TRACKERS if find_spec(name) is None]


def never(*_):
    raise AssertionError("nothing is sampled before the trackers are known to be there")


def test_an_unknown_tracker_is_named(causal, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'.*tensorboard"):
        train_dpo(
            make_preferences(4),
            causal,
            tmp_path,
            runtime=Runtime(log_to=("tensorbord",), device="cpu"),
        )


@pytest.mark.skipif(not ABSENT, reason="all trackers are installed")
def test_a_tracker_that_is_not_installed_stops_before_training(causal, tmp_path):
    name = ABSENT[0]
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        train_dpo(
            make_preferences(4), causal, tmp_path, runtime=Runtime(log_to=(name,), device="cpu")
        )
    runtime = Runtime(log_to=(name,))
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        train_ppo([Prompt.user("a")], causal, tmp_path, FunctionScorer(never), runtime=runtime)
    assert not (tmp_path / "training.jsonl").exists()


def test_tensorboard_holds_what_the_journal_holds(causal, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quick = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu"}
    train_dpo(
        make_preferences(32),
        causal,
        tmp_path / "dpo",
        **how(DPOSettings, log_to=("tensorboard",), **quick),
    )
    prompts = [Prompt.user(f"the cat {i}") for i in range(8)]
    settings = PPOSettings(steps=2, batch_size=4, max_new_tokens=4)
    scorer = FunctionScorer(lambda _, texts: [float(len(t)) for t in texts])
    to_tensorboard = Runtime(log_to=("tensorboard",))
    train_ppo(prompts, causal, tmp_path / "ppo", scorer, settings, runtime=to_tensorboard)
    for name, number in (("dpo", "loss"), ("ppo", "score")):
        lines = (tmp_path / name / "training.jsonl").read_text().splitlines()
        events = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        shown = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(number)]
        assert [(x["step"], x[number]) for x in map(json.loads, lines)] == shown


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_four_bits_need_bitsandbytes(causal, tmp_path):
    lora = LoraSettings(four_bit=True)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        train_dpo(
            make_preferences(4),
            causal,
            tmp_path,
            DPOSettings(lora=lora),
            runtime=Runtime(device="cpu"),
        )
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        load_policy(causal, four_bit=True)
