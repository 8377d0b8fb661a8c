"""A real pretrained model packs, at any length, and its trial finds small faults."""

from __future__ import annotations

import copy
import os
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif.engines import attention, packed, trial
from rlaif.engines.faster.prepacked import Prepacked
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.engines.trie import build, packs
from rlaif.files.templates import Rendered, RenderedMessage, Segment

FOLDER = os.environ.get("RLAIF_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="RLAIF_REAL_MODEL names no model")

ANSWERS = (
    "The committee met on Tuesday and talked about the bridge, the road, and the money. " * 18,
    "It should be said that neither the bridge nor the road was paid for by anyone. " * 18,
)
PRINCIPLES = ("Which is kinder?", "Which is shorter?", "Which is true?", "Which is kinder to all?")


def prompts(answers: tuple[str, str]) -> list[Rendered]:
    out = []
    for first, second in (answers, answers[::-1]):
        for principle in PRINCIPLES:
            body = f"What was decided?\n\nA: {first}\n\nB: {second}\n\n"
            parts = (Segment(body, True), Segment(f"{principle} The better answer is", False))
            out.append(Rendered((RenderedMessage("user", parts),)))
    return out


def test_any_length_packs_within_the_models_own_rounding():
    engine = HFEngine(FOLDER, EngineSettings(device="cpu", dtype="float32"))
    asked = prompts(ANSWERS)
    ids = [engine.encoder.prompt(p) for p in asked]
    assert max(map(len, ids)) > 600  # beyond its window of 512
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall-back would warn
        engine.score(asked, [(" A", " B")] * len(asked))
    assert engine.usage.computed_tokens <= 1.02 * engine.usage.bound_tokens
    # All log-probabilities of two requests; the model's own rounding is float32 against float64.
    trie, model = build(ids), engine.model
    nodes = np.array([trie.node(r, len(ids[r]) - 1) for r in (0, len(ids) - 1)])
    found: dict[int, torch.Tensor] = {}
    for begin, end in packs(trie, 500):
        mine = np.unique(nodes[(nodes >= begin) & (nodes < end)])
        found |= dict(
            zip(mine.tolist(), engine._packed.logits(trie, begin, end, mine), strict=True)
        )
    engine._packed.forget()
    packed_ = torch.stack([found[node] for node in nodes.tolist()])
    plain = last_logits(model, [ids[0], ids[-1]])
    with Prepacked(model).active():  # packed passes take oneDNN's products: so does this one
        by_onednn = last_logits(model, [ids[0], ids[-1]])
    exact = last_logits(model.double(), [ids[0], ids[-1]])
    rounding = max(apart(plain, exact), apart(by_onednn, exact))
    assert apart(packed_, plain) <= 2 * rounding
    assert apart(packed_, exact) <= 2 * rounding


@torch.no_grad()
def last_logits(model, paths) -> torch.Tensor:
    rows = [torch.from_numpy(path.astype(np.int64))[None] for path in paths]
    return torch.cat([model(input_ids=ids, logits_to_keep=1).logits[:, -1] for ids in rows])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (x.double().log_softmax(-1) for x in (a, b))
    return float((a - b).pow(2).mean().sqrt())


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def model(request):
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=request.param).eval()


def said_of(model) -> str:
    return packed.PackedModel(model).check(2**30, trial.TRIAL_WINDOW)


def test_the_trial_lets_it_pass(model):
    before = copy.copy(vars(model.config))
    assert said_of(model) == ""
    assert vars(model.config) == before


DENSE, LOGITS, REACH = attention._dense, packed.PackedModel.logits, attention._reach


def twice(q, k, v, causal, scale, softcap, seen=None):
    if not causal and seen is None:
        k, v = (torch.cat([x, x[:, :, -1:]], 2) for x in (k, v))
    return DENSE(q, k, v, causal, scale, softcap, seen)


def lost(q, k, v, causal, scale, softcap, seen=None):
    if not causal and seen is None and k.shape[2] > 1:
        k, v = k[:, :, 1:], v[:, :, 1:]
    return DENSE(q, k, v, causal, scale, softcap, seen)


def one_off(self, trie, begin, end, nodes):
    attended, depths = packed.attention_plan, trie.depths.copy()
    depths[nodes] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "attention_plan", lambda _, *rest: attended(trie, *rest))
        moved = copy.copy(trie)
        object.__setattr__(moved, "depths", depths)
        return LOGITS(self, moved, begin, end, nodes)


def window(off: int):
    def reach(*args):
        found = REACH(*args)
        return found and (found[0], found[1] + off)

    return reach


@pytest.mark.parametrize(
    "fault",
    [
        (attention, "_dense", twice),
        (attention, "_dense", lost),
        (packed.PackedModel, "logits", one_off),
        (attention, "_reach", window(-1)),
        (attention, "_reach", window(1)),
        (attention, "_reach", lambda *_: None),
    ],
    ids=["twice", "lost", "position", "narrower", "wider", "none"],
)
def test_the_trial_finds_small_faults(model, monkeypatch, fault):
    monkeypatch.setattr(*fault)
    assert "differ by" in said_of(model)
