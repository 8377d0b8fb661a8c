"""Training a real model for a few steps: the loss begins where it must and falls; what is saved
loads and scores the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.forward import sequence_logprobs
from rlaif.training.models import load_policy
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings, Runtime

QUESTIONS = ("How do I bake bread?", "Where is Paris?", "What is a bear?", "Who was Newton?")
GOOD = "I am glad to help: let us go through it step by step."
BAD = "No. Look it up yourself."
LORA = LoraSettings(rank=8, alpha=16)


def preferences(p: float) -> list[Preference]:
    """Kind answers preferred to rude ones, shown first and second by turns."""
    out = []
    for i, question in enumerate(QUESTIONS):
        prompt = Prompt.user(question)
        pair = Pair(prompt, BAD, GOOD) if i % 2 else Pair(prompt, GOOD, BAD)
        out.append(Preference(pair, "preferred", 1 - p if i % 2 else p))
    return out


def says(engine: HFEngine, text: str) -> float:
    """Log P(the answer's first words) after each question, summed."""
    prompts = [Rendered((RenderedMessage("user", (Segment(q, True),)),)) for q in QUESTIONS]
    return sum(s.logprobs[0] for s in engine.score(prompts, [[" " + text]] * len(prompts)))


@pytest.fixture(scope="module")
def dpo(folder: str, tmp_path_factory):  # type: ignore[no-untyped-def]
    out, logs = tmp_path_factory.mktemp("dpo"), []
    result = train_dpo(
        preferences(0.95),
        folder,
        out,
        DPOSettings(lora=LORA, epochs=4, learning_rate=2e-3, batch_size=4, warmup=0.0),
        runtime=Runtime(device="cpu", on_log=logs.append),
    )
    return result, logs


def test_dpo_begins_at_ln_2_and_its_loss_falls(dpo) -> None:  # type: ignore[no-untyped-def]
    result, logs = dpo
    losses = [log["loss"] for log in logs if "loss" in log]
    print("losses", [round(loss, 3) for loss in losses])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.5
    assert result.metrics["accuracy"] == 1.0


def test_the_trained_folder_prefers_what_was_preferred_and_is_the_adapter_on_its_base(
    dpo, folder: str, engine: HFEngine
) -> None:  # type: ignore[no-untyped-def]
    out = dpo[0].path
    merged = HFEngine(str(out), EngineSettings(device="cpu"))
    good, bad = says(merged, GOOD), says(merged, BAD)
    assert good - bad > says(engine, GOOD) - says(engine, BAD) + 1.0
    assert merged.encoder.prompt(Rendered.chat(Prompt.user("Hi").messages))[0] == 2  # its <bos>
    merged.close()  # a gigabyte
    adapted = HFEngine(folder, EngineSettings(device="cpu", adapter=str(out / "adapter")))
    assert says(adapted, GOOD) == pytest.approx(good, abs=1e-3)
    adapted.close()
    assert json.loads((out / "config.json").read_text())["model_type"] == "gemma3_text"


def test_log_probabilities_of_training_are_those_of_the_engine(
    folder: str, engine: HFEngine
) -> None:
    loaded = load_policy(folder)
    prompts = [loaded.encoder.sequence(Prompt.user(q), GOOD)[0] for q in QUESTIONS]
    option = engine.encoder.option(" " + GOOD)
    with torch.no_grad():
        found = sequence_logprobs(loaded.model, prompts, [option] * len(prompts), loaded.filler)
    assert sum(float(np.sum(values.tolist())) for values in found) == pytest.approx(
        says(engine, GOOD), abs=2e-3
    )


def test_a_reward_model_learns_and_scores_the_same_when_loaded(folder: str, tmp_path: Path) -> None:
    logs: list[dict[str, float]] = []
    result = train_reward(
        preferences(0.95),
        folder,
        tmp_path,
        RewardSettings(lora=LORA, epochs=4, learning_rate=2e-3, batch_size=4, warmup=0.0),
        runtime=Runtime(device="cpu", on_log=logs.append),
    )
    losses = [log["loss"] for log in logs if "loss" in log]
    print("losses", [round(loss, 3) for loss in losses])
    assert losses[-1] < losses[0]
    prompts = [Prompt.user(q) for q in QUESTIONS]
    reward = RewardModel(result.path)
    good, bad = (reward.rewards(prompts, [text] * len(prompts)) for text in (GOOD, BAD))
    assert all(g > b for g, b in zip(good, bad, strict=True))
    alone = [reward.rewards([prompt], [GOOD])[0] for prompt in prompts]
    assert alone == pytest.approx(good, abs=1e-3)
