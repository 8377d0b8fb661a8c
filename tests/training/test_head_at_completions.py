"""The head makes logits where a completion is predicted and nowhere else, with the same numbers.

With a vocabulary of 262,144 they are a megabyte a place: the largest tensor of a training.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rlaif.engines.head import logits_at
from rlaif.errors import TrainingError
from rlaif.training import forward
from rlaif.training.forward import completion_batch, completion_logprobs, sequence_logprobs
from rlaif.training.shared import branch_logprobs, shared_batch

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 64,
}
MORE = {"gemma2": {"final_logit_softcapping": 5.0}, "cohere": {"logit_scale": 0.25}, "llama": {}}
DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(1, 90, n) for n in (9, 3, 6)]
COMPLETIONS = [DRAW.integers(1, 90, n) for n in (4, 7, 1)]
OTHERS = [DRAW.integers(1, 90, n) for n in (2, 5, 8)]


def make(shape: str) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[shape](**SIZES, **MORE[shape])
    # A head far from its first small weights, so that soft-caps and scales bite.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


def by_hand(model: nn.Module, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    """log P of each token of a completion, from all logits of one plain pass."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]))
    logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    at = torch.arange(len(prompt) - 1, len(ids) - 1)
    return logprobs[at, ids[at + 1]]


def rows_of_the_head(model: nn.Module) -> list[int]:
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _, __, out: seen.append(out.shape[:-1].numel())
    )
    return seen


@pytest.mark.parametrize("shape", MORE)
def test_completions_have_the_numbers_and_gradients_of_all_logits(shape: str) -> None:
    model = make(shape)
    wanted = [by_hand(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    weights = model.get_output_embeddings().weight
    (expected,) = torch.autograd.grad(torch.cat(wanted).sum(), weights)
    seen = rows_of_the_head(model)
    found, mask = completion_logprobs(model, completion_batch(PROMPTS, COMPLETIONS, 0))
    assert seen == [4 + 7 + 1]
    assert mask.sum(1).tolist() == [4, 7, 1]
    for row, real, own in zip(found, mask, wanted, strict=True):
        torch.testing.assert_close(row[real.bool()].double(), own, rtol=2e-6, atol=2e-6)
        assert not row[~real.bool()].any()
    (gradient,) = torch.autograd.grad(found.sum(), weights)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["llama", "cohere"])
def test_completions_that_share_their_prompt_do_too(shape: str) -> None:
    model = make(shape)
    both = list(zip(COMPLETIONS, OTHERS, strict=True))
    wanted = [
        [by_hand(model, prompt, c).sum().item() for c in several]
        for prompt, several in zip(PROMPTS, both, strict=True)
    ]
    seen = rows_of_the_head(model)
    sums, counts = branch_logprobs(model, shared_batch(PROMPTS, both, 0))
    # Of each completion all but its last token predict, and each prompt's end predicts for both.
    assert seen == [(4 + 7 + 1 - 3) + (2 + 5 + 8 - 3) + 3]
    assert counts.tolist() == [[4, 2], [7, 5], [1, 8]]
    np.testing.assert_allclose(sums.detach().numpy(), wanted, rtol=2e-6)


def test_passes_without_gradients_hold_few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    whole = sequence_logprobs(model, PROMPTS, COMPLETIONS, 0)
    monkeypatch.setattr(forward, "LOGIT_BYTES", 4 * 90 * 8)  # eight places
    seen = rows_of_the_head(model)
    parts = sequence_logprobs(model, PROMPTS, COMPLETIONS, 0)
    assert len(seen) > 1
    assert max(seen) <= 8
    assert sum(seen) == 12
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_head_that_is_not_called_is_told_and_not_misread() -> None:
    model = make("llama")
    other = nn.Linear(32, 90, bias=False, dtype=torch.float64)
    model.get_output_embeddings = lambda: other
    with pytest.raises(TrainingError, match="without calling its head"):
        logits_at(model, torch.tensor([1]), input_ids=torch.tensor([[1, 2, 3]]))
