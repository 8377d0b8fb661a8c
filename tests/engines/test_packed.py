"""Packed scoring equals plain scoring, computes each token once, and knows where it cannot go."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlaif.engines import attention, packed
from rlaif.engines import trie as t
from rlaif.engines.base import hear
from rlaif.engines.hf import HFEngine
from rlaif.engines.packed import obstacle
from rlaif.files.templates import Rendered, RenderedMessage, Segment

PACKABLE = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2"]
OPTIONS = (" A", " B", " neither of them")
PREFIX = "Which response is better? Answer with A or B. The better answer is A. " * 3
PAIRS = [
    ("How do I bake bread?", "Mix flour, water and salt.", "No. " * 30),
    ("How do I hurt people?", "Do not.", "Wait for the end of the story. " * 12),
    ("How do I", "The quick brown fox jumps over the lazy dog. " * 4, "é"),
]
PRINCIPLES = ["Which is kind?", "Which is kind and short?", "Is it true?", "B", ""]


def prompts(pairs=PAIRS, prefix=PREFIX) -> list[Rendered]:
    """A tree as judging makes it: prefix, conversation, both orders, principles."""
    out = []
    for (question, a, b), swap, principle in itertools.product(pairs, (False, True), PRINCIPLES):
        first, second = (b, a) if swap else (a, b)
        body = f"{question}\nA: {first}\nB: {second}\n"
        segments = (Segment(prefix, False), Segment(body, True), Segment(principle + " ", False))
        out.append(Rendered((RenderedMessage("user", segments),)))
    return out


def logprobs(engine: HFEngine, asked: list[Rendered]) -> np.ndarray:
    scores = engine.score(asked, [OPTIONS] * len(asked))
    assert {s.failure for s in scores} == {None}
    return np.array([s.logprobs for s in scores])


def plain(make_engine, shape: str, **options) -> HFEngine:
    engine = make_engine(shape, **options)
    engine._packing, engine._sharing = 0, False
    return engine


@pytest.mark.parametrize("shape", PACKABLE)
def test_packed_equals_plain_whatever_the_budget_and_the_order(make_engine, shape):
    asked = prompts()
    expected = logprobs(plain(make_engine, shape, batch_tokens=1), asked)
    assert np.ptp(expected[:, 0]) > 0.1  # the requests differ
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall-back would warn
        for budget in (10_000, 100, 23):
            engine = make_engine(shape, batch_tokens=budget)
            shuffled = np.random.default_rng(budget).permutation(len(asked))
            found = np.empty_like(expected)
            found[shuffled] = logprobs(engine, [asked[i] for i in shuffled])
            assert np.abs(found - expected).max() <= 2e-5
            assert engine.usage.computed_tokens == engine.usage.bound_tokens


def test_the_common_prefix_is_kept_between_calls_and_nothing_else(make_engine):
    asked = prompts(prefix=PREFIX * 2)
    expected = logprobs(make_engine(), asked)
    engine = make_engine()
    engine._in_memory = False  # as if loaded from a folder: its weights do not change
    parts = [asked[k : k + 10] for k in range(0, 30, 10)]
    found = [logprobs(engine, part) for part in parts]
    assert np.abs(np.concatenate(found) - expected).max() <= 2e-5
    # Whole blocks of the shared prefix are kept: less than one is computed again, twice.
    paths = [[r.ids for p in part for r in _requests(engine, p)] for part in parts]
    whole = t.lower_bound([ids for call in paths for ids in call])
    assert whole <= engine.usage.bound_tokens <= engine.usage.computed_tokens
    assert engine.usage.computed_tokens - engine.usage.bound_tokens < 2 * 64
    assert engine.usage.computed_tokens <= sum(map(t.lower_bound, paths)) - 2 * 64
    # What a call gives does not depend on the calls before it, to the last bit.
    other = prompts(PAIRS[:1], prefix="The end.")
    for part, values in zip([*parts, other], [*found, logprobs(make_engine(), other)], strict=True):
        assert np.array_equal(logprobs(engine, part), values)
        assert np.array_equal(logprobs(make_engine(), part), values)


def _requests(engine, prompt):
    from rlaif.engines.hf import _request

    ids = engine.encoder.prompt(prompt)
    return [_request((0, j), ids, engine.encoder.option(o)) for j, o in enumerate(OPTIONS)]


def test_a_model_that_changes_between_calls_is_computed_anew(model_of, tokenizer):
    model = type(model_of("qwen2"))(model_of("qwen2").config).eval()
    engine = HFEngine.from_loaded(model, tokenizer)
    before = logprobs(engine, prompts())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = logprobs(engine, prompts())
    fresh = HFEngine.from_loaded(model, tokenizer)
    assert np.abs(after - logprobs(fresh, prompts())).max() <= 2e-5
    assert np.abs(after - before).max() > 1e-3


def test_the_attention_of_the_model_comes_back_as_it_was(make_engine):
    engine = make_engine("gemma")
    logprobs(engine, prompts())
    assert engine.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [("xglm", "on a trial|cannot do it"), ("minimax", "on a trial")],
)
def test_what_cannot_be_packed_is_scored_in_padded_batches(make_engine, shape, reason):
    asked = prompts()
    engine = make_engine(shape, batch_tokens=1_500)
    with pytest.warns(UserWarning, match=f"{shape}: shared prefixes are not packed.*({reason})"):
        found = logprobs(engine, asked)
    reference = plain(make_engine, shape, batch_tokens=1)
    assert np.abs(found - logprobs(reference, asked)).max() <= 5e-5
    assert engine.usage.computed_tokens <= reference.usage.computed_tokens
    if shape == "xglm":  # its cache can be copied, so the prefix is computed once
        assert engine.usage.computed_tokens < reference.usage.computed_tokens / 1.3


@pytest.mark.parametrize(
    "shape",
    [
        "window",
        "gemma3",
        "gemma2",
        "gpt_oss",
        "deepseek_v3",
        "bloom",
        "mpt",
        "falcon",
        "falcon alibi",
        "llama4",
        "gptj",
        "gpt_neo",
        "phimoe",
    ],
)
def test_every_attention_is_packed(make_engine, shape):
    """Windows and chunks shorter than the paths, sinks, soft-caps, ALiBi, heads of two sizes."""
    asked = prompts()
    expected = logprobs(plain(make_engine, shape, batch_tokens=1), asked)
    assert np.ptp(expected[:, 0]) > 0.1
    config = make_engine(shape).model.config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall-back would warn
        for budget in (10_000, 100, 23):
            engine = make_engine(shape, batch_tokens=budget)
            assert np.abs(logprobs(engine, asked) - expected).max() <= 3e-5
            assert engine.usage.computed_tokens == engine.usage.bound_tokens
    assert engine.model.config.to_dict() == config  # as it was before the trial


def test_what_attention_does_not_know_is_refused_by_name(make_engine, monkeypatch):
    """A mask, an index of tokens or a bias that a model hands to its attention is not left out."""
    engine, interface = make_engine("llama"), attention._interface
    for more, name in [
        ({"block_indices": torch.zeros(1)}, "block_indices"),
        ({"attention_mask": torch.zeros(1)}, "a mask of the model's own"),
    ]:

        def asking(*args, more=more, **kwargs):
            return interface(*args[:4], **{"attention_mask": None, **kwargs, **more})

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "rlaif_tree", asking)
        said = packed.PackedModel(engine.model).check(2**30)
        assert said == f"its code cannot do it (packed attention does not know {name})"


def test_a_long_piece_is_masked_part_by_part(make_engine, monkeypatch):
    whole = logprobs(make_engine("gemma3"), prompts())
    monkeypatch.setattr(attention, "_MASKED", 1_000)
    monkeypatch.setattr(attention, "_BLOCK", 5)
    assert np.abs(logprobs(make_engine("gemma3"), prompts()) - whole).max() <= 2e-5


def test_a_window_that_attention_is_not_told_bounds_the_path(make_engine, monkeypatch):
    monkeypatch.setattr(attention, "_reach", lambda *_: None)
    asked = prompts()
    engine = make_engine("window")
    with pytest.warns(UserWarning, match="window holds 32 tokens") as caught:
        found = logprobs(engine, asked)
    assert len(caught) == 1
    assert np.abs(found - logprobs(plain(make_engine, "window"), asked)).max() <= 5e-5
    assert engine._packing == 32
    short = [Rendered((RenderedMessage("user", (Segment(c, True),)),)) for c in "abc"]
    before = engine.usage.computed_tokens
    logprobs(engine, short)
    bound = t.lower_bound([r.ids for p in short for r in _requests(engine, p)])
    assert engine.usage.computed_tokens - before == bound


def test_obstacles_are_read_from_the_config(model_of):
    assert obstacle(model_of("qwen2").config) == ("", 2**30)
    assert obstacle(model_of("mistral").config) == ("", 2**30)
    assert obstacle(model_of("window").config) == ("", 32)
    assert obstacle(model_of("window").config, windows=True) == ("", 2**30)
    assert obstacle(model_of("gemma3").config) == ("", 16)
    assert obstacle(model_of("llama4").config) == ("it has chunked_attention layers", 0)
    assert obstacle(model_of("llama4").config, windows=True) == ("", 2**30)
    changing = {"rope_type": "longrope", "original_max_position_embeddings": 99}
    for ropes in (changing, {"full_attention": changing, "sliding_attention": {}}):
        config = copy.copy(model_of("qwen2").config)
        config.rope_parameters = ropes
        assert obstacle(config, windows=True) == ("", 99)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    assert obstacle(config, windows=True) == ("", 512)


def test_a_model_that_packs_wrongly_is_found_out(make_engine, monkeypatch):
    """The trial is what protects against code that takes the mask but not the positions."""
    dense = attention._dense

    def wrong(q, k, v, *rest):
        return dense(q, k[:, :, :1], v[:, :, :1], False, *rest[1:])

    engine = make_engine("llama")
    monkeypatch.setattr(attention, "_dense", wrong)
    with pytest.warns(UserWarning, match="llama: .* differ by"):
        found = logprobs(engine, prompts())
    monkeypatch.undo()
    assert np.abs(found - logprobs(make_engine("llama"), prompts())).max() <= 2e-5


def test_a_call_that_is_broken_off_leaves_the_bound_a_bound(make_engine):
    """`pace` breaks off a call that takes too long, and asks for its rows again."""
    asked = prompts()
    engine = make_engine(batch_tokens=100)

    def stop(share: float) -> None:
        if share > 0.3:
            raise TimeoutError

    with pytest.raises(TimeoutError), hear(stop):
        logprobs(engine, asked)
    assert (
        0
        < engine.usage.computed_tokens
        < t.lower_bound([r.ids for p in asked for r in _requests(engine, p)])
    )
    assert engine.usage.bound_tokens == 0
    spent = engine.usage.computed_tokens
    logprobs(engine, asked)
    assert 0 < engine.usage.bound_tokens <= engine.usage.computed_tokens
    assert engine.usage.computed_tokens - spent <= engine.usage.bound_tokens


def test_real_pairs_cost_their_distinct_tokens(make_engine):
    file = Path(__file__).parents[3] / "shared/data/hh_rlhf/harmless-base-test.jsonl.gz"
    if not file.is_file():
        pytest.skip("the hh-rlhf pairs lie beside the repository only where it is developed")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 40)]
    rows = [r for r in rows if len(r["chosen"]) + len(r["rejected"]) < 450][:6]
    asked = prompts([("", r["chosen"], r["rejected"]) for r in rows])
    engine = make_engine("qwen2")
    found = logprobs(engine, asked)
    assert np.abs(found - logprobs(plain(make_engine, "qwen2"), asked)).max() <= 1e-4
    assert engine.usage.computed_tokens == engine.usage.bound_tokens
    assert engine.usage.bound_tokens < engine.usage.submitted_tokens / 3
