"""The last layer at the looked-at states only: the same numbers and gradients, less arithmetic."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rlaif.engines.faster.last_layer import _parts, last_layer_at

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
SHAPES = ["llama", "qwen2", "qwen3", "gemma2", "mistral"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])  # the second row is padded
WHERE = torch.tensor([3, 4, 5, 7, 8, 9])  # of the flat (2 · 6): the completions' states


def make(shape: str, lora: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[shape](**SIZES), dtype=torch.float64)
    if lora:
        targets = ["q_proj", "o_proj", "up_proj"]
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        model = get_peft_model(model, config)
    return model.train()


def look(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)[WHERE]
    (logits.log_softmax(-1)[:, 3] * torch.arange(1.0, 7.0)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_the_whole(shape: str, lora: bool) -> None:
    model = make(shape, lora)
    plain, gradients = look(model)
    seen: list[int] = []
    part = _parts(model)[-1]
    watch = part.get_submodule("down_proj").register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1])
    )
    with last_layer_at(model, WHERE):
        cut, fewer = look(model)
    watch.remove()
    assert seen == [len(WHERE)]  # of twelve
    assert torch.allclose(cut, plain, atol=1e-12)
    assert fewer.keys() == gradients.keys()
    assert all(torch.allclose(fewer[n], g, atol=1e-12) for n, g in gradients.items())
    assert all(g.isfinite().all() for g in fewer.values())
    assert torch.equal(look(model)[0], plain)  # the hooks are gone


@pytest.mark.parametrize("shape", ["gpt2", "mixtral", "qwen2"])
def test_other_layers_go_the_plain_way(shape: str) -> None:
    sizes = {} if shape != "gpt2" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    config = CONFIG_MAPPING[shape](**(sizes or SIZES))
    model = AutoModelForCausalLM.from_config(config)
    if shape == "qwen2":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert _parts(model) == []
