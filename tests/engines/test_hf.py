"""The Transformers engine against plain forward passes, one at a time."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rlaif.engines.base import Engine, Sampling
from rlaif.engines.decoding import choose, uniforms
from rlaif.engines.hf import HFEngine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import ConfigError, EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment

TEXTS = [
    "How do I bake bread?",
    "Hi",
    "Which response is better? " * 6,
    "Mix flour, water, salt and yeast, then wait. <|im_end|> The end.",
    "The quick brown fox jumps over the lazy dog " * 3,
    "Hi",
]
OPTIONS = [" A", " B", " neither of them", " neither"]


def ask(text: str, cue: str = "The better answer is") -> Rendered:
    user = RenderedMessage("user", (Segment("Question: ", False), Segment(text, True)))
    return Rendered((user, RenderedMessage("assistant", (Segment(cue, False),))))


@torch.no_grad()
def plain_logprob(engine: HFEngine, prompt: Rendered, option: str) -> float:
    """The definition: one unbatched forward pass, the sum of log-softmax values."""
    ids = engine.encoder.prompt(prompt).tolist()
    target = engine.encoder.option(option).tolist()
    logits = engine.model(torch.tensor([ids + target])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    return sum(float(logprobs[len(ids) - 1 + j, t]) for j, t in enumerate(target))


def plain_logprobs(engine: HFEngine, prompt: Rendered) -> list[float]:
    """Of OPTIONS, the last of which begins the one before it and does not count it."""
    *others, longer, shorter = (plain_logprob(engine, prompt, o) for o in OPTIONS)
    return [*others, longer, math.log(math.exp(shorter) - math.exp(longer))]


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2", "gemma"])
def test_score_is_the_sum_of_plain_log_softmax_values(make_engine, shape):
    engine = make_engine(shape)
    scores = engine.score([ask(t) for t in TEXTS], [OPTIONS] * len(TEXTS))
    for text, score in zip(TEXTS, scores, strict=True):
        expected = plain_logprobs(engine, ask(text))
        assert score.logprobs == pytest.approx(expected, abs=1e-5)
        assert score.mass == pytest.approx(sum(math.exp(x) for x in expected), abs=1e-5)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2"])
def test_batch_size_order_and_padding_side_change_nothing(make_engine, tokenizers, shape):
    prompts, options = [ask(t) for t in TEXTS], [OPTIONS] * len(TEXTS)
    whole = make_engine(shape).score(prompts, options)
    one_by_one = make_engine(shape, batch_tokens=1).score(prompts, options)
    backwards = make_engine(shape, batch_tokens=100).score(prompts[::-1], options)[::-1]
    left = tokenizers["bytelevel"]()
    left.padding_side = "left"
    padded = make_engine(shape, tokenizer=left).score(prompts, options)
    for other in (one_by_one, backwards, padded):
        for a, b in zip(whole, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_scoring_counts_tokens_and_shares_equal_prompts(make_engine):
    engine = make_engine()
    engine.score([ask("Hi"), ask("Hi")], [[" A", " B"]] * 2)
    length = len(engine.encoder.prompt(ask("Hi")))
    assert engine.usage.requests == 2
    assert engine.usage.submitted_tokens == 2 * length
    assert engine.usage.computed_tokens == length
    assert engine.usage.generated_tokens == 0
    assert engine.score([], []) == []


def test_a_prompt_longer_than_the_context_is_refused_not_cut(make_engine):
    engine = make_engine()
    long, short = engine.score([ask("bread " * 600), ask("Hi")], [[" A", " B"]] * 2)
    assert (long.logprobs, long.failure) == ((), "too_long")
    assert short.failure is None
    assert len(short.logprobs) == 2
    assert engine.generate([ask("bread " * 600)], Sampling(n=1))[0][0].finish_reason == "too_long"


def test_nan_weights_are_not_finite(model_of, tokenizer):
    model = type(model_of("qwen2"))(model_of("qwen2").config).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    engine = HFEngine.from_loaded(model, tokenizer)
    (score,) = engine.score([ask("Hi")], [[" A", " B"]])
    assert (score.logprobs, score.failure) == ((), "not_finite")
    for sampling in (Sampling(n=2), Sampling(n=1, temperature=0), Sampling(n=1, top_p=0.9)):
        (made,) = engine.generate([ask("Hi")], sampling)
        assert {(g.text, g.finish_reason, g.ids) for g in made} == {("", "not_finite", ())}


def test_logits_of_no_numbers_cost_their_own_row_only(model_of, tokenizer):
    """One word's embedding is NaN: the completions of the prompt that has it are lost."""
    model = copy.deepcopy(model_of("qwen2"))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    engine = HFEngine.from_loaded(model, tokenizer)
    prompts, sampling = [ask("Hi"), ask("bread")], Sampling(n=2, max_new_tokens=6)
    before = engine.generate(prompts, sampling)
    (lost,) = (
        set(engine.encoder.prompt(prompts[1]))
        - {token for row in before[0] for token in row.ids}
        - set(engine.encoder.prompt(prompts[0]))
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[lost] = math.nan
    kept, gone = engine.generate(prompts, sampling)
    assert kept == before[0]
    assert [g.finish_reason for g in gone] == ["not_finite"] * 2


# ---- generate


def greedy(engine: HFEngine, prompt: Rendered, count: int) -> list[int]:
    ids = engine.encoder.prompt(prompt).tolist()
    out: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            out.append(int(engine.model(torch.tensor([ids + out])).logits[0, -1].argmax()))
            if out[-1] in engine._eos:
                break
    return out


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_temperature_zero_takes_the_likeliest_token(make_engine, shape):
    engine = make_engine(shape)
    prompts = [ask(t) for t in TEXTS]
    results = engine.generate(prompts, Sampling(n=1, temperature=0, max_new_tokens=8))
    for prompt, (generation,) in zip(prompts, results, strict=True):
        ids = greedy(engine, prompt, 8)
        assert generation.text == engine.encoder.decode(ids)
        assert generation.tokens == len(ids)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2"])
def test_a_sample_depends_on_prompt_seed_and_index_only(make_engine, shape):
    prompts = [ask(t) for t in TEXTS]
    sampling = Sampling(n=3, max_new_tokens=12, seed=5, top_p=0.95)
    whole = make_engine(shape).generate(prompts, sampling)
    one_by_one = make_engine(shape, batch_tokens=1).generate(prompts, sampling)
    backwards = make_engine(shape, batch_tokens=400).generate(prompts[::-1], sampling)[::-1]
    single = make_engine(shape).generate(
        prompts, Sampling(n=1, max_new_tokens=12, seed=5, top_p=0.95)
    )
    assert whole == one_by_one == backwards
    assert [g[:1] for g in whole] == single
    assert whole[1] == whole[5]  # equal prompts
    assert len({g.text for g in whole[0]}) == 3
    assert make_engine(shape).generate(prompts, Sampling(n=3, max_new_tokens=12, seed=6)) != whole


def test_finish_reasons_stop_strings_and_counts(make_engine):
    engine = make_engine()
    sampling = Sampling(n=40, max_new_tokens=40, seed=1)
    (plain,) = engine.generate([ask("Hi")], sampling)
    assert {g.finish_reason for g in plain} <= {"stop", "length"}
    for g in plain:
        assert (g.finish_reason == "length") == (g.tokens == 40) or g.tokens == 40
    assert engine.usage.generated_tokens == sum(g.tokens for g in plain)
    longest = max(plain, key=lambda g: len(g.text))
    stop = longest.text[5:7]
    (cut,) = engine.generate([ask("Hi")], Sampling(n=40, max_new_tokens=40, seed=1, stop=(stop,)))
    for before, after in zip(plain, cut, strict=True):
        assert after.text == before.text.split(stop)[0]
        if stop in before.text:
            assert after.finish_reason == "stop"


def test_generation_ends_at_any_end_token_also_when_pad_is_one(make_engine, tokenizers):
    tokenizer = tokenizers["metaspace"]()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    engine = make_engine("llama", tokenizer=tokenizer)
    (first,) = greedy(engine, ask("Hi"), 1)
    engine._eos = frozenset([first, tokenizer.eos_token_id])
    (result,) = engine.generate([ask("Hi")], Sampling(n=1, temperature=0, max_new_tokens=9))
    assert (result[0].finish_reason, result[0].tokens) == ("stop", 1)


def test_a_prompt_near_the_end_of_the_context_gets_what_room_there_is(make_engine):
    engine = make_engine()
    engine._eos = frozenset()
    engine.max_length = len(engine.encoder.prompt(ask("Hi"))) + 3
    (result,) = engine.generate([ask("Hi")], Sampling(n=1, max_new_tokens=9))
    assert (result[0].finish_reason, result[0].tokens) == ("length", 3)


def test_choose_draws_from_the_softmax_and_respects_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]])).repeat(1000, 1)
    u = (torch.arange(1000) + 0.5).double() / 1000
    counts = torch.bincount(choose(logits, u, 1.0, 1.0), minlength=4)
    assert counts.tolist() == pytest.approx([500, 0, 300, 200], abs=1)
    counts = torch.bincount(choose(logits, u, 1.0, 0.6), minlength=4)
    assert counts.tolist() == pytest.approx([625, 0, 375, 0], abs=1)
    assert choose(logits[:1], torch.tensor([0.9]), 0.0, 1.0).tolist() == [0]


