"""Before any step the policy is its reference, in whatever precision: no reward, no KL, ratio 1.

A reference computed in another precision, or by another way through the model, than the policy's
loss is noise on the reward before anything is learnt, which grows with the length.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import WORDS, make_tokenizer, save_causal

from rlaif.engines.settings import EngineSettings
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer, Labels
from rlaif.training.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
)
from rlaif.training.settings import DPOSettings, LoraSettings, Runtime

CPU = Runtime("cpu")
ADAPTERS = LoraSettings(rank=2, dropout=0.1)
ways = pytest.mark.parametrize(
    ("bf16", "lora"),
    [(True, None), (True, ADAPTERS), (False, None)],
    ids=["bf16", "bf16-lora", "float32"],
)
SCORER = FunctionScorer(lambda _, texts: [float(len(text)) for text in texts])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A small model of sharp opinions: rounding shows in its log-probabilities."""
    folder = save_causal(tmp_path_factory.mktemp("causal"), make_tokenizer(), tied=False)
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for p in loaded.parameters():
            p.mul_(6.0) if p.dim() == 2 else None
    loaded.save_pretrained(folder)
    return str(folder)


def long_pairs(n: int, p: float = 0.9) -> list[Preference]:
    draw = random.Random(7)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    rows = [
        Pair(Prompt.user(f"{words(2, 9)} {i // 2}"), words(9, 30), words(9, 30)) for i in range(n)
    ]
    return [Preference(pair, "preferred", p) for pair in rows]


def first_line(folder: Path) -> dict:
    return json.loads((folder / "training.jsonl").read_text("utf-8").splitlines()[0])


def lines(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "training.jsonl").read_text("utf-8").splitlines()]


@ways
@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
def test_dpo(model, tmp_path, bf16, lora, share):
    train_dpo(
        long_pairs(23),
        model,
        tmp_path,
        DPOSettings(
            share_prompt=share,
            bf16=bf16,
            lora=lora,
            batch_size=3,
            gradient_accumulation=2,
            learning_rate=1e-30,  # too small for any weight
            epochs=2,
        ),
        runtime=Runtime(device="cpu"),
    )
    rows = lines(tmp_path)
    for row in rows[: len(rows) // 2]:  # the first epoch, of a policy that stays as it was
        assert (row["reward_chosen"], row["reward_rejected"], row["margin"]) == (0, 0, 0)
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # Later epochs put the same rows into other batches: what may differ is a batch's rounding.
    assert all(abs(row["margin"]) < (0.02 if bf16 else 1e-5) for row in rows)


@ways
def test_dpo_by_trl(model, tmp_path, bf16, lora):
    train_dpo(
        long_pairs(12, p=1.0),
        model,
        tmp_path,
        DPOSettings(
            loss="apo_zero",
            bf16=bf16,
            lora=lora,
            batch_size=3,
            gradient_accumulation=2,
            learning_rate=1e-30,  # too small for any weight
            epochs=2,
        ),
        runtime=Runtime(device="cpu"),
    )
    rows = lines(tmp_path)
    for row in rows[: len(rows) // 2]:
        assert (row["reward_chosen"], row["reward_rejected"], row["margin"]) == (0, 0, 0)
    assert all(abs(row["margin"]) < (0.02 if bf16 else 1e-5) for row in rows)


PROMPTS = [Prompt.user(" ".join(WORDS[i : i + 3 + i % 4])) for i in range(8)]


@ways
def test_online_dpo(model, tmp_path, bf16, lora):
    def label(pairs):
        return [replace(long_pairs(1)[0], pair=pair) for pair in pairs]

    settings = OnlineDPOSettings(
        steps=2,
        batch_size=6,
        minibatches=2,
        max_new_tokens=40,
        keep_cut=True,
        bf16=bf16,
        lora=lora,
        learning_rate=1e-30,
    )
    train_online_dpo(PROMPTS, model, tmp_path, Labels(label, "k"), settings, runtime=CPU)
    for row in lines(tmp_path):
        names = ("kl", "reward_chosen", "reward_rejected", "margin")
        assert [row[name] for name in names] == [0, 0, 0, 0]


@ways
def test_ppo(model, tmp_path, bf16, lora):
    settings = PPOSettings(
        steps=1,
        batch_size=8,
        minibatches=2,
        epochs=1,
        max_new_tokens=40,
        bf16=bf16,
        lora=lora,
        value="separate" if lora else "shared",
    )
    train_ppo(
        PROMPTS, model, tmp_path, SCORER, settings, runtime=Runtime("cpu", on_log=lambda _: None)
    )
    row = first_line(tmp_path)
    assert (row["kl"], row["first_ratio_gap"], row["first_approx_kl"]) == (0, 0, 0)


@ways
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_grpo_and_rloo(model, tmp_path, bf16, lora, algorithm):
    kind = {"grpo": GRPOSettings, "rloo": RLOOSettings}[algorithm]
    settings = kind(
        steps=1,
        batch_size=8,
        group=2,
        gradient_accumulation=2,
        max_new_tokens=40,
        bf16=bf16,
        lora=lora,
    )
    train_group(PROMPTS, model, tmp_path, SCORER, settings, runtime=CPU)
    assert first_line(tmp_path)["kl"] == 0


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_kl_of_an_evaluation(model, tmp_path, dtype):
    """A base that is stored in bfloat16, and its copy as training saves it, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.policy import kl_to_base

    half = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    for folder, weights in (("base", half), ("policy", half.float())):
        weights.to(torch.bfloat16 if folder == "base" else torch.float32)
        weights.save_pretrained(tmp_path / folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / folder)
    engines = [
        HFEngine(str(tmp_path / name), EngineSettings(device="cpu", dtype=dtype))
        for name in ("policy", "base")
    ]
    rows = long_pairs(8)
    found = kl_to_base(*engines, [r.pair.prompt for r in rows], [r.pair.first for r in rows])
    assert (found.value, found.k3) == (0, 0)
    assert np.isfinite(found.stderr)
