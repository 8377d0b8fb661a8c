"""The trial of packed passes tells rounding from faults: each here is small, and each is found."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif.engines import attention, own_attention, packed, trial
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.files.templates import Rendered, RenderedMessage, Segment

DENSE, LOGITS, WHOLE = attention._dense, packed.PackedModel.logits, attention.Pass._whole


def lost_key(first: bool):
    def wrong(q, k, v, causal, scale, softcap, seen=None):
        if causal or k.shape[2] == 1 or seen is not None:
            return DENSE(q, k, v, causal, scale, softcap, seen)
        cut = slice(1, None) if first else slice(None, -1)
        return DENSE(q, k[:, :, cut], v[:, :, cut], causal, scale, softcap)

    return wrong


def twice(q, k, v, causal, scale, softcap, seen=None):
    if not causal and seen is None:
        k, v = (torch.cat([x, x[:, :, -1:]], 2) for x in (k, v))
    return DENSE(q, k, v, causal, scale, softcap, seen)


def later(q, k, v, _, scale, softcap, seen=None):
    return DENSE(q, k, v, False, scale, softcap, seen)


def one_off(self, trie, begin, end, nodes):
    """The position of each path's last token is one too great, for all but the attention's plan."""
    plan, depths = packed.attention_plan, trie.depths.copy()
    depths[nodes] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "attention_plan", lambda _, *rest: plan(trie, *rest))
        return LOGITS(self, dataclasses.replace(trie, depths=depths), begin, end, nodes)


def sibling(self, trie, begin, end, nodes):
    """The first token of a run sees that of the run beside it, once in a pack."""
    runs = [r for r in range(len(trie.begin)) if begin <= trie.begin[r] < end]
    pairs = [(a, b) for a in runs for b in runs if a < b and trie.parent[a] == trie.parent[b]]
    a, b = (int(trie.begin[r]) - begin for r in pairs[0]) if pairs else (0, 0)

    def whole(run):
        yield from WHOLE(run)
        if pairs:
            yield attention._Piece(b, b + 1, False, a, a + 1, False, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.Pass, "_whole", whole)
        return LOGITS(self, trie, begin, end, nodes)


FAULTS = {
    "a key of the path lost": (attention, "_dense", lost_key(first=True)),
    "the nearest key lost": (attention, "_dense", lost_key(first=False)),
    "a key seen twice": (attention, "_dense", twice),
    "later tokens seen": (attention, "_dense", later),
    "a position one off": (packed.PackedModel, "logits", one_off),
    "a sibling seen": (packed.PackedModel, "logits", sibling),
}


@pytest.fixture(scope="module")
def trained():
    """Weights that are no random ones: the embedded model's."""
    return AutoModelForCausalLM.from_pretrained(str(TINY_WEIGHTS)).eval()


def fresh(model_of):
    """Weights as they are initialised, small: faults are smaller than bfloat16's rounding."""
    torch.manual_seed(0)
    model = model_of("llama")
    return type(model)(model.config).eval()


def said_of(model, dtype) -> str:
    return packed.PackedModel(model.to(dtype)).check(2**30, trial.TRIAL_WINDOW)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


@DTYPES
@pytest.mark.parametrize("fault", [None, *FAULTS])
@pytest.mark.parametrize("shape", ["llama", "gemma", "gpt2", "gpt_oss", "trained", "fresh"])
def test_the_trial_tells_rounding_from_faults(model_of, trained, monkeypatch, shape, fault, dtype):
    model = {"trained": lambda: trained, "fresh": lambda: fresh(model_of)}
    mine = copy.deepcopy(model.get(shape, lambda: model_of(shape))())
    if fault is not None:
        monkeypatch.setattr(*FAULTS[fault])
    said = said_of(mine, dtype)
    assert ("differ by" in said) == (fault is not None), said


@DTYPES
@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("shape", ["window", "gemma3", "gemma2", "gpt_oss", "llama4"])
def test_the_trial_tells_a_window_one_token_off(model_of, monkeypatch, shape, off, dtype):
    reach = attention._reach

    def other(*args):
        found = reach(*args)
        return found and (found[0], found[1] + off)

    monkeypatch.setattr(attention, "_reach", other)
    said = said_of(copy.deepcopy(model_of(shape)), dtype)
    assert ("differ by" in said) == (off != 0), said


