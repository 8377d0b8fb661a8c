"""Sequences in one row are what they are alone: hidden states, gradients, and PPO's own steps."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rlaif.training.models import disable_dropout
from rlaif.training.rl import packing
from rlaif.training.rl.packing import learn_packing, packed

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2}
SHAPES = ["llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt2", "mixtral"]
SEQUENCES = [np.arange(5, 12), np.array([40]), np.arange(60, 64), np.arange(20, 33)]


def make(shape: str, **options):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[shape](**(GPT2 if shape == "gpt2" else SIZES), **options)
    dtype = torch.float32 if shape == "mixtral" else torch.float64  # its experts have no float64
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    disable_dropout(model)
    return model


def looked_at(model, inputs: list[dict]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of one token everywhere, and the gradient of their weighted sum."""
    model.zero_grad()
    logits = torch.cat([model(**x, use_cache=False).logits[0] for x in inputs])
    picked = logits.log_softmax(-1)[:, 3]
    (picked * torch.linspace(-1, 2, len(picked))).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return picked.detach(), found


def both_ways(model) -> None:
    alone = [{"input_ids": torch.from_numpy(s)[None]} for s in SEQUENCES]
    wanted, gradients = looked_at(model, alone)
    found, same = looked_at(model, [packed(SEQUENCES, "cpu")])
    limit = 1e-12 if model.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, atol=limit, rtol=0)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():  # some norms round to float32
        torch.testing.assert_close(same[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_sequences_is_each_alone(shape):
    model = make(shape)
    assert learn_packing(model)[1] == ""
    both_ways(model.train())


@pytest.mark.parametrize("shape", ["mistral", "gemma2", "gemma3_text"])
def test_sequences_longer_than_the_window(shape):
    model = make(shape, sliding_window=5)
    if shape != "mistral":
        model.set_attn_implementation("sdpa")
    assert learn_packing(model) == (2**30, "")
    assert model.config.sliding_window == 5
    both_ways(model.train())


@pytest.mark.parametrize("off", [-1, 1, None])
def test_a_window_that_goes_wrong_bounds_the_sequences(monkeypatch, off):
    band = packing._band
    monkeypatch.setattr(packing, "_band", lambda n, w, d: band(n, w + off, d) if off else None)
    assert learn_packing(make("mistral", sliding_window=9)) == (9, "")


def test_with_adapters_and_with_gradient_checkpointing():
    """A checkpointed layer runs again in the backward pass, and must see the same sequences."""
    model = make("llama")
    learn_packing(model)
    targets = ["q_proj", "o_proj", "up_proj"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(model, config).train()
    both_ways(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    both_ways(model)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_padded_batches_and_caches_are_what_they_were(shape):
    model = make(shape).eval()
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [11, 12, 13, 14, 15, 16]])
    mask = (ids > 0).long()
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask, use_cache=True)
        learn_packing(model)
        found = model(input_ids=ids, attention_mask=mask, use_cache=True)
        assert torch.equal(found.logits, wanted.logits)
        more = torch.cat([mask, mask.new_ones(2, 1)], 1)
        after = [
            model(input_ids=ids[:, :1], attention_mask=more, past_key_values=x.past_key_values)
            for x in (wanted, found)
        ]
    assert torch.equal(after[0].logits, after[1].logits)


def test_what_cannot_be_packed_says_why_and_stays():
    chunked = make("llama4_text", attention_chunk_size=9, num_local_experts=2)
    assert learn_packing(chunked) == (0, "it has chunked_attention layers")
    eager = make("llama")
    eager.set_attn_implementation("eager")
    assert learn_packing(eager) == (0, "its attention is eager, not sdpa")
    assert eager.config._attn_implementation == "eager"
    recurrent = make("llama")
    recurrent.config.layer_types = ["linear_attention"] * 2
    assert learn_packing(recurrent) == (0, "it has linear_attention layers")


def test_a_model_that_looks_at_its_neighbours_is_found_out():
    model = make("llama")

    def blur(_, __, out):  # what a short convolution does
        return out + 0.1 * out.roll(1, 1)

    hook = model.model.layers[0].register_forward_hook(blur)
    longest, reason = learn_packing(model)
    assert longest == 0
    assert "apart" in reason
    assert model.config._attn_implementation == "sdpa"
    hook.remove()
    assert learn_packing(model)[1] == ""


def test_nothing_of_it_is_saved(tmp_path):
    model = make("llama")
    learn_packing(model)
    copy.deepcopy(model).save_pretrained(tmp_path)
    assert "rlaif_packed" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
