"""A policy's own tokens stay its own: what it sampled is what it learns from, id by id.

Text under judgement stays plain text: `test_tokens.py`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.engines.tokens import Encoder
from rlaif.evaluation.policy import kl_to_base
from rlaif.files.templates import Rendered, Segment
from rlaif.records import Completion, Demonstration, Pair, Preference, Prompt
from rlaif.stages.learning import sampled_tokens
from rlaif.steps.sampling import sample_prompts
from rlaif.store import RunStore
from rlaif.training.data import RowEncoder, encode_rows
from rlaif.training.models import load_policy, load_reward
from rlaif.training.reward import RewardModel
from rlaif.training.settings import RewardSettings, Runtime
from rlaif.training.sft import encode

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"]
PROMPT = Prompt.user("How do I bake bread?")


def with_marks(tokenizer):
    tokenizer.add_tokens([m for m in MARKS if m not in tokenizer.get_vocab()])
    return tokenizer


@pytest.fixture(scope="module", params=["bytelevel", "metaspace", "transcript"])
def rows(request, tokenizers) -> RowEncoder:
    name = "bytelevel" if request.param == "transcript" else request.param
    tokenizer = with_marks(tokenizers[name]())
    if request.param == "transcript":
        tokenizer.chat_template = None
    return RowEncoder(Encoder(tokenizer), tokenizer.eos_token_id)


def special(tokenizer) -> set[int]:
    return {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_that_were_sampled_come_back_from_their_text(rows, data):
    """Whatever a policy says: split words, halves of characters, marks, special tokens amid it."""
    encoder, tokenizer = rows.encoder, rows.encoder.tokenizer
    end = tokenizer.eos_token_id
    added = st.sampled_from(sorted(tokenizer.added_tokens_decoder))
    one = st.integers(0, len(tokenizer) - 1) | added
    body = data.draw(st.lists(one.filter(lambda i: i != end), min_size=1, max_size=12))
    for ids, ended in ((body, False), ([*body, end], True)):
        text = encoder.completion(ids, ())
        if encoder.stop and encoder.stop[0] in encoder.decode(ids):
            continue  # a stop string: below
        before, after = rows.sequence(PROMPT, text, ended, ids)
        assert after.tolist() == ids
        assert before.tolist() == encoder.prompt(Rendered.chat(PROMPT.messages)).tolist()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*MARKS, "<|im_end|>", "<|im_start|>", "</s>", "<s>", "<unk>", "<thi"])
        | st.text("ab <>/é\n", max_size=4),
        max_size=8,
    )
)
def test_a_text_alone_has_its_marks_as_tokens_and_never_a_special_one(rows, pieces):
    tokenizer, text = rows.encoder.tokenizer, "".join(pieces)
    _, after = rows.sequence(PROMPT, text, ended=False)
    kept = special(tokenizer) - {tokenizer.unk_token_id}
    assert kept.isdisjoint(after.tolist())
    found = Counter(tokenizer.convert_ids_to_tokens(after.tolist()))
    for mark in MARKS:
        assert found[mark] == text.count(mark)
    assert "".join(rows.encoder.decode(after).split()) == "".join(text.split())


def test_words_and_marks_come_back_without_being_told(rows):
    """Ids as a tokenizer makes them need no telling: text → ids → text → ids."""
    text = "<think>\nThe better answer is near.\n</think>\nMix flour, water, salt."
    ids = rows.sequence(PROMPT, text)[1].tolist()
    marks = [rows.encoder.tokenizer.convert_tokens_to_ids(m) for m in MARKS[:2]]
    assert [ids.count(m) for m in marks] == [1, 1]
    assert rows.sequence(PROMPT, rows.encoder.completion(ids, ()))[1].tolist() == ids


def test_what_a_stop_string_took_away_is_not_learnt(tokenizers):
    tokenizer = with_marks(tokenizers["bytelevel"]())
    tokenizer.chat_template = None
    rows = RowEncoder(Encoder(tokenizer), tokenizer.eos_token_id)
    said = tokenizer(" <think>Mix flour.", add_special_tokens=False)["input_ids"]
    stop = tokenizer("\n\nHuman:", add_special_tokens=False)["input_ids"]
    text = rows.encoder.completion([*said, *stop], ())
    assert text == "<think>Mix flour."
    assert rows.sequence(PROMPT, text, True, [*said, *stop])[1].tolist() == [
        *said,
        tokenizer.eos_token_id,
    ]


def test_ids_of_another_tokenizer_or_text_are_not_believed(rows):
    plain = rows.sequence(PROMPT, "Mix flour.")[1].tolist()
    for ids in ([3, 5, 7], [10**6, 2], [-1], rows.sequence(PROMPT, "Mix water.")[1].tolist()):
        assert rows.sequence(PROMPT, "Mix flour.", True, ids)[1].tolist() == plain


def test_another_end_than_the_templates_stays_the_one_that_was_sampled(tokenizers):
    tokenizer = tokenizers["bytelevel"]()
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    rows = RowEncoder(Encoder(tokenizer), tokenizer.eos_token_id, {other})
    ids = [*tokenizer("Mix flour.")["input_ids"], other]
    assert rows.sequence(PROMPT, "Mix flour.", True, ids)[1].tolist() == ids


# ---- the trainers


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizers) -> str:
    folder = tmp_path_factory.mktemp("marks")
    tokenizer = with_marks(tokenizers["bytelevel"]())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


THOUGHT = "<think>\nMix flour, water.\n</think>\nThen wait."


def odd_ids(tokenizer) -> list[int]:
    """The thought, its words split as no tokenizer would split them."""
    ids: list[int] = []
    for part in ("<think>", *"\nMix flour, water.\n", "</think>", *"\nThen wait."):
        ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def test_sft_dpo_and_reward_models_read_a_thoughts_marks_as_one_token_each(model):
    loaded = load_policy(model)
    marks = loaded.tokenizer.convert_tokens_to_ids(MARKS[:2])
    odd = odd_ids(loaded.tokenizer)
    for sampled in ({}, {(PROMPT.id, THOUGHT): odd}):
        (row,), _ = encode([Demonstration(PROMPT, THOUGHT)], loaded, 128, (), sampled)
        answer = [i for i in row["labels"] if i != -100]
        preference = Preference(Pair(PROMPT, THOUGHT, "Then wait."), "preferred", 0.9)
        (pair,), _ = encode_rows([preference], loaded.encoder, 128, (), sampled)
        assert answer == pair.chosen.tolist()
        assert [answer.count(m) for m in marks] == [1, 1]
        assert answer == (odd if sampled else answer)
        assert loaded.encoder.encoder.completion(answer, ()) == THOUGHT
    reward = load_reward(model)
    (pair,), _ = encode_rows([preference], reward.encoder, 128)
    assert [pair.chosen.tolist().count(m) for m in marks] == [1, 1]


def test_a_reward_model_scores_the_tokens_it_was_trained_on(model, tmp_path):
    from rlaif.training.reward import train_reward

    preference = Preference(Pair(PROMPT, THOUGHT, "Then wait."), "preferred", 0.9)
    trained = train_reward(
        [preference] * 2,
        model,
        tmp_path,
        RewardSettings(held_out=0.0),
        runtime=Runtime(device="cpu"),
    )
    loaded = load_reward(str(trained.path))
    (pair,), _ = encode_rows([preference], loaded.encoder, 128)
    ids = torch.tensor(np.concatenate([pair.prompt, pair.chosen]).astype(np.int64))[None]
    with torch.no_grad():
        raw = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].item()
    judge = RewardModel(trained.path, device="cpu")
    known = judge.normalisation
    assert judge.rewards([PROMPT], [THOUGHT])[0] == pytest.approx(
        known.gain * raw + known.bias, abs=1e-4
    )


def test_the_kl_is_over_the_ids_that_were_sampled(model):
    policy = HFEngine(model, EngineSettings(device="cpu"))
    base = HFEngine(model, EngineSettings(device="cpu"))
    with torch.no_grad():
        for p in base.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    odd = odd_ids(policy.tokenizer)
    before = policy.encoder.prompt(Rendered.chat(PROMPT.messages))
    ids = torch.tensor([*before.tolist(), *odd])[None]

    def logp(engine) -> float:
        with torch.no_grad():
            table = torch.log_softmax(engine.model(ids).logits[0, :-1].double(), -1)
        return table.gather(-1, ids[0, 1:, None])[len(before) - 1 :].sum().item()

    found = kl_to_base(policy, base, [PROMPT], [THOUGHT], ids=[odd])
    assert found.value == pytest.approx(logp(policy) - logp(base), abs=1e-4)


# ---- from the engine to the trainers


def test_sampled_ids_are_kept_with_the_run_and_older_shards_have_none(model, tmp_path):
    engine = HFEngine(model, EngineSettings(device="cpu"))
    prompts = [PROMPT, Prompt.user("And then?")]
    made = sample_prompts(engine, prompts, Sampling(n=3, max_new_tokens=12, seed=3))
    assert all(len(c.ids) == c.tokens for c in made)
    with RunStore(tmp_path / "run", command="test") as store:
        store.table("completions").append(made)
        assert store.table("completions").read() == made
        known = sampled_tokens(store)
    loaded = load_policy(model)
    for c in made:
        prompt = next(p for p in prompts if p.id == c.prompt_id)
        ended = c.finish_reason == "stop"
        ids = known[c.prompt_id, c.text]
        assert tuple(loaded.encoder.sequence(prompt, c.text, ended, ids)[1].tolist()) == c.ids

    old = Completion("k", PROMPT.id, "p", 0, "Then wait.", "stop", 4)
    with RunStore(tmp_path / "old", command="test") as store:
        store.table("completions").append([old])
    (shard,) = (tmp_path / "old" / "completions").glob("*.parquet")
    assert pq.read_schema(shard).names[-2:] == ["ids", "thought"]
    with RunStore(tmp_path / "before", command="test") as store:
        table = store.table("completions")
        table.schema, whole = pa.schema(list(table.schema)[:-2]), table.schema
        table.append([old])
        table.schema = whole
        assert table.read() == [old]
        assert sampled_tokens(store) == {}


def test_text_under_judgement_is_no_ones_own(model):
    encoder = HFEngine(model, EngineSettings(device="cpu")).encoder
    ids = encoder._segment(Segment(THOUGHT, True), False).tolist()
    assert set(ids).isdisjoint(encoder.tokenizer.convert_tokens_to_ids(MARKS[:2]))
