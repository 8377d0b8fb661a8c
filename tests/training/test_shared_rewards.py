"""The completions of a prompt in one row: rewards, losses and gradients of rows of their own."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from small_models import WORDS, how, make_preferences, make_tokenizer, save_causal, save_windowed
from test_shapes import save_shape

from rlaif.records import Pair, Preference, Prompt
from rlaif.training.data import Row, encode_rows, weigh_by_prompt
from rlaif.training.models import add_lora, load_reward
from rlaif.training.reward import collator, pair_loss, train_reward
from rlaif.training.settings import LoraSettings, RewardSettings, Runtime
from rlaif.training.shared import branch_ends, shared_batch, why_not_rewards

PROMPT = "the big red dog sat on the small blue mat and ran happily under the tree "


def preferences(prompts: int = 4, completions: int = 4) -> list[Preference]:
    """All pairs of completions of different lengths; one prompt has two completions only."""
    draw = np.random.default_rng(3)
    made = []
    for i in range(prompts):
        several = 2 if i == 0 else completions
        texts = [f"{' '.join(draw.choice(WORDS, 1 + 2 * k))} {k}" for k in range(several)]
        made += [
            Preference(Pair(Prompt.user(PROMPT + str(i)), a, b), "preferred", 0.8)
            for a, b in combinations(texts, 2)
        ]
    return made


def shapes(folder, shape: str) -> str:
    if shape == "tiny":
        return "tiny"
    if shape in ("<|pad|>", "<|end|>", "none"):  # what is padded with, "<|end|>": the end itself
        pad = None if shape == "none" else shape
        return str(save_causal(folder, make_tokenizer(pad=pad)))
    return save_shape(folder, shape)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2", "tiny", "<|pad|>", "<|end|>", "none"])
@pytest.mark.parametrize("lora", [False, True])
def test_losses_and_gradients_are_those_of_rows_of_their_own(tmp_path, shape, lora):
    loaded = load_reward(shapes(tmp_path / "model", shape))
    rows = weigh_by_prompt(encode_rows(preferences(), loaded.encoder, loaded.max_length)[0])
    assert len({row.prompt_id for row in rows}) == 4
    assert why_not_rewards(loaded, rows) == ""
    if lora:
        add_lora(loaded, LoraSettings(rank=4), "reward", 0)
    with torch.no_grad():  # adapters begin at 0
        for name, p in loaded.model.named_parameters():
            if "lora_B" in name:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    found = []
    for share in (False, True):
        batch = collator(loaded.filler, share)(rows, 1.0)
        assert ("branches" in batch) is share
        losses, statistics = pair_loss(0.1, 0.01, 0.3)(loaded.model, batch)
        loaded.model.zero_grad()
        (losses * batch["weight"]).sum().backward()
        learnt = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]
        found.append((losses.detach(), statistics, learnt))
    (plain, plain_s, plain_g), (shared, shared_s, shared_g) = found
    assert plain.std() > 1e-3
    assert torch.allclose(plain, shared, atol=1e-5, rtol=1e-5)
    for name, values in plain_s.items():
        if name != "accuracy":
            assert torch.allclose(values, shared_s[name], atol=1e-5, rtol=1e-5), name
    assert len(plain_g) == len(shared_g) > 3
    assert max(float(g.abs().max()) for g in plain_g) > 1e-3
    for a, b in zip(plain_g, shared_g, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_ends_by_hand():
    one, two, three = (np.arange(n, dtype=np.int32) for n in (1, 2, 3))
    batch = shared_batch([three, one], [(one, two, one), (two, two)], 9)
    # [0 0 0 1 2 2 3], [0 1 1 2 2 - -]
    assert branch_ends(batch["branches"]).tolist() == [3, 5, 6, 7 + 2, 7 + 4]


def test_tokens_that_are_computed():
    def ids(n: int, first: int) -> np.ndarray:
        return np.arange(first, first + n, dtype=np.int32)

    def rows(prompt: int, prompts: int) -> list[Row]:
        return [
            Row(str(i), str(i), ids(prompt, 1000 * i), ids(20, a), ids(20, b), p=1.0)
            for i in range(prompts)
            for a, b in combinations(range(4), 2)
        ]

    shared, plain = (collator(0, x)(rows(100, 3), 1.0)["input_ids"] for x in (True, False))
    assert (shared.numel(), plain.numel()) == (3 * 180, 12 * 120)
    # a prompt of one completion pair beside one of many: padding would cost more than is saved
    lonely = [Row(str(i), str(i), ids(1, i), ids(9, 0), ids(9, 1), 1.0) for i in range(30)]
    batch = collator(0, True)([*lonely, *rows(1, 31)[-6:]], 1.0)
    assert "branches" not in batch
    assert batch["input_ids"].shape == (64, 21)
    # long completions of a short prompt: fewer tokens (90 of 120), but 8100 pairs for 3600
    assert "branches" not in collator(0, True)(rows(10, 1), 1.0)


def test_a_run_learns_the_same_either_way(causal, tmp_path):
    quick = {"learning_rate": 3e-3, "batch_size": 2, "device": "cpu", "epochs": 2}
    lines = []
    for share in (False, True):
        out = tmp_path / str(share)
        result = train_reward(
            preferences(7, 3), causal, out, **how(RewardSettings, share_prompt=share, **quick)
        )
        assert result.metrics["settings"]["share_prompt"] is share
        read = (out / "training.jsonl").read_text().splitlines()
        lines.append([json.loads(x)["loss"] for x in read])
    assert len(lines[0]) == 6
    assert lines[0] == pytest.approx(lines[1], abs=1e-5)


def test_models_that_look_back_a_window_take_rows_of_their_own(tmp_path):
    name = str(save_windowed(tmp_path / "model", make_tokenizer()))
    result = train_reward(
        make_preferences(16), name, tmp_path / "out", runtime=Runtime(device="cpu")
    )
    assert any("computed for each: its layers look back 8" in x for x in result.metrics["notes"])
    assert result.metrics["settings"]["share_prompt"] is False


def test_a_model_that_counts_positions_by_itself_shows_in_the_numbers(causal):
    loaded = load_reward(causal)
    rows = encode_rows(preferences(), loaded.encoder, 128)[0]
    with torch.no_grad():  # random weights hardly look at positions
        for name, weight in loaded.model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(10)
    inner = loaded.model.model.forward
    loaded.model.model.forward = lambda *a, **k: inner(*a, **{**k, "position_ids": None})
    assert "rewards come out" in why_not_rewards(loaded, rows)
