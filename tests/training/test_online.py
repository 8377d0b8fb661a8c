"""GRPO and RLOO by TRL on our completions and rewards; online DPO; all on the embedded model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif import tiny
from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.models import load_policy
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import OnlineDPO, train_online_dpo
from rlaif.training.rl.rollout import Sampler
from rlaif.training.rl.scorers import FunctionScorer, GroupScorer, Labels
from rlaif.training.rl.settings import GRPOSettings, OnlineDPOSettings, RLOOSettings
from rlaif.training.settings import LoraSettings, Runtime

PROMPTS = [Prompt.user(p.text) for p in tiny.prompts("train", limit=6)]
CPU = Runtime("cpu")
KINDS = {"grpo": GRPOSettings, "rloo": RLOOSettings}
SMALL = {"steps": 2, "batch_size": 8, "group": 4, "learning_rate": 1e-4, "max_new_tokens": 32}


def shortness(_, texts):
    return [100.0 - len(text) for text in texts]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def lines(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "training.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    pass


def stop_after(step: int):
    def on_log(row):
        if row["step"] == step:
            raise Interrupted

    return on_log


# ---- rewards


def preference(pair: Pair, p: float | None, status: str | None = None) -> Preference:
    found = status or ("preferred" if p not in (None, 0.5) else "tie")
    return Preference(pair, found, p)


def judge_of(table):
    """A judge that knows P(first ≻ second) of texts, and counts what it is asked."""
    asked = []

    def label(pairs):
        asked.extend(pairs)
        out = []
        for pair in pairs:
            p = table(pair.first, pair.second)
            out.append(preference(pair, p, "abstained" if p is None else None))
        return out

    return label, asked


def test_group_scores_are_the_mean_of_meetings_by_hand():
    known = {("a", "b"): 0.9, ("a", "c"): 0.6, ("b", "c"): 0.2}
    label, asked = judge_of(lambda x, y: known[x, y] if (x, y) in known else 1 - known[y, x])
    one, two = PROMPTS[:2]
    prompts = [one] * 3 + [two] * 2
    scores = GroupScorer(label, "k").score(prompts, ["a", "b", "c", "b", "a"], [True] * 5)
    assert scores == pytest.approx([0.75, 0.15, 0.6, 0.1, 0.9])
    assert len(asked) == 3 + 1  # each pair once, and none across prompts


def test_group_scores_leave_out_what_is_abstained_on():
    label, _ = judge_of(lambda x, y: None if "?" in (x, y) else 0.8 if x < y else 0.2)
    scores = GroupScorer(label, "k").score([PROMPTS[0]] * 3, ["a", "?", "b"], [True] * 3)
    assert scores == pytest.approx([0.8, None, 0.2])


def test_equal_texts_meet_with_a_half_and_are_not_asked_about():
    label, asked = judge_of(lambda x, _: 0.9 if x == "a" else 0.1)
    scores = GroupScorer(label, "k").score([PROMPTS[0]] * 3, ["a", "a", "b"], [True] * 3)
    assert scores == pytest.approx([0.7, 0.7, 0.1])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("n", "rounds", "meetings"), [(5, 1, 5), (6, 3, 15), (6, 2, 12), (4, 9, 6)]
)
def test_rounds_are_a_ring_in_which_all_meet_equally_often(n, rounds, meetings):
    met = GroupScorer(lambda _: [], "k", rounds)._meetings([PROMPTS[0]] * n)
    assert len(met) == len({frozenset(x) for x in met}) == meetings
    counts = np.bincount(np.ravel(met), minlength=n)
    assert set(counts) == {2 * meetings // n}


# ---- GRPO and RLOO


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, algorithm):
    settings = KINDS[algorithm](iterations=2, **SMALL)
    scorer, often = FunctionScorer(shortness), settings.but(checkpoint_every=1)
    whole = train_group(PROMPTS, "tiny", tmp_path / "whole", scorer, settings, runtime=CPU)
    cut, stopping = tmp_path / "cut", Runtime("cpu", on_log=stop_after(3))
    with pytest.raises(Interrupted):
        train_group(PROMPTS, "tiny", cut, scorer, often, runtime=stopping)
    train_group(PROMPTS, "tiny", cut, scorer, often, runtime=CPU)
    assert same(tmp_path / "whole", tmp_path / "cut")
    drop = ("seconds",)
    assert [{k: v for k, v in x.items() if k not in drop} for x in lines(tmp_path / "cut")] == [
        {k: v for k, v in x.items() if k not in drop} for x in lines(tmp_path / "whole")
    ]
    assert whole.steps == 4
    first, second = lines(tmp_path / "whole")[:2]
    assert first["kl"] == 0  # the policy still is the reference
    assert first["score"] == second["score"]  # both learn from the same completions
    assert not (tmp_path / "whole/checkpoints").exists()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_policy_learns_what_is_rewarded(tmp_path, algorithm):
    settings = KINDS[algorithm](**{**SMALL, "steps": 12, "learning_rate": 1e-3})
    result = train_group(PROMPTS, "tiny", tmp_path, FunctionScorer(shortness), settings)
    made = [x["length"] for x in lines(tmp_path)]
    assert np.mean(made[-4:]) < 0.8 * np.mean(made[:4]), made  # a step has eight completions only
    assert result.metrics["kl"] > 0


def test_a_completion_without_a_score_moves_nothing(tmp_path):
    """All but one of a group abstained on: no baseline, no advantage, so the weights stay."""

    def one_in_four(_, texts):
        return [1.0 if i % 4 == 0 else None for i, _ in enumerate(texts)]

    settings = GRPOSettings(**{**SMALL, "steps": 1}, no_end_score=None)
    result = train_group(PROMPTS, "tiny", tmp_path / "out", FunctionScorer(one_in_four), settings)
    before = load_policy("tiny").model.state_dict()
    after = weights(tmp_path / "out")
    assert all(torch.equal(after[k], before[k]) for k in after)
    assert result.metrics["abstained"] == 0.75


def test_a_scorer_that_always_abstains_is_an_error(tmp_path):
    scorer = FunctionScorer(lambda _, texts: [None] * len(texts))
    with pytest.raises(TrainingError, match="none of 8 completions has a score"):
        train_group(PROMPTS, "tiny", tmp_path, scorer, GRPOSettings(**SMALL, no_end_score=None))


def test_lora_trains_and_merges(tmp_path):
    settings = GRPOSettings(**{**SMALL, "steps": 2}, lora=LoraSettings(rank=4))
    train_group(PROMPTS, "tiny", tmp_path, FunctionScorer(shortness), settings)
    assert (tmp_path / "adapter/adapter_config.json").is_file()
    before, after = load_policy("tiny").model.state_dict(), weights(tmp_path)
    assert any(not torch.equal(after[k], before[k]) for k in after)


def test_groups_must_fit_the_batch():
    with pytest.raises(ConfigError, match="multiple of group 4"):
        GRPOSettings(batch_size=10, group=4)


# ---- online DPO


def shorter(pairs):
    def p(pair):
        a, b = len(pair.first), len(pair.second)
        return 0.5 if a == b else 0.9 if a < b else 0.1

    return [preference(pair, p(pair)) for pair in pairs]


ONLINE = {"steps": 3, "batch_size": 6, "minibatches": 2, "learning_rate": 1e-4}


def test_online_dpo_stopped_ends_with_the_same_weights(tmp_path):
    settings, cut = OnlineDPOSettings(**ONLINE), tmp_path / "cut"
    often, stopping = settings.but(checkpoint_every=1), Runtime("cpu", on_log=stop_after(2))
    train_online_dpo(
        PROMPTS, "tiny", tmp_path / "whole", Labels(shorter, "k"), settings, runtime=CPU
    )
    with pytest.raises(Interrupted):
        train_online_dpo(PROMPTS, "tiny", cut, Labels(shorter, "k"), often, runtime=stopping)
    train_online_dpo(PROMPTS, "tiny", cut, Labels(shorter, "k"), often, runtime=CPU)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert lines(tmp_path / "whole")[0]["kl"] == 0  # the policy still is the reference


def test_online_dpo_learns_what_is_preferred(tmp_path):
    settings = OnlineDPOSettings(**{**ONLINE, "steps": 6, "learning_rate": 1e-3, "minibatches": 1})
    result = train_online_dpo(PROMPTS, "tiny", tmp_path, Labels(shorter, "k"), settings)
    made = [x["length"] for x in lines(tmp_path)]
    assert made[-1] < 0.8 * made[0], made
    assert result.metrics["kl"] > 0


def test_the_gradient_is_that_of_dpo_on_the_sampled_pairs():
    """Against an independent loss: −p log σ(βh) − (1 − p) log σ(−βh), from plain forward passes."""
    loaded = load_policy("tiny")
    sampler = Sampler(loaded, temperature=1.0, max_new_tokens=48)
    settings = OnlineDPOSettings(beta=0.3, keep_cut=True, max_grad_norm=1e9)
    trainer = OnlineDPO(loaded, sampler, Labels(shorter, "k"), settings)
    rows, _ = trainer.gather(0, PROMPTS)
    assert rows
    with torch.no_grad():  # away from the reference, where h is not 0
        for p in trainer.parameters.values():
            p.mul_(1.01)

    def logp(model, prompt, completion):
        ids = torch.tensor(np.concatenate([prompt, completion])).long()[None]
        table = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        picked = table[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        return picked[len(prompt) - 1 :].sum()

    total = torch.zeros(())
    base = load_policy("tiny").model
    for row in rows:
        h = logp(trainer.policy, row.prompt, row.chosen) - logp(
            trainer.policy, row.prompt, row.rejected
        )
        with torch.no_grad():
            start = logp(base, row.prompt, row.chosen) - logp(base, row.prompt, row.rejected)
        likely = torch.sigmoid(0.3 * (h - start))
        total = total - row.p * likely.log() - (1 - row.p) * (1 - likely).log()
    total = total / len(rows)
    total.backward()
    wanted = math.sqrt(sum(float((p.grad**2).sum()) for p in trainer.parameters.values()))
    trainer.optimizer.zero_grad()
    facts = trainer.learn(0, rows)
    assert facts["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert facts["grad_norm"] == pytest.approx(wanted, rel=1e-3)


def test_pairs_without_a_preference_teach_nothing_and_are_counted(tmp_path):
    def tie_or_abstain(pairs):
        return [
            preference(pair, 0.5 if i else None, None if i else "abstained")
            for i, pair in enumerate(pairs)
        ]

    settings = OnlineDPOSettings(**{**ONLINE, "steps": 1})
    train_online_dpo(PROMPTS, "tiny", tmp_path / "out", Labels(tie_or_abstain, "k"), settings)
    before = load_policy("tiny").model.state_dict()
    after = weights(tmp_path / "out")
    assert all(torch.equal(after[k], before[k]) for k in after)
    (line,) = lines(tmp_path / "out")
    shares = [line[k] for k in ("abstained", "tie", "identical", "cut")]
    assert line["pairs"] == 0
    assert math.isclose(sum(shares), 1)
    assert line["abstained"] == pytest.approx(1 / 6)


def test_a_judge_that_always_abstains_is_an_error(tmp_path):
    def never(pairs):
        return [preference(pair, None, "abstained") for pair in pairs]

    with pytest.raises(TrainingError, match="abstained on all"):
        train_online_dpo(PROMPTS, "tiny", tmp_path, Labels(never, "k"), OnlineDPOSettings(**ONLINE))
