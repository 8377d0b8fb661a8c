"""SFT by TRL on the embedded model: what is learnt, what is left out, and that it resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_models import how

from rlaif import tiny
from rlaif.errors import DataError, TrainingError
from rlaif.files.readers import read_demonstrations
from rlaif.records import Demonstration, Message, Pair, Preference, Prompt
from rlaif.training.models import load_policy
from rlaif.training.settings import SFTSettings
from rlaif.training.sft import best_answers, encode, train_sft

PROMPTS = [Prompt.user(p.text) for p in tiny.prompts("train", limit=6)]
ANSWERS = [Demonstration(p, f"It is {'very ' * (i % 3)}good.") for i, p in enumerate(PROMPTS)]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def lines(folder):
    return [json.loads(x) for x in (folder / "training.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    pass


def test_the_first_loss_is_the_mean_over_the_answers_tokens(tmp_path):
    """Against plain forward passes, one answer at a time."""
    train_sft(
        ANSWERS, "tiny", tmp_path, SFTSettings(epochs=1, batch_size=3, gradient_accumulation=2)
    )
    loaded = load_policy("tiny")
    total, tokens = 0.0, 0
    for d in ANSWERS:
        before, answer = loaded.encoder.sequence(d.prompt, d.text)
        ids = torch.tensor(np.concatenate([before, answer])).long()[None]
        with torch.no_grad():
            table = torch.log_softmax(loaded.model(input_ids=ids).logits[0, :-1], -1)
        picked = table[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(before) - 1 :]
        total, tokens = total - float(picked.sum()), tokens + len(picked)
    (line,) = lines(tmp_path)
    assert line["loss"] == pytest.approx(total / tokens, rel=1e-3)


def test_it_learns_and_a_stopped_run_ends_with_the_same_weights(tmp_path):
    options = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu"}
    result = train_sft(ANSWERS, "tiny", tmp_path / "whole", **how(SFTSettings, **options))

    def stop(row):
        if row["step"] == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_sft(
            ANSWERS,
            "tiny",
            tmp_path / "cut",
            **how(SFTSettings, checkpoint_every=3, on_log=stop, **options),
        )
    train_sft(ANSWERS, "tiny", tmp_path / "cut", **how(SFTSettings, checkpoint_every=3, **options))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], two[k]) for k in one)
    losses = [x["loss"] for x in lines(tmp_path / "whole")]
    assert result.steps == len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]


def test_long_and_empty_answers_are_left_out_and_counted():
    long = Demonstration(PROMPTS[0], "word " * 400)
    rows, refused = encode(
        [long, Demonstration(PROMPTS[1], " "), ANSWERS[2]], load_policy("tiny"), 100
    )
    assert len(rows) == 1
    assert refused.as_dict() == {
        "too_long": {"n": 1, "pairs": [long.id]},
        "empty_response": {"n": 1, "pairs": [Demonstration(PROMPTS[1], " ").id]},
    }
    learnt = [x for x in rows[0]["labels"] if x != -100]
    assert rows[0]["input_ids"][-len(learnt) :] == learnt
    with pytest.raises(TrainingError, match="1 too_long"):
        encode([long], load_policy("tiny"), 100)


def test_demonstrations_are_read_in_both_shapes_and_bad_rows_are_named(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "completion": "b"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        {"messages": [{"role": "user", "content": "a"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = []
    found = list(read_demonstrations(path, on_bad=left.append))
    assert [(d.prompt.messages, d.text) for d in found] == [((Message("user", "a"),), "b")] * 3
    assert [(bad.source.rpartition(":")[2], bad.reason) for bad in left] == [
        ("4", "no_single_answer")
    ]
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="expected a field 'completion'"):
        list(read_demonstrations(path))


def test_the_best_answer_wins_its_pairs_on_average():
    def judged(prompt, first, second, p, status="preferred"):
        return Preference(Pair(prompt, first, second), status, p)

    one, two, three = PROMPTS[:3]
    found = best_answers(
        [
            judged(one, "a", "b", 0.9),
            judged(one, "a", "c", 0.2),
            judged(one, "b", "c", 0.4),
            judged(two, "x", "y", 0.5, "tie"),
            judged(three, "x", "y", 0.1),
            judged(three, "x", "z", None, "abstained"),
        ]
    )
    # a: (0.9 + 0.2) / 2; b: (0.1 + 0.4) / 2; c: (0.8 + 0.6) / 2
    assert [(d.prompt, d.text) for d in found] == [(one, "c"), (three, "y")]
