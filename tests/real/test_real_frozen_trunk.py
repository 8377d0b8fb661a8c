"""A reward model on the frozen real model: its features, its fit, and what is saved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rlaif.records import Pair, Preference, Prompt
from rlaif.training.features import Features, compute, depths_of, sequence_key
from rlaif.training.forward import sequence_outputs
from rlaif.training.models import load_reward
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.settings import RewardSettings, Runtime

KIND = ["I am glad to help you with that.", "Of course, here is a safe way to do it."]
RUDE = ["You are an idiot, leave me alone.", "I hate you and I hope that you fail."]
ASKED = ["bake bread", "fix a bike", "learn to swim", "write a poem", "plant a tree", "cook rice"]


def _preferences() -> list[Preference]:
    draw = random.Random(0)
    rows = []
    for what in ASKED:
        for who in ("my son", "a friend"):
            prompt = Prompt.user(f"How can {who} {what}?")
            good, bad = draw.choice(KIND), draw.choice(RUDE)
            rows.append(Preference(Pair(prompt, good, bad), "preferred", 0.9))
    return rows


def test_features_are_the_states_of_plain_passes(folder, tmp_path):
    loaded = load_reward(folder)
    encode = loaded.encoder.sequence
    texts = [(p.pair.prompt, t) for p in _preferences()[:3] for t in (p.chosen, p.rejected)]
    sequences = [np.concatenate(encode(*each)) for each in texts]
    depths = depths_of(loaded.model, [12, 18])
    features = Features(tmp_path, "m", depths, 640)
    compute(loaded, sequences, features, lambda *_: None)
    assert not [n for n in loaded.notes if "computed for each" in n]
    loaded.model.score = torch.nn.Identity()
    plain = sequence_outputs(loaded.model, sequences, loaded.filler)
    found = features.read([sequence_key(s) for s in sequences], 18)
    assert np.abs(found - plain).max() < 1e-3 * np.abs(plain).max()


def test_the_head_learns_on_a_shorter_model_and_comes_back(folder, tmp_path):
    made = train_reward(
        _preferences(),
        folder,
        tmp_path / "reward",
        RewardSettings(trunk="frozen", layers=[8, 10], held_out=0.25),
        runtime=Runtime(device="cpu"),
    )
    assert made.accuracy == 1
    model = RewardModel(made.path, device="cpu")
    prompt = Prompt.user("How can we sing?")
    kind, rude = model.ensemble([prompt] * 2, [KIND[0], RUDE[0]])
    assert kind[0] > rude[0]
    assert model.rewards([prompt], [KIND[0]]) == pytest.approx([kind[0]], abs=1e-3)
