"""A judge in training on a real model: what its prompts share is computed once, exactly."""

from __future__ import annotations

import pytest
import torch
from judging import FIRST, SECOND, long_text

from rlaif.constitution import Constitution
from rlaif.engines.base import Engine
from rlaif.files.templates import load_template
from rlaif.records import Pair, Prompt
from rlaif.training.judge import Question, encode, render
from rlaif.training.judge_batches import collator, judge_loss, option_logprobs, why_not
from rlaif.training.models import add_lora, load_policy
from rlaif.training.settings import LoraSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*no chat template")
ASKED = Constitution.load("harmless").principles[0]


def questions() -> list[Question]:
    """A pair whose prompts are longer than the model's windows, and a short one."""
    prompt = Prompt.user("How do I bake bread?")
    long = Pair(prompt, long_text(15, "bread"), long_text(13, "cake"))
    return [Question(long, ASKED, 0.8), Question(Pair(prompt, FIRST, SECOND), ASKED, 1.0)]


def test_loss_and_gradient_are_those_of_rows_of_their_own(engine: Engine, folder: str) -> None:
    loaded = load_policy(folder)
    template = load_template("pairwise/default")
    rows, refused = encode(questions(), loaded, template)
    assert not refused.pairs
    assert max(row.length for row in rows) > loaded.model.config.sliding_window
    assert why_not(loaded, rows) == ""
    with torch.no_grad():
        trained = option_logprobs(loaded.model.eval(), collator(loaded.filler, True)(rows, 1.0))
    prompts = [render(template, ask) for q in questions() for ask in q.asks]
    scores = engine.score(prompts, [template.options] * len(prompts))
    assert torch.allclose(trained, torch.tensor([s.logprobs for s in scores]), atol=1e-3)
    add_lora(loaded, LoraSettings(rank=4), "policy", 0)
    rows = rows[:2]  # the long pair's: activations of all would take gigabytes more
    found = []
    for share in (False, True):
        loaded.model.zero_grad()
        batch = collator(loaded.filler, share)(rows, 1.0)
        loss = (batch["weight"] * judge_loss()(loaded.model, batch)[0]).sum()
        loss.backward()
        moved = (p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad)
        found.append((loss.item(), torch.cat(list(moved))))
    (one, plain), (other, shared) = found
    assert other == pytest.approx(one, rel=1e-5)
    assert (shared - plain).norm() < 1e-4 * plain.norm()
