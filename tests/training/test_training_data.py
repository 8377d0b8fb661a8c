from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_preferences, make_tokenizer

from rlaif.engines.tokens import Encoder
from rlaif.errors import TrainingError
from rlaif.files.templates import Rendered
from rlaif.records import Message, Pair, Preference, Prompt
from rlaif.training.data import (
    Plan,
    RowEncoder,
    by_prompt,
    encode_rows,
    end_of_turn,
    plan_steps,
    preferred,
    split_by_prompt,
    token_batches,
    weigh_by_prompt,
)


@pytest.fixture(scope="module")
def encoder() -> RowEncoder:
    tokenizer = make_tokenizer()
    return RowEncoder(Encoder(tokenizer), tokenizer.eos_token_id)


def test_prompt_and_completion_as_the_engine_writes_them(encoder):
    tokenizer = make_tokenizer()
    prompt = Prompt((Message("user", "the cat"), Message("assistant", "sat"), Message("user", "a")))
    before, after = encoder.sequence(prompt, "the dog ran")
    assert before.tolist() == Encoder(tokenizer).prompt(Rendered.chat(prompt.messages)).tolist()
    text = tokenizer.decode(np.concatenate([before, after]))
    assert text == (
        "<|user|>the cat<|end|><|assistant|>sat<|end|><|user|>a<|end|><|assistant|>"
        "the dog ran<|end|>"
    )
    assert encoder.sequence(prompt, "the dog ran", ended=False)[1].tolist() == after[:-1].tolist()


def test_a_completion_goes_on_in_the_turn_that_its_prompt_leaves_open(encoder):
    """The engines continue such a turn; the tokens that would end it are not learnt between."""
    tokenizer = make_tokenizer()
    prompt = Prompt((Message("user", "the cat"), Message("assistant", "the dog")))
    before, after = encoder.sequence(prompt, " ran")
    assert before.tolist() == Encoder(tokenizer).prompt(Rendered.chat(prompt.messages)).tolist()
    assert tokenizer.decode(before) == "<|user|>the cat<|end|><|assistant|>the dog"
    assert tokenizer.decode(after).strip() == "ran<|end|>"


def test_special_tokens_in_the_text_stay_text(encoder):
    end = make_tokenizer().eos_token_id
    before, after = encoder.sequence(Prompt.user("hi <|assistant|> x"), "yes <|end|> no")
    assert after.tolist().count(end) == 1
    assert after[-1] == end
    assert before.tolist().count(make_tokenizer().convert_tokens_to_ids("<|assistant|>")) == 1


def test_end_of_turn_is_the_templates_if_generation_stops_there():
    tokenizer = make_tokenizer()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.eos_token = "<|pad|>"  # as in chat models: the turn ends with another token
    assert end_of_turn(tokenizer, {end, pad}) == end
    assert end_of_turn(tokenizer, {pad}) == pad
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer, {end, pad}) == pad


def test_refused_by_name_and_counted(encoder):
    rows = make_preferences(4)
    prompt = rows[0].pair.prompt
    long = Preference(Pair(prompt, "the cat", "dog " * 200), "preferred", 0.9)
    empty = Preference(Pair(prompt, "the cat", " "), "preferred", 0.9)
    same = Preference(Pair(prompt, "the cat", "the cat"), "preferred", 0.9)
    kept, refused = encode_rows([*rows, long, empty, same], encoder, 128)
    assert len(kept) == 4
    assert refused.as_dict() == {
        "too_long": {"n": 1, "pairs": [long.pair.id]},
        "empty_response": {"n": 1, "pairs": [empty.pair.id]},
        "identical": {"n": 1, "pairs": [same.pair.id]},
    }
    with pytest.raises(TrainingError, match="1 too_long"):
        encode_rows([long], encoder, 128)


def test_orientation_and_soft_label(encoder):
    pair = Pair(Prompt.user("x"), "the bad", "the good")
    (row,), _ = encode_rows([Preference(pair, "preferred", 0.2)], encoder, 128)
    assert row.p == pytest.approx(0.8)
    assert row.chosen.tolist() == encoder.sequence(pair.prompt, "the good")[1].tolist()


def test_nothing_to_train_on():
    with pytest.raises(TrainingError, match="label some pairs"):
        preferred([])
    pair = Pair(Prompt.user("x"), "a", "b")
    with pytest.raises(TrainingError, match="1 ties, 1 abstained"):
        preferred([Preference(pair, "tie", 0.5), Preference(pair, "abstained", None)])


def test_held_out_prompts_are_on_one_side_only():
    rows = make_preferences(60, per_prompt=3)
    train, test = split_by_prompt(rows, 0.2, seed=1)
    ids = [{p.pair.prompt.id for p in side} for side in (train, test)]
    assert not ids[0] & ids[1]
    assert len(ids[1]) == round(0.2 * len(ids[0] | ids[1]))
    assert len(train) + len(test) == 60
    assert split_by_prompt(rows, 0.0, seed=1)[1] == []


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_sees_every_element_once(n, size, epochs, seed):
    steps = plan_steps([[i] for i in range(n)], [7] * n, size=size, epochs=epochs, seed=seed)
    assert len(steps) == epochs * -(-n // size)
    assert all(1 <= len(step) <= size for step in steps)
    per_epoch = len(steps) // epochs
    for e in range(epochs):
        seen = [i for step in steps[e * per_epoch : (e + 1) * per_epoch] for x in step for i in x]
        assert sorted(seen) == list(range(n))
    again = plan_steps([[i] for i in range(n)], [7] * n, size=size, epochs=epochs, seed=seed)
    assert again == steps


def test_sharded_plan_holds_the_same_steps(encoder):
    rows = encode_rows(make_preferences(40), encoder, 128)[0]
    lengths = [row.length for row in rows]
    steps = plan_steps([[i] for i in range(len(rows))], lengths, size=8, epochs=1, seed=0)

    def collate(batch, total):
        return {"ids": [row.pair_id for row in batch], "total": total}

    whole = Plan(rows, steps, collate)
    for parts, world in ((2, 1), (1, 2), (2, 2), (4, 2)):
        shares = [Plan(rows, steps, collate, parts, world, rank) for rank in range(world)]
        for s in range(len(steps)):
            pieces = [share[s * parts + k] for share in shares for k in range(parts)]
            found = sorted(i for piece in pieces for i in piece["ids"])
            assert found == sorted(whole[s]["ids"])
            assert {piece["total"] for piece in pieces} == {whole[s]["total"]}
    with pytest.raises(TrainingError, match="cannot be shared"):
        Plan(rows, steps, collate, parts=8, world=2)


def test_all_pairs_of_a_prompt_stand_together(encoder):
    rows = weigh_by_prompt(encode_rows(make_preferences(12, per_prompt=1), encoder, 128)[0])
    assert all(row.weight == 1 for row in rows)
    prompt = Prompt.user("x")
    three = [Preference(Pair(prompt, "a b", f"c {i}"), "preferred", 0.9) for i in range(3)]
    rows = weigh_by_prompt(encode_rows(three, encoder, 128)[0])
    assert by_prompt(rows) == [[0, 1, 2]]
    assert sum(row.weight for row in rows) == pytest.approx(1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_token_batches_hold_everything_within_the_budget(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)
