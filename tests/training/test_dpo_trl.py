"""DPO's losses by TRL: against their formulas, on hard labels only, exactly resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from small_models import how

from rlaif import tiny
from rlaif.errors import ConfigError
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.settings import DPO_LOSSES, TRL_LOSSES, DPOSettings

PROMPTS = [Prompt.user(p.text) for p in tiny.prompts("train", limit=8)]
HARD = [
    Preference(Pair(p, f"It is {'very ' * (i % 3)}good.", "I do not know."), "preferred", 1.0)
    for i, p in enumerate(PROMPTS)
]
OPTIONS: dict[str, Any] = {"device": "cpu", "epochs": 2, "batch_size": 4, "learning_rate": 1e-3}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "training.jsonl").read_text("utf-8").splitlines()]


# At the first step the policy is the reference, all log-ratios are 0, and the losses known numbers.
AT_START = {
    "hinge": 1.0,  # max(0, 1 − 0)
    "nca_pair": 2 * 0.6931472,  # −log σ(0) − ½ log σ(0) − ½ log σ(0)
    "bco_pair": 2 * 0.6931472,  # −log σ(0 − 0) − log σ(0 − 0)
    "apo_zero": 1.0,  # (1 − σ(0)) + σ(0)
    "apo_down": 1.0,  # σ(0) + (1 − σ(0))
    "aot": 0.6931472,
}


@pytest.mark.parametrize("loss", sorted(AT_START))
def test_the_first_loss_is_the_formulas_and_training_prefers_the_chosen(
    tmp_path: Path, loss: Any
) -> None:
    result = train_dpo(HARD, "tiny", tmp_path, **how(DPOSettings, loss=loss, **OPTIONS))
    rows = lines(tmp_path)
    assert len(rows) == result.steps == 4
    assert rows[0]["loss"] == pytest.approx(AT_START[loss], abs=2e-4)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["margin"] > 0.05
    assert rows[-1]["accuracy"] == 1.0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_stopped_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: Any) -> None:
        if row["step"] == 3:
            raise Stop

    train_dpo(HARD, "tiny", tmp_path / "a", **how(DPOSettings, loss="hinge", **OPTIONS))
    with pytest.raises(Stop):
        train_dpo(
            HARD,
            "tiny",
            tmp_path / "b",
            **how(DPOSettings, loss="hinge", checkpoint_every=2, on_log=stop, **OPTIONS),
        )
    train_dpo(
        HARD,
        "tiny",
        tmp_path / "b",
        **how(DPOSettings, loss="hinge", checkpoint_every=2, **OPTIONS),
    )
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_soft_labels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    soft = [*HARD, replace(HARD[0], p_first=0.7)]
    with pytest.raises(ConfigError, match=r"1 of 9 .* 0\.700.*preferences.soft=false"):
        train_dpo(soft, "tiny", tmp_path, DPOSettings(loss="hinge"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "exo_pair"}, "needs a label noise"),
        ({"loss": "hinge", "label_noise": 0.1}, "label noise is for"),
        ({"loss": "hinge", "nll": 1.0}, "takes no `nll`"),
        ({"loss": "hing"}, "'hinge'"),
    ],
)
def test_options_that_do_not_belong_together(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_dpo(HARD, "tiny", tmp_path, **how(DPOSettings, **options))


def test_the_config_knows_all_losses_and_trl_too() -> None:
    from trl import DPOConfig as Theirs

    told = get_args(DPOSettings.model_fields["loss"].annotation)
    assert sorted(told) == sorted((*DPO_LOSSES, *TRL_LOSSES))
    text = str(Theirs.__dataclass_fields__["loss_type"].metadata["help"])
    assert [name for name in TRL_LOSSES if f"`'{name}'`" not in text] == []
