from __future__ import annotations

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import how, make_preferences, make_tokenizer, save_causal

from rlaif import stages
from rlaif.config import load_config
from rlaif.errors import DataError, TrainingError
from rlaif.records import Pair, Preference, Prompt
from rlaif.stages import Run
from rlaif.store import RunStore
from rlaif.training.data import encode_rows, weigh_by_prompt
from rlaif.training.forward import sequence_rewards
from rlaif.training.models import load_reward
from rlaif.training.reward import (
    Normalisation,
    RewardModel,
    collator,
    pair_loss,
    reward_quality,
    train_reward,
)
from rlaif.training.settings import LoraSettings, RewardSettings, Runtime

QUICK = {"seed": 0, "epochs": 3, "learning_rate": 3e-3, "batch_size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(causal, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward")
    return train_reward(make_preferences(120), causal, out, **how(RewardSettings, **QUICK))


def test_learns_what_is_preferred(trained):
    assert trained.accuracy >= 0.9
    held_out = trained.metrics["held_out"]
    assert held_out["n"] == 12
    assert 0 <= held_out["ece"] <= 0.3
    assert json.loads((trained.path / "metrics.json").read_text()) == trained.metrics
    lines = [json.loads(x) for x in (trained.path / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, trained.steps + 1))
    assert {"loss", "epoch", "learning_rate", "accuracy", "margin", "seconds"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not (trained.path / "checkpoints").exists()


def test_rewards_on_the_training_completions_have_mean_0_and_std_1(trained):
    from rlaif.training.data import split_by_prompt

    train, _ = split_by_prompt(make_preferences(120), 0.1, 0)
    model = RewardModel(trained.path, device="cpu")
    unique = sorted({(p.pair.prompt, t) for p in train for t in (p.chosen, p.rejected)}, key=str)
    rewards = model.rewards([x for x, _ in unique], [t for _, t in unique])
    assert np.mean(rewards) == pytest.approx(0, abs=1e-4)
    assert np.std(rewards) == pytest.approx(1, abs=1e-4)
    good = model.rewards([train[0].pair.prompt], ["the cat happily"])[0]
    assert good > model.rewards([train[0].pair.prompt], ["the cat slowly"])[0]


def test_normalisation_by_hand():
    # scores 1 and 3: mean 2, standard deviation 1
    assert Normalisation.of([1.0, 3.0]) == Normalisation(gain=1.0, bias=-2.0)
    assert Normalisation.of([1.0, 3.0], mean=5, std=2) == Normalisation(gain=2.0, bias=1.0)
    assert Normalisation.of([4.0]) == Normalisation(gain=1.0, bias=-4.0)


def test_references_alone_decide_the_zero():
    # gain 1/2 from the scores 1 and 5; the references' mean 2 becomes 0
    found = Normalisation.of([1.0, 5.0], references=[1.0, 3.0])
    assert found == Normalisation(gain=0.5, bias=-1.0)


def test_rewards_of_the_references_have_mean_0(causal, tmp_path):
    rows = make_preferences(40)
    references = [(p.pair.prompt, f"the dog ran {i}") for i, p in enumerate(rows[:5])]
    train_reward(
        rows,
        causal,
        tmp_path,
        **how(RewardSettings, references=references, **{**QUICK, "epochs": 1}),
    )
    model = RewardModel(tmp_path, device="cpu")
    rewards = model.rewards([p for p, _ in references], [text for _, text in references])
    assert np.mean(rewards) == pytest.approx(0, abs=1e-4)
    assert np.std(rewards) > 0
    with pytest.raises(TrainingError, match="a reference has"):
        train_reward(rows, causal, tmp_path, references=[(references[0][0], "dog " * 300)])


def test_normalised_first_the_head_begins_at_mean_0_and_std_1(causal, tmp_path):
    rows = make_preferences(40)
    quiet = {**QUICK, "learning_rate": 1e-12, "epochs": 1, "held_out": 0.0, "centring": 0.5}
    for name in ("plain", "first"):
        train_reward(
            rows,
            causal,
            tmp_path / name,
            **how(RewardSettings, normalise_first=name == "first", **quiet),
        )
    raw = {}
    for name in ("plain", "first"):
        loaded = load_reward(str(tmp_path / name))
        texts = sorted({(p.pair.prompt, t) for p in rows for t in (p.chosen, p.rejected)}, key=str)
        ids = [np.concatenate(loaded.encoder.sequence(*x)) for x in texts]
        raw[name] = sequence_rewards(loaded.model, ids, loaded.filler)
    assert np.std(raw["first"]) == pytest.approx(1, abs=1e-3)
    assert np.std(raw["plain"]) < 0.9 or np.std(raw["plain"]) > 1.1
    lines = (tmp_path / "first" / "training.jsonl").read_text().splitlines()
    rewards = [json.loads(x)[k] for x in lines for k in ("reward_chosen", "reward_rejected")]
    assert np.mean(rewards) == pytest.approx(0, abs=0.1)


def test_quality_on_pairs_with_labels_of_either_direction(trained):
    model = RewardModel(trained.path, device="cpu")
    prompt = Prompt.user("the cat")
    good, bad = "the cat happily", "the cat slowly 3"
    labelled = [(good, bad, 1.0), (bad, good, 0.0), (bad, good, 0.8), (good, bad, 0.5)]
    pairs = [Pair(prompt, *row) for row in labelled]
    pairs += [Pair(prompt, good, bad), Pair(prompt, "", bad, 1.0), Pair(prompt, "a " * 300, bad, 1)]
    found = model.quality(pairs)
    assert (found["n"], found["ties"]) == (4, 1)
    assert found["accuracy"] == pytest.approx(2 / 3)  # the third label is wrong
    left = {"no_label": 1, "empty_response": 1, "too_long": 1}
    assert found["left_out"] == left
    ids = [np.concatenate(model._loaded.encoder.sequence(prompt, text)) for text in (good, bad)]
    raw = sequence_rewards(model._loaded.model, ids, 0)
    delta = raw[0] - raw[1]
    by_hand = (2 + 0.2 + 0.5) * math.log1p(math.exp(-delta)) / 4
    by_hand += (0.8 + 0.5) * math.log1p(math.exp(delta)) / 4
    assert found["log_loss"] == pytest.approx(by_hand, abs=1e-4)
    assert model.quality([Pair(prompt, good, bad)]) == {"n": 0, "left_out": {"no_label": 1}}


def test_quality_by_hand():
    found = reward_quality([math.log(3), -math.log(3), 0.0, math.log(3)], [1.0, 1.0, 1.0, 0.8])
    assert found["accuracy"] == pytest.approx(2.5 / 4)
    by_hand = (-math.log(0.75) - math.log(0.25) + math.log(2) + 0.2 * math.log(3)) / 4
    assert found["log_loss"] == pytest.approx(by_hand - 0.25 * math.log(0.75))
    assert found["brier"] == pytest.approx((1 / 16 + 9 / 16 + 1 / 4 + 0.05**2) / 4)


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>", None])
def test_the_score_is_read_at_the_last_real_token(tmp_path, pad):
    tokenizer = make_tokenizer(pad=pad)
    save_causal(tmp_path, tokenizer)
    loaded = load_reward(str(tmp_path))
    model, end = loaded.model.eval(), tokenizer.eos_token_id
    rows = [np.array(x, np.int32) for x in ([9, 8, 7, end], [9, 8, end, 7, 6, end], [5, end])]
    with torch.no_grad():
        by_hand = []
        for row in rows:  # alone, without padding, at the very last token
            ids = torch.tensor(row[None].astype(np.int64))
            hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
            by_hand.append(model.score(hidden).item())
    together = sequence_rewards(model, rows, loaded.filler, batch_tokens=10_000)
    assert together.tolist() == pytest.approx(by_hand, abs=1e-5)
    alone = sequence_rewards(model, rows, loaded.filler, batch_tokens=1)
    assert alone.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_new_head_is_small_and_seeded(causal):
    heads = [load_reward(causal, seed).model.score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx((32 + 1) ** -0.5, rel=0.4)
    assert "new one" in load_reward(causal).notes[0]


def test_from_a_sequence_classification_checkpoint(trained, tmp_path):
    loaded = load_reward(str(trained.path))
    assert loaded.notes == []
    again = train_reward(
        make_preferences(20), str(trained.path), tmp_path, **how(RewardSettings, **QUICK)
    )
    assert again.accuracy == 1.0


def test_a_head_of_several_labels_is_refused(tmp_path):
    from transformers import LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    save_causal(tmp_path, tokenizer)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="3 labels"):
        load_reward(str(tmp_path))


def test_a_causal_model_does_not_pass_for_a_reward_model(causal):
    with pytest.raises(TrainingError, match="no reward head"):
        RewardModel(causal)


def test_a_completion_that_does_not_fit_is_refused(trained):
    model, prompt = RewardModel(trained.path, device="cpu"), Prompt.user("x")
    with pytest.raises(DataError, match="completion 1 has"):
        model.rewards([prompt, prompt], ["a", "dog " * 300])


def test_shared_completions_are_computed_once_and_weigh_alike(causal):
    loaded = load_reward(causal)
    prompt = Prompt.user("the cat")
    texts = ["one", "two", "three"]
    pairs = [(0, 1, 0.9), (0, 2, 0.8), (1, 2, 0.7)]
    made = [Preference(Pair(prompt, texts[i], texts[j]), "preferred", p) for i, j, p in pairs]
    rows = weigh_by_prompt(encode_rows(made, loaded.encoder, 128)[0])
    batch = collator(loaded.filler)(rows, 1.0)
    assert batch["input_ids"].shape[0] == 3
    losses, _ = pair_loss(0.0, 0.0)(loaded.model, batch)
    raw = [np.concatenate(loaded.encoder.sequence(prompt, t)) for t in texts]
    r = sequence_rewards(loaded.model, raw, loaded.filler)
    by_hand = [
        p * math.log1p(math.exp(r[j] - r[i])) + (1 - p) * math.log1p(math.exp(r[i] - r[j]))
        for i, j, p in pairs
    ]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert (batch["weight"] * losses).sum().item() == pytest.approx(sum(by_hand) / 3, abs=1e-5)


def test_lora_leaves_an_adapter_and_a_merged_model(causal, tmp_path):
    settings = {**QUICK, "learning_rate": 1e-2}
    rows = make_preferences(80)
    result = train_reward(
        rows, causal, tmp_path, **how(RewardSettings, lora=LoraSettings(rank=4), **settings)
    )
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model = RewardModel(tmp_path, device="cpu")
    prompts = [rows[0].pair.prompt] * 2
    good, bad = model.rewards(prompts, ["the cat happily", "the cat slowly 3"])
    assert good > bad
    assert result.accuracy >= 0.7


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.warn = self.lines.append

    def progress(self, title: str, total: int | None):
        del title, total
        return nullcontext(lambda *_: None)


def test_the_stage_reads_references_and_a_human_test_set(causal, tmp_path):
    rows = make_preferences(40)
    for name, some in (("refs", rows[:6]), ("human", rows[6:16])):
        lines = [
            {
                "prompt": p.pair.prompt.messages[0].content,
                "chosen": p.chosen,
                "rejected": p.rejected,
            }
            for p in some
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    settings = {
        "train.reward": {
            "learning_rate": 3e-3,
            "epochs": 3,
            "held_out": 0.0,
            "normalise_first": True,
            "references": {"path": str(tmp_path / "refs.jsonl")},
            "test": {"path": str(tmp_path / "human.jsonl"), "limit": 8},
        },
        "policy": {"model": causal, "device": "cpu"},
        "out": str(tmp_path / "run"),
    }
    config, told = load_config(None, (), settings), Told()
    with RunStore(config.out) as store, Run(config, store, told) as run:
        store.table("preferences").append(rows)
        for _ in range(2):
            stages.train_reward(run)
    found = json.loads((tmp_path / "run/evaluation/reward.json").read_text())
    assert found["n"] == 8
    assert found["accuracy"] >= 0.9
    assert found["source"].endswith("human.jsonl")
    assert sum("human pairs: accuracy" in line for line in told.lines) == 1  # known the second time
    model = RewardModel(tmp_path / "run/models/reward", device="cpu")
    rewards = model.rewards([p.pair.prompt for p in rows[:6]], [p.chosen for p in rows[:6]])
    assert np.mean(rewards) == pytest.approx(0, abs=1e-4)


def test_a_base_that_lacks_a_weight_of_its_trunk_is_refused(tmp_path):
    folder = save_causal(tmp_path / "base", make_tokenizer())
    held = load_file(folder / "model.safetensors")
    for key in [k for k in held if ".layers.1." in k]:
        del held[key]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"its weights lack model\.layers\.1\."):
        train_reward(
            make_preferences(16), str(folder), tmp_path / "out", runtime=Runtime(device="cpu")
        )


def test_a_test_set_of_ties_has_a_calibration_and_no_accuracy(trained):
    model, prompt = RewardModel(trained.path, device="cpu"), Prompt.user("the cat")
    found = model.quality([Pair(prompt, "the cat happily", "the cat slowly 3", 0.5)])
    assert (found["n"], found["ties"], found["accuracy"]) == (1, 1, None)
    assert found["ece"] >= 0