def test_random_streams_differ_by_sample_and_seed():
    ids = np.arange(5, dtype=np.int32)
    a = uniforms(ids, 0, 1, 4)
    assert np.array_equal(a, uniforms(ids, 0, 1, 9)[:4])
    assert not np.array_equal(a, uniforms(ids, 1, 1, 4))
    assert not np.array_equal(a, uniforms(ids, 0, 2, 4))
    assert not np.array_equal(a, uniforms(ids[:4], 0, 1, 4))


# ---- loading


@pytest.fixture
def folder(tmp_path, model_of, tokenizer):
    model_of("qwen2").save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_folder_loads_as_the_model_it_holds(folder, make_engine):
    (folder / "rlaif.json").write_text(json.dumps({"templates": {"pairwise": "pairwise/tiny"}}))
    engine = load_engine(str(folder), device="cpu")
    assert isinstance(engine, Engine)
    assert engine.templates == {"pairwise": "pairwise/tiny"}
    assert (engine.max_length, engine.device) == (512, "cpu")
    a = engine.score([ask("Hi")], [OPTIONS])[0].logprobs
    assert a == pytest.approx(make_engine().score([ask("Hi")], [OPTIONS])[0].logprobs, abs=1e-6)
    engine.close()


def test_the_fingerprint_follows_contents_not_paths(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = load_engine(str(folder), device="cpu").fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_engine(str(moved), device="cpu", batch_tokens=7).fingerprint == first
    (moved / "chat_template.jinja").write_text("{{ messages[0].content }}")
    changed = load_engine(str(moved), device="cpu").fingerprint
    assert changed != first
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_engine(str(moved), device="cpu").fingerprint not in (first, changed)


def test_the_fingerprint_of_a_model_in_training_changes_with_it(model_of, tokenizer):
    model = type(model_of("qwen2"))(model_of("qwen2").config)
    engine = HFEngine.from_loaded(model, tokenizer)
    before = engine.fingerprint
    assert engine.fingerprint == before
    model.train()
    engine.score([ask("Hi")], [OPTIONS])
    assert model.training
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    assert engine.fingerprint != before


def test_missing_or_headless_models_say_what_to_do(tmp_path, folder, tokenizer):
    with pytest.raises(EngineError, match=r"no model at .*nowhere: expected a folder"):
        load_engine(str(tmp_path / "nowhere"))
    config = BertConfig(
        vocab_size=640,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(EngineError, match="no language-model head"):
        load_engine(str(tmp_path / "bert"))
    with pytest.raises(ConfigError, match=r"'dtype': Input should be .*, got 'int4'"):
        load_engine(str(folder), dtype="int4")
    with pytest.raises(EngineError, match="no LoRA adapter"):
        load_engine(str(folder), device="cpu", adapter=str(tmp_path))


def test_adapters_on_disk_and_in_memory_score_alike(folder, tmp_path, model_of, tokenizer):
    model = copy.deepcopy(model_of("qwen2"))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    live = HFEngine.from_loaded(tuned, tokenizer).score([ask("Hi")], [OPTIONS])[0].logprobs
    merged = HFEngine(str(folder), EngineSettings(device="cpu", adapter=str(tmp_path / "adapter")))
    assert merged.score([ask("Hi")], [OPTIONS])[0].logprobs == pytest.approx(live, abs=1e-4)
    plain = HFEngine(str(folder), EngineSettings(device="cpu"))
    assert plain.score([ask("Hi")], [OPTIONS])[0].logprobs != pytest.approx(live, abs=1e-2)
    assert plain.fingerprint != merged.fingerprint


def test_a_model_without_chat_template_warns(model_of, tokenizers):
    with pytest.warns(UserWarning, match="plain 'Human:' / 'Assistant:' transcript"):
        engine = HFEngine.from_loaded(model_of("qwen2"), tokenizers["bytelevel"](None), "base")
    (score,) = engine.score([ask("Hi")], [OPTIONS])
    assert score.logprobs[0] == pytest.approx(plain_logprob(engine, ask("Hi"), " A"), abs=1e-5)
    results = engine.generate([ask("Hi")], Sampling(n=2, max_new_tokens=5))[0]
    assert len(results) == 2


def test_out_of_memory_halves_the_budget_and_says_so_once(make_engine, recwarn):
    prompts, options = [ask(t) for t in TEXTS], [OPTIONS] * len(TEXTS)
    expected = make_engine().score(prompts, options)
    engine = make_engine(batch_tokens=4_000)
    plain, packed, sizes = engine._forward, engine._packed.logits, []

    def forward(rows, *shared):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.cuda.OutOfMemoryError("pretend")
        return plain(rows, *shared)

    def logits(trie, begin, end, nodes):
        out = packed(trie, begin, end, nodes)
        sizes.append(end - begin)
        if end - begin > 40:
            raise torch.cuda.OutOfMemoryError("pretend")
        return out

    scores = [engine.score(prompts, options)]
    engine._forward, engine._packed.logits = forward, logits
    scores.append(engine.score(prompts, options))
    assert max(sizes) > 40 > sizes[-1]
    engine._packing, engine._sharing = 0, True
    scores.append(engine.score(prompts, options))
    assert sizes[-1] == 1
    for found in scores:
        for a, b in zip(found, expected, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert sum("out of memory" in str(w.message) for w in recwarn) == 1
    engine._packing, engine._packed.logits = 2**30, lambda *_: forward([1, 2])
    engine._pack_budget = 1
    with pytest.raises(EngineError, match="one sequence alone does not fit"):
        engine.score(prompts, options)