@DTYPES
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_the_trial_tells_a_missing_sink(model_of, monkeypatch, size, dtype):
    model = copy.deepcopy(model_of("gpt_oss"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.mul_(size)
    assert said_of(copy.deepcopy(model), dtype) == ""
    monkeypatch.setattr(attention._Merged, "add_sinks", lambda *_: None)
    assert "differ by" in said_of(model, dtype)


@DTYPES
@pytest.mark.parametrize("shape", ["bloom", "mpt", "falcon alibi"])
def test_the_trial_tells_a_wrong_bias(model_of, monkeypatch, shape, dtype):
    attend = own_attention._attend
    for wrong in (lambda bias: bias * 0, lambda bias: bias * 1.01, lambda bias: bias.flip(0)):
        with monkeypatch.context() as patch:
            patch.setattr(own_attention, "_attend", lambda *x, w=wrong: attend(*x[:5], w(x[5])))
            assert "differ by" in said_of(copy.deepcopy(model_of(shape)), dtype)
    assert said_of(copy.deepcopy(model_of(shape)), dtype) == ""


@DTYPES
def test_the_trial_tells_a_wrong_temperature(model_of, monkeypatch, dtype):
    assert said_of(copy.deepcopy(model_of("llama4")), dtype) == ""
    monkeypatch.setattr(attention, "_tempered", lambda _, query, __: query)
    assert "differ by" in said_of(copy.deepcopy(model_of("llama4")), dtype)


def test_the_models_own_noise_is_the_measure():
    """Noise as real weights have it, a hundred times a small model's, in plain passes: the trial
    lets so much pass in packed ones, and no more."""
    torch.manual_seed(0)
    plain = torch.randn(12, 500) * 8
    noise = torch.randn_like(plain)
    told = [
        trial.difference(plain, plain + 2e-4 * noise, plain + size * noise.flip(0))
        for size in (2e-4, 4e-4, 1e-3)
    ]
    assert told[:2] == ["", ""]
    assert "differ by 0.001" in told[2]
    assert "differ by" in trial.difference(plain, plain, plain + 2e-4 * noise)


def test_a_model_of_halves_comes_out_of_the_trial_as_it_went_in(model_of):
    model = copy.deepcopy(model_of("gemma3")).bfloat16()
    before = {k: x.clone() for k, x in (*model.named_parameters(), *model.named_buffers())}
    assert packed.PackedModel(model).check(2**30, trial.TRIAL_WINDOW) == ""
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert {k: x.dtype for k, x in after.items()} == {k: x.dtype for k, x in before.items()}
    assert all(torch.equal(after[k], x) for k, x in before.items())
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())


@DTYPES
def test_a_model_that_looks_ahead_at_its_padding_is_no_measure(model_of, dtype):
    """An encoder's plain passes differ as much as anything: whatever packing gave would pass."""
    said = said_of(copy.deepcopy(model_of("ahead")), dtype)
    assert trial.LOOKS_AHEAD in said, said


def test_what_looks_ahead_is_scored_request_by_request(make_engine):
    engine = make_engine("ahead")
    asked = [
        Rendered((RenderedMessage("user", (Segment(text, True),)),))
        for text in ("How do I bake bread?", "Do not.", "The end of the story is near. " * 9)
    ]
    with pytest.warns(UserWarning, match="padding behind: .*; scoring goes on request by request"):
        together = engine.score(asked, [(" A", " B")] * 3)
    alone = [make_engine("ahead").score([one], [(" A", " B")])[0] for one in asked]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(np.array(a.logprobs) - b.logprobs).max() <= 1e-6


# ---- models of which a copy in float32 is too large


def deep(model_of, shape: str):
    """Three layers of each kind."""
    config = copy.deepcopy(model_of(shape).config)
    config.layer_types = list(getattr(config, "layer_types", None) or ["full_attention"] * 2) * 3
    config.num_hidden_layers = len(config.layer_types)
    torch.manual_seed(0)
    return type(model_of(shape))(config).eval().bfloat16()


@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt_oss"])
def test_one_layer_of_each_kind_is_tried_where_memory_is_short(model_of, monkeypatch, shape):
    model = deep(model_of, shape)
    weights = 4 * sum(p.numel() for n, p in model.named_parameters() if "layers." in n)
    kinds = {"llama": 1, "gemma3": 2, "gpt_oss": 2}[shape]
    monkeypatch.setattr(trial, "COPY_LIMIT", weights * kinds / 6 + 4_000)
    with trial.bare(model) as wide:
        assert wide
        assert 4 * sum(p.numel() for p in wide) <= trial.COPY_LIMIT
        calls = []
        hooks = [
            m.register_forward_hook(lambda *_: calls.append(1))
            for n, m in model.named_modules()
            if n.endswith("self_attn")
        ]
        model(input_ids=torch.zeros(1, 3, dtype=torch.long))
        for hook in hooks:
            hook.remove()
        assert len(calls) == kinds
    assert said_of(model, torch.bfloat16) == ""
    for fault in FAULTS.values():
        with monkeypatch.context() as patch:
            patch.setattr(*fault)
            assert "in float32) differ by" in said_of(model, torch.bfloat16)


def test_layers_that_do_not_fit_are_tried_in_their_own_numbers(model_of, monkeypatch):
    monkeypatch.setattr(trial, "COPY_LIMIT", 0)
    model = deep(model_of, "llama")
    assert said_of(model, torch.bfloat16) == ""
    monkeypatch.setattr(attention, "_dense", lost_key(first=True))
    assert "log-probabilities differ by" in said_of(model, torch.bfloat16)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt_oss"])
def test_log_probabilities_of_halves_are_not_rounded_to_halves(model_of, monkeypatch, shape):
    """They are some 40 times as large as their differences here: their own rounding would be taken
    for a fault, or hide one."""
    monkeypatch.setattr(trial, "COPY_LIMIT", 0)
    model = deep(model_of, shape)
    assert said_of(model, torch.bfloat16) == ""
    for fault in ("a key of the path lost", "the nearest key lost", "later tokens seen"):
        with monkeypatch.context() as patch:
            patch.setattr(*FAULTS[fault])
            assert "log-probabilities differ by" in said_of(model, torch.bfloat16)


def test_the_median_path_is_what_halves_are_judged_by():
    """A choice of experts that rounding tips in one path is no fault; an error in most is one."""
    torch.manual_seed(0)
    exact = torch.randn(12, 1_000)
    plain = exact + 0.01 * torch.randn_like(exact)
    tipped = exact + 0.01 * torch.randn_like(exact)
    tipped[3] += 1.0
    assert trial.no_less_exact(exact, plain, tipped) == ""
    wrong = exact + 0.2 * torch.randn_like(exact)
    assert "differ by 0.2 from exact ones" in trial.no_less_exact(exact, plain, wrong)
