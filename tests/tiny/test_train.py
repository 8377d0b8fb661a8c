"""Training: branches give what separate prompts give; resumed is uninterrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from rlaif.files.templates import load_template
from tiny_world.corpus import Mix, draw_step
from tiny_world.encoding import END, Encoder, render_asking, train_tokenizer
from tiny_world.formats import FormatMix, draw_formats
from tiny_world.train import (
    Recipe,
    Stage,
    answer_losses,
    build_model,
    build_optimisers,
    orthogonalise,
    pack,
    rate_at,
    stage_at,
    text_loss,
    train_step,
)

MIX = Mix(texts=3, pairs=3, questions=4, unary=1, revisions=1)
FORMATS = FormatMix(cot=2, cot_questions=2, singles=2, lists=2, knowledge=2.0)
RECIPE = Recipe(
    steps=2,
    formats_steps=2,
    width=32,
    layers=2,
    heads=2,
    feed_forward=48,
    schedule=(Stage(1.0, MIX),),
    formats_schedule=(Stage(1.0, MIX, FORMATS),),
)


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
    packed, spoken = answer_losses(model, pack(pairs, encoder.pad))
    assert float(spoken) == 0.0  # nothing is to be said before these answers
    plain = []
    for pair in pairs:
        for q in (*pair.questions, *pair.unary):
            logits = model(torch.tensor([pair.context + q.ids])).logits[0, -1]
            log_p = logits.log_softmax(-1)
            plain.append(-sum(p * log_p[o] for p, o in zip(q.p, q.options, strict=True)))
    assert_close(packed, torch.stack(plain), atol=1e-5, rtol=1e-5)


def test_rows_of_other_formats_cost_what_separate_prompts_cost(encoder: Encoder) -> None:
    model = fresh(encoder)
    rows = draw_formats(0, 1, FORMATS)
    packed, spoken = answer_losses(model, pack([encoder.format(r) for r in rows], encoder.pad))
    plain, words = [], []
    for row in rows:
        for asking in row.askings:
            whole = encoder.prompt(render_asking(row, asking, asking.rationale))
            log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            options = load_template(f"{asking.method}/tiny").options
            found = zip(asking.p, options, strict=False)  # a shorter list has fewer
            plain.append(-sum(p * log_p[-1, encoder.single(o)] for p, o in found))
            if asking.rationale is not None:
                start = len(encoder.prompt(render_asking(row, asking)))
                said = [*encoder.ids(asking.rationale), encoder.special(END)]
                assert whole[start : start + len(said) - 1] == said[:-1]
                words += [-log_p[start - 1 + i, token] for i, token in enumerate(said)]
    assert_close(packed, torch.stack(plain), atol=1e-5, rtol=1e-5)
    assert_close(spoken, torch.stack(words).mean(), atol=1e-5, rtol=1e-5)


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
    for step in range(3):
        train_step(RECIPE, step, part, encoder, optimisers)
    later = fresh(encoder)
    later.load_state_dict(part.state_dict())
    resumed = build_optimisers(RECIPE, later)
    for optimiser, before in zip(resumed, optimisers, strict=True):
        optimiser.load_state_dict(before.state_dict())
    for step in range(3, 4):
        train_step(RECIPE, step, later, encoder, resumed)
    for a, b in zip(whole.parameters(), later.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedule() -> None:
    recipe = Recipe(steps=1000)
    assert rate_at(recipe, 0) == pytest.approx(1 / 40)
    assert rate_at(recipe, 499) == 1.0
    assert rate_at(recipe, 750) == pytest.approx(0.5)
    assert rate_at(recipe, 999) == pytest.approx(0.002)
    assert stage_at(recipe, 0).mix.short
    assert stage_at(recipe, 999) == recipe.schedule[-1]
    assert stage_at(recipe, 1000) == recipe.schedule[-1]  # no further steps are asked for


def test_the_further_steps_rise_and_fall_again_and_leave_the_first_as_they_were() -> None:
    recipe, before = Recipe(steps=1000, formats_steps=200), Recipe(steps=1000)
    assert recipe.all_steps == 1200
    for step in (0, 499, 750, 999):
        assert rate_at(recipe, step) == rate_at(before, step)
        assert stage_at(recipe, step) == stage_at(before, step)
    assert rate_at(recipe, 1000) == pytest.approx(0.4 / 40)
    assert rate_at(recipe, 1099) == pytest.approx(0.4)
    assert rate_at(recipe, 1150) == pytest.approx(0.2)
    assert stage_at(recipe, 1000) == recipe.formats_schedule[0]
    assert stage_at(recipe, 1199) == recipe.formats_schedule[-1]
    longer = Recipe(steps=1000, formats_steps=200, ties_steps=100)
    assert [rate_at(longer, n) for n in range(1200)] == [rate_at(recipe, n) for n in range(1200)]
    assert rate_at(longer, 1249) == pytest.approx(0.15)
    assert rate_at(longer, 1275) == pytest.approx(0.075)
    assert stage_at(longer, 1200) == longer.ties_schedule[0] == stage_at(longer, 1299)


def test_the_tokenizer_is_the_same_each_time_and_keeps_options_whole(tokenizer: Any) -> None:
    assert train_tokenizer(0).get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == 1024
    for option in ("A", "B", "Yes", "No"):
        assert len(tokenizer.encode(option, add_special_tokens=False)) == 1
    text = "Grüße, <|end|> and 日本!"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text  # byte-level: any text comes back
