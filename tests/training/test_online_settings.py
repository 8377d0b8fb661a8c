"""Settings of the online trainers: run keys are those of begun runs; YAML and Python are one."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.config import load_config
from rlaif.config.sections import GRPOConfig, PPOConfig, RLOOConfig
from rlaif.errors import ConfigError
from rlaif.training.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineSettings,
    PPOSettings,
    RLOOSettings,
)
from rlaif.training.settings import LoraSettings

# What stands in the run keys of versions that declared these settings a second time in the code.
PPO: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 64,
    "samples": 1,
    "epochs": 4,
    "minibatches": 4,
    "algorithm": "ppo",
    "learning_rate": 3e-06,
    "value_learning_rate": None,
    "beta": 0.05,
    "target_kl": None,
    "horizon": 10000,
    "kl_estimator": "k1",
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "value_clip": 0.2,
    "value_weight": 0.1,
    "entropy_weight": 0.0,
    "ptx_weight": 0.0,
    "whiten_rewards": False,
    "temperature": 1.0,
    "max_new_tokens": 256,
    "mask_top_p": None,
    "mask_every": 20,
    "rollouts": "hf",
    "no_end_score": -1.0,
    "max_grad_norm": 1.0,
    "value": "shared",
    "value_model": None,
    "lora": None,
    "bf16": False,
    "gradient_checkpointing": False,
    "seed": 7,
}
GRPO: dict[str, Any] = {
    "algorithm": "grpo",
    "steps": 500,
    "batch_size": 64,
    "group": 8,
    "iterations": 1,
    "gradient_accumulation": 1,
    "learning_rate": 1e-06,
    "warmup": 0.0,
    "beta": 0.05,
    "clip": 0.2,
    "scale": "group",
    "loss": "dapo",
    "temperature": 1.0,
    "max_new_tokens": 256,
    "no_end_score": -1.0,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "lora": None,
    "bf16": False,
    "gradient_checkpointing": False,
    "seed": 7,
}
ONLINE: dict[str, Any] = {
    "steps": 500,
    "batch_size": 32,
    "minibatches": 1,
    "learning_rate": 1e-06,
    "loss": "sigmoid",
    "beta": 0.1,
    "label_noise": 0.0,
    "nll": 0.0,
    "temperature": 1.0,
    "max_new_tokens": 256,
    "keep_cut": False,
    "max_grad_norm": 1.0,
    "lora": None,
    "bf16": False,
    "seed": 7,
}
LORA = {"rank": 4, "alpha": 32, "dropout": 0.0, "targets": ("q_proj",), "four_bit": False}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (PPOSettings(), PPO),
        (PPOSettings(algorithm="a2c"), PPO | {"algorithm": "a2c", "epochs": 1, "minibatches": 1}),
        (PPOConfig(reward="judge", ptx="rows.jsonl", checkpoint_every=1), PPO),
        (PPOSettings(lora=LoraSettings(rank=4, targets=("q_proj",))), PPO | {"lora": LORA}),
        (GRPOSettings(), GRPO),
        (RLOOSettings(max_new_tokens=8), GRPO | {"algorithm": "rloo", "max_new_tokens": 8}),
        (GRPOConfig(rounds=2, scale="none"), GRPO | {"scale": "none"}),
        (RLOOConfig(against="reference"), GRPO | {"algorithm": "rloo"}),
        (OnlineDPOSettings(), ONLINE),
        (
            OnlineDPOSettings(keep_cut=True, max_new_tokens=9),
            ONLINE | {"keep_cut": True, "max_new_tokens": 9},
        ),
    ],
)
def test_the_key_of_a_begun_run_is_found_again(settings: OnlineSettings, key: dict) -> None:
    assert settings.key() == key


def test_what_only_looks_on_is_in_no_key() -> None:
    quiet = {"alarms": {"kl": None}, "held_out": None, "checkpoint_every": 3}
    assert PPOSettings(**quiet).key() == PPO


def test_a_file_and_python_are_told_of_the_same_faults() -> None:
    for section, made, wrong, why in (
        ("ppo", PPOSettings, {"batch_size": 10}, "not a multiple of minibatches 4"),
        ("ppo", PPOSettings, {"algorithm": "a2c", "epochs": 2}, "set epochs and minibatches to 1"),
        ("grpo", GRPOSettings, {"batch_size": 10}, "multiple of group 8"),
        ("rloo", RLOOSettings, {"beta": 0}, "beta"),
        ("online_dpo", OnlineDPOSettings, {"loss": "cdpo"}, "needs a label noise"),
    ):
        with pytest.raises(ConfigError, match=why):
            made(**wrong)
        options = [f"train.{section}.{name}={value}" for name, value in wrong.items()]
        with pytest.raises(ConfigError, match=why):
            load_config("demo", [f"train.{section}={{}}", *options], {})
