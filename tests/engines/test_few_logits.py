"""Logits are held for a bounded number of places, however many a call asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlaif.engines import hf
from rlaif.engines.hf import HFEngine
from rlaif.files.templates import Rendered, RenderedMessage, Segment

OPTIONS = (" A", " B", " neither of them", " both of them are as good")
ENDS = ["Which is kind?", "Which is kind and short?", "Is it true?", "B", "", "Why not?"]


def asked(pairs: int = 3) -> list[Rendered]:
    return [
        Rendered(
            (RenderedMessage("user", (Segment(f"Which? {pair} " * 4, False), Segment(end, True))),)
        )
        for pair in range(pairs)
        for end in ENDS
    ]


def scored(engine: HFEngine, patch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities, and of how many places logits were held at a time."""
    rows: list[int] = []
    real = hf._target_logprobs

    def seen(logits: torch.Tensor, *rest: Any) -> Any:
        rows.append(len(logits))
        return real(logits, *rest)

    with patch.context() as only:
        only.setattr(hf, "_target_logprobs", seen)
        scores = engine.score(asked(), [OPTIONS] * len(asked()))
    return np.array([s.logprobs for s in scores]), rows


@pytest.mark.parametrize("packing", [True, False])
def test_logits_are_held_for_few_places_at_a_time(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    def engine() -> HFEngine:
        made: HFEngine = make_engine("llama")
        if not packing:
            made._packing, made._sharing = 0, False
        return made

    free = engine()
    expected, many = scored(free, monkeypatch)
    assert max(many) > 40  # of 18 prompts, and three options of several tokens
    monkeypatch.setattr(hf, "LOGIT_BYTES", 20 * 4 * free.model.config.vocab_size)
    bounded = engine()
    found, few = scored(bounded, monkeypatch)
    assert max(few) <= 20
    assert sum(few) == sum(many)
    assert np.abs(found - expected).max() <= 2e-5
    if packing:
        assert bounded.usage.computed_tokens == free.usage.computed_tokens


def test_the_normaliser_is_the_same_to_the_last_bit_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(50, 1_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    row, targets = np.arange(50), np.arange(50) * 7
    whole = hf._target_logprobs(logits, row, targets)
    monkeypatch.setattr(hf, "LOGIT_BYTES", 4 * 1_000 * 3)
    assert np.array_equal(hf._target_logprobs(logits, row, targets), whole)
    expected = logits.double().log_softmax(-1)[row, targets].numpy()
    assert np.abs(whole - expected).max() < 1e-5
