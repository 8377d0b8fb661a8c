"""Training: branches give what separate prompts give; resumed is uninterrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from rlaif.tiny.corpus import Mix, draw_step
from rlaif.tiny.encoding import END, Encoder, train_tokenizer
from rlaif.tiny.train import (
    Recipe,
    Stage,
    answer_losses,
    build_model,
    build_optimisers,
    mix_at,
    orthogonalise,
    pack,
    rate_at,
    text_loss,
    train_step,
)

MIX = Mix(texts=3, pairs=3, questions=4, unary=1, revisions=1)
RECIPE = Recipe(steps=4, width=32, layers=2, heads=2, feed_forward=48, schedule=(Stage(1.0, MIX),))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def fresh(encoder: Encoder) -> Any:
    return build_model(RECIPE, encoder, encoder.special(END))


def test_packed_branches_equal_separate_prompts(encoder: Encoder) -> None:
    model = fresh(encoder)
    pairs = [encoder.pair(row) for row in draw_step(0, 0, MIX).pairs]
    packed = answer_losses(model, pack(pairs, encoder.pad))
    plain = []
    for pair in pairs:
        for q in (*pair.questions, *pair.unary):
            logits = model(torch.tensor([pair.context + q.ids])).logits[0, -1]
            log_p = logits.log_softmax(-1)
            plain.append(-(q.p_first * log_p[q.first] + (1 - q.p_first) * log_p[q.second]))
    assert_close(packed, torch.stack(plain), atol=1e-5, rtol=1e-5)


def test_text_loss_is_over_learnt_tokens_only(encoder: Encoder) -> None:
    model = fresh(encoder)
    rows = [encoder.text(row) for row in draw_step(0, 0, MIX).texts]
    losses = []
    for row in rows:
        log_p = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        losses += [-log_p[i - 1, row.ids[i]] for i in range(1, len(row.ids)) if row.learnt[i]]
    assert_close(text_loss(model, rows, encoder.pad), torch.stack(losses).mean())


def test_orthogonalise_brings_singular_values_near_one() -> None:
    g = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    for x in (orthogonalise(g), orthogonalise(g.mT)):
        values = torch.linalg.svdvals(x)
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_resumed_is_uninterrupted(encoder: Encoder) -> None:
    whole, part = fresh(encoder), fresh(encoder)
    optimisers = build_optimisers(RECIPE, whole)
    for step in range(4):
        train_step(RECIPE, step, whole, encoder, optimisers)
    optimisers = build_optimisers(RECIPE, part)
    for step in range(2):
        train_step(RECIPE, step, part, encoder, optimisers)
    later = fresh(encoder)
    later.load_state_dict(part.state_dict())
    resumed = build_optimisers(RECIPE, later)
    for optimiser, before in zip(resumed, optimisers, strict=True):
        optimiser.load_state_dict(before.state_dict())
    for step in range(2, 4):
        train_step(RECIPE, step, later, encoder, resumed)
    for a, b in zip(whole.parameters(), later.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedule() -> None:
    recipe = Recipe(steps=1000)
    assert rate_at(recipe, 0) == pytest.approx(1 / 40)
    assert rate_at(recipe, 499) == 1.0
    assert rate_at(recipe, 750) == pytest.approx(0.5)
    assert rate_at(recipe, 999) == pytest.approx(0.002)
    assert mix_at(recipe, 0).short
    assert mix_at(recipe, 999) == recipe.schedule[-1].mix


def test_the_tokenizer_is_the_same_each_time_and_keeps_options_whole(tokenizer: Any) -> None:
    assert train_tokenizer(0).get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == 1024
    for option in ("A", "B", "Yes", "No"):
        assert len(tokenizer.encode(option, add_special_tokens=False)) == 1
    text = "Grüße, <|end|> and 日本!"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text  # byte-level: any text comes back
