"""Chosen and rejected in one row: the same losses and gradients as in rows of their own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from small_models import how, make_preferences, make_tokenizer, save_windowed
from test_shapes import save_shape

from rlaif.training.data import Plan, Row, encode_rows
from rlaif.training.dpo import collator, pair_loss, reference_logprobs, train_dpo
from rlaif.training.models import load_policy
from rlaif.training.settings import DPOSettings, Runtime
from rlaif.training.shared import branch_logprobs, shared_batch, tree_mask, why_not


def test_the_mask_by_hand():
    # prompt of 2, completions of 2 and 1, one of padding
    mask = tree_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_positions_go_on_from_the_prompt_in_each_completion():
    prompt, one, two = (np.arange(n, dtype=np.int32) for n in (3, 2, 4))
    batch = shared_batch([prompt, prompt[:1]], [(one, two), (one, one)], 9)
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 3, 4, 5, 6],
        [0, 1, 2, 1, 2, 0, 0, 0, 0],
    ]
    assert batch["branches"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 2, 2, *[-1] * 4]]
    assert batch["input_ids"][1, 5:].tolist() == [9] * 4


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_losses_and_gradients_are_those_of_rows_of_their_own(tmp_path, shape, loss):
    loaded = load_policy(save_shape(tmp_path / "model", shape))
    rows = encode_rows(make_preferences(7), loaded.encoder, 128)[0]
    assert why_not(loaded, rows) == ""
    step = [[i] for i in range(len(rows))]
    plan = Plan(rows, [step], collator(loaded.filler, None))
    reference = reference_logprobs(loaded, plan, tmp_path)
    with torch.no_grad():  # away from the reference, so that losses differ
        for p in loaded.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    found = []
    for share in (False, True):
        batch = collator(loaded.filler, reference, share)(rows, 1.0)
        losses, statistics = pair_loss(loss, 0.1, 0.0, nll=0.3)(loaded.model, batch)
        loaded.model.zero_grad()
        losses.mean().backward()
        gradients = [p.grad.clone() for p in loaded.model.parameters()]
        found.append((losses.detach(), statistics, gradients))
    (plain, plain_s, plain_g), (shared, shared_s, shared_g) = found
    assert torch.allclose(plain, shared, atol=1e-5, rtol=1e-5)
    assert plain.std() > 1e-3
    for name, values in plain_s.items():
        assert torch.allclose(values, shared_s[name], atol=1e-4, rtol=1e-5), name
    for a, b in zip(plain_g, shared_g, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_several_completions_against_plain_log_softmax(causal):
    loaded = load_policy(causal)
    draw = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return draw.integers(5, 200, n).astype(np.int32)

    prompts, several = [ids(7), ids(3)], [[ids(4), ids(1), ids(6)], [ids(2), ids(2), ids(5)]]
    with torch.no_grad():
        sums, counts = branch_logprobs(loaded.model, shared_batch(prompts, several, loaded.filler))
        for b, (prompt, completions) in enumerate(zip(prompts, several, strict=True)):
            for k, completion in enumerate(completions):
                whole = torch.tensor(np.concatenate([prompt, completion]).astype(np.int64))
                table = torch.log_softmax(loaded.model(whole[None]).logits[0].double(), -1)
                at = torch.arange(len(prompt), len(whole))
                by_hand = table[at - 1, whole[at]].sum().item()
                assert sums[b, k].item() == pytest.approx(by_hand, abs=1e-4)
                assert counts[b, k].item() == len(completion)


def test_a_run_learns_the_same_either_way(causal, tmp_path):
    quick = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu"}
    losses = []
    for share in (False, True):
        out = tmp_path / str(share)
        result = train_dpo(
            make_preferences(32), causal, out, **how(DPOSettings, share_prompt=share, **quick)
        )
        assert result.metrics["settings"]["share_prompt"] is share
        lines = (out / "training.jsonl").read_text().splitlines()
        losses.append([json.loads(x)["loss"] for x in lines])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5)


def test_models_that_look_back_a_window_take_rows_of_their_own(tmp_path):
    name = str(save_windowed(tmp_path / "model", make_tokenizer()))
    result = train_dpo(make_preferences(16), name, tmp_path / "out", runtime=Runtime(device="cpu"))
    assert any("computed twice: its layers look back 8" in note for note in result.metrics["notes"])
    assert result.metrics["settings"]["share_prompt"] is False


def test_what_a_config_does_not_tell_shows_in_the_numbers(causal):
    loaded = load_policy(causal)
    rows = encode_rows(make_preferences(4), loaded.encoder, 128)[0]
    assert why_not(loaded, rows) == ""
    inner = loaded.model.forward

    with torch.no_grad():  # random weights hardly look at positions
        for name, weight in loaded.model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(10)

    def deaf(*args, **kwargs):  # a model that counts positions by itself
        return inner(*args, **{**kwargs, "position_ids": None})

    loaded.model.forward = deaf
    assert "apart" in why_not(loaded, rows)
    loaded.model.forward = inner
    loaded.model.config._attn_implementation = "eager"
    assert why_not(loaded, rows) == "its attention is eager, not sdpa"


def test_tokens_that_are_computed():
    rows = [
        Row(str(i), str(i), *(np.ones(n, np.int32) for n in (200, 60, 50)), p=1.0) for i in range(4)
    ]
    both = [(row.chosen, row.rejected) for row in rows]
    shared = shared_batch([row.prompt for row in rows], both, 0)
    assert shared["input_ids"].numel() == 4 * 310  # in rows of their own: 8 * 260
