"""The forward passes on Llama, Qwen2 and GPT-2 shapes, and precision options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import how, make_preferences, make_tokenizer, save_causal

from rlaif.training.data import encode_rows
from rlaif.training.dpo import train_dpo
from rlaif.training.forward import sequence_logprobs, sequence_rewards
from rlaif.training.models import load_policy, load_reward
from rlaif.training.reward import train_reward
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings


def save_shape(folder: Path, shape: str) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(pad="<|end|>")
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    if shape == "llama":
        return str(save_causal(folder, tokenizer))
    if shape == "qwen2":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            **sizes,
            **heads,
            max_position_embeddings=128,
            attention_dropout=0.2,
            **end,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
    else:
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, **end
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2"])
def test_log_probabilities_and_rewards_do_not_depend_on_the_batch(tmp_path, shape):
    name = save_shape(tmp_path, shape)
    loaded = load_policy(name)
    rows = encode_rows(make_preferences(6), loaded.encoder, 128)[0]
    prompts, completions = [r.prompt for r in rows], [r.rejected for r in rows]
    found = sequence_logprobs(loaded.model, prompts, completions, loaded.filler)
    for prompt, completion, values in zip(prompts, completions, found, strict=True):
        ids = torch.tensor(np.concatenate([prompt, completion]).astype(np.int64))
        table = torch.log_softmax(loaded.model.eval()(ids[None]).logits[0].double(), -1)
        at = torch.arange(len(prompt), len(ids))
        assert values.tolist() == pytest.approx(table[at - 1, ids[at]].tolist(), abs=1e-5)
    reward = load_reward(name)
    sequences = [np.concatenate(pair) for pair in zip(prompts, completions, strict=True)]
    one, together = (
        sequence_rewards(reward.model, sequences, reward.filler, batch_tokens=n) for n in (1, 9_999)
    )
    assert one.tolist() == pytest.approx(together.tolist(), abs=1e-5)


@pytest.mark.parametrize("shape", ["qwen2", "gpt2"])
def test_other_shapes_train(tmp_path, shape):
    name = save_shape(tmp_path / "model", shape)
    quick = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, "device": "cpu"}
    rows = make_preferences(48)
    assert (
        train_dpo(rows, name, tmp_path / "dpo", **how(DPOSettings, **quick)).metrics["accuracy"]
        >= 0.8
    )
    assert (
        train_reward(rows, name, tmp_path / "reward", **how(RewardSettings, **quick)).metrics[
            "accuracy"
        ]
        >= 0.8
    )


def test_bfloat16_and_float32_in_one_process(causal, tmp_path):
    quick = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu"}
    rows = make_preferences(24)
    plain = train_dpo(rows, causal, tmp_path / "a", **how(DPOSettings, **quick))
    half = train_dpo(rows, causal, tmp_path / "b", **how(DPOSettings, bf16=True, **quick))
    lora = train_dpo(
        rows,
        causal,
        tmp_path / "c",
        **how(DPOSettings, bf16=True, lora=LoraSettings(rank=2), **quick),
    )
    again = train_dpo(rows, causal, tmp_path / "d", **how(DPOSettings, **quick))
    assert half.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=0.05)
    assert half.metrics["loss"] != plain.metrics["loss"]
    assert lora.metrics["loss"] < 0.72
    assert again.metrics["loss"] == plain.metrics["loss"]
