"""A training begun by an earlier version is gone on with: what its key is made of stays.

The literals are what the trainers hashed when settings were plain arguments (commit 2909231).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlaif.config import Config
from rlaif.records import content_id
from rlaif.training import settings as sections
from rlaif.training.data import Samples
from rlaif.training.settings import (
    DPOSettings,
    JudgeTrainSettings,
    LoraSettings,
    RewardSettings,
    SFTSettings,
    TrainSettings,
)

SHARED: dict[str, Any] = {
    "epochs": 1,
    "learning_rate": 1e-05,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "max_length": None,
    "warmup": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 7,
    "lora": None,
    "merge": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
LORA = {"rank": 4, "alpha": 32, "dropout": 0.0, "targets": ["q_proj"], "four_bit": False}
DPO: dict[str, Any] = {
    "beta": 0.1,
    "loss": "sigmoid",
    "label_noise": 0.0,
    "nll": 0.0,
    "share_prompt": True,
}
REWARD: dict[str, Any] = {
    "held_out": 0.1,
    "margin": 0.0,
    "centring": 0.0,
    "normalise_first": False,
    "share_prompt": True,
}
JUDGE: dict[str, Any] = {"held_out": 0.1, "share_prompt": True}


def hashed(settings: TrainSettings) -> str:
    frozen = settings.frozen() if isinstance(settings, RewardSettings) else {}
    return content_id(settings.key(), [*settings.own().values(), *frozen.values()])


def before(shared: dict[str, Any], own: dict[str, Any]) -> str:
    return content_id({**SHARED, **shared}, list(own.values()))


@pytest.mark.parametrize(
    ("settings", "shared", "own"),
    [
        (TrainSettings(), {}, {}),
        (
            TrainSettings(
                epochs=3,
                max_length=64,
                lora=LoraSettings(rank=4, targets=("q_proj",)),
                checkpoint_every=3,
            ),
            {"epochs": 3, "max_length": 64, "lora": LORA},
            {},
        ),
        (DPOSettings(), {"learning_rate": 1e-06}, DPO),
        (
            DPOSettings(beta=0.05, loss="cdpo", label_noise=0.1, nll=0.2, share_prompt=False),
            {"learning_rate": 1e-06},
            {"beta": 0.05, "loss": "cdpo", "label_noise": 0.1, "nll": 0.2, "share_prompt": False},
        ),
        (Config().train.dpo, {"learning_rate": 1e-06}, DPO),
        (RewardSettings(), {}, REWARD),
        (Config().train.reward, {}, REWARD),
        (
            RewardSettings(held_out=0.2, margin=0.3, centring=0.01, normalise_first=True),
            {},
            {
                "held_out": 0.2,
                "margin": 0.3,
                "centring": 0.01,
                "normalise_first": True,
                "share_prompt": True,
            },
        ),
        (
            RewardSettings(trunk="frozen", layers=[1, 2], heads=8),
            {},
            {**REWARD, "trunk": "frozen", "heads": 8, "layers": [1, 2]},
        ),
        (
            RewardSettings(trunk="frozen"),
            {},
            {**REWARD, "trunk": "frozen", "heads": 16, "layers": None},
        ),
        (SFTSettings(batch_size=3), {"batch_size": 3}, {}),
        (JudgeTrainSettings(), {"batch_size": 4, "gradient_accumulation": 2}, JUDGE),
        (
            JudgeTrainSettings(held_out=0.0, share_prompt=False, batch_size=8),
            {"batch_size": 8, "gradient_accumulation": 2},
            {"held_out": 0.0, "share_prompt": False},
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, TrainSettings) else "",
)
def test_keys_are_those_of_before(
    settings: TrainSettings, shared: dict[str, Any], own: dict[str, Any]
) -> None:
    assert hashed(settings) == before(shared, own)


def test_what_is_known_of_samples_is_keyed_as_before() -> None:
    assert Samples().key() == [[]]
    tokens = {("b", "y"): (3, 4), ("a", "x"): [1, 2]}
    known = content_id("sampled", [["a", "x", [1, 2]], ["b", "y", [3, 4]]])
    assert Samples({("p", "t"), ("a", "z")}, tokens).key() == [[("a", "z"), ("p", "t")], known]


OTHERS: dict[str, Any] = {  # another value of a field, where that is not plain from its default
    "max_length": 64,
    "lora": LoraSettings(),
    "loss": "ipo",
    "label_noise": 0.2,
    "trunk": "frozen",
    "layers": (2,),
}
NEEDED: dict[str, Any] = {
    "label_noise": {"loss": "cdpo", "label_noise": 0.1},
    "heads": {"trunk": "frozen"},
    "layers": {"trunk": "frozen"},
}


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 or 0.3


@pytest.mark.parametrize("section", [DPOSettings, RewardSettings, SFTSettings, JudgeTrainSettings])
def test_a_key_holds_every_setting_but_how_often_is_saved(section: Callable[..., Any]) -> None:
    fields: dict[str, Any] = section.model_fields  # type: ignore[attr-defined]
    for name, field in fields.items():
        given = NEEDED.get(name, {})
        wanted = OTHERS[name] if name in OTHERS else other(field.default)
        one, two = section(**given), section(**{**given, name: wanted})
        assert (hashed(one) == hashed(two)) == (name == "checkpoint_every"), name


def test_all_sections_of_trainers_are_looked_at() -> None:
    """Each trainer's section overrides `own`, or has nothing beside what all share."""
    for section in vars(sections).values():
        if isinstance(section, type) and issubclass(section, TrainSettings):
            held = set(section().own())
            if issubclass(section, RewardSettings):
                held |= set(section(trunk="frozen").frozen())
            assert section.model_fields.keys() - TrainSettings.model_fields == held
