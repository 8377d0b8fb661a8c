"""Tokens are drawn by inverse CDF, as one sum over the vocabulary in float64 would draw them."""

from __future__ import annotations

import pytest
import torch

from rlaif.engines.decoding import choose

BELOW_ONE = 1 - 2.0**-53


def by_one_sum(logits: torch.Tensor, u: torch.Tensor, temperature: float) -> torch.Tensor:
    cdf = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 5_000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_blocks_draw_what_one_sum_draws(vocabulary: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(400, vocabulary, generator=generator) * 4
    logits[:, ::2] = -torch.inf  # masked tokens, the first among them
    u = torch.rand(400, generator=generator, dtype=torch.float64)
    chosen = choose(logits, u, temperature, 1.0)
    assert torch.equal(chosen, by_one_sum(logits, u, temperature))


@pytest.mark.parametrize("u", [0.0, 2.0**-53, BELOW_ONE])
@pytest.mark.parametrize("kept", [[0], [255], [256], [511], [256, 511], [0, 999], [254, 998]])
def test_a_token_without_probability_is_never_drawn(kept: list[int], u: float) -> None:
    logits = torch.full((1, 1_000), -torch.inf)
    logits[0, kept] = torch.tensor([0.1, 0.7][: len(kept)])
    chosen = choose(logits, torch.tensor([u], dtype=torch.float64), 1.0, 1.0)
    assert int(chosen) == (kept[-1] if u == BELOW_ONE else kept[0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-37])
def test_a_small_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(1)) * 30
    u = torch.linspace(0, BELOW_ONE, 50, dtype=torch.float64)
    likeliest = choose(logits, u, 0, 1.0)
    assert torch.equal(choose(logits, u, temperature, 1.0), likeliest)


def test_the_logits_stay_as_they_were() -> None:
    logits = torch.randn(2, 300)
    before = logits.clone()
    choose(logits, torch.tensor([0.1, 0.9], dtype=torch.float64), 1.0, 1.0)
    assert torch.equal(logits, before)
