"""PPO on a small real model: exact ratios, masks, resuming, scorers, alarms."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import WORDS, make_preferences

from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.models import load_policy
from rlaif.training.rl.actor_critic import ActorCritic
from rlaif.training.rl.loop import prompts_of_step
from rlaif.training.rl.ppo import PPO
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.rollout import (
    Minibatch,
    Sampler,
    make_minibatch,
    make_parts,
    plan_update,
    split_by_length,
)
from rlaif.training.rl.scorers import FunctionScorer, JudgeScorer, load_function
from rlaif.training.rl.settings import AlarmLimits, PPOSettings
from rlaif.training.rl.watch import find_alarms
from rlaif.training.settings import LoraSettings, RewardSettings, Runtime

PROMPTS = [Prompt.user(f"the {a} {b}") for a in WORDS[:5] for b in WORDS[5:9]]
QUIET = AlarmLimits(kl=None, entropy=None, length=None, ended=None)
SMALL = {
    "steps": 2,
    "batch_size": 8,
    "max_new_tokens": 8,
    "learning_rate": 1e-3,
    "alarms": QUIET,
    "seed": 0,
}


def vowels(prompts: list[Prompt], completions: list[str]) -> list[float | None]:
    assert len(prompts) == len(completions)
    return [sum(c in "aeiou" for c in text) / 8 for text in completions]


def make_ppo(causal: str, scorer=None, ptx=(), **options) -> PPO:
    settings = PPOSettings(**{**SMALL, **options})
    loaded = load_policy(causal)
    sampler = Sampler(loaded, temperature=settings.temperature, max_new_tokens=settings.longest)
    nets = ActorCritic(loaded, "cpu", settings)
    return PPO(nets, sampler, scorer or FunctionScorer(vowels), settings, ptx)


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_file(Path(f) / "model.safetensors") for f in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# ---- the step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": LoraSettings(rank=4)},
        {"value": "separate"},
        {"temperature": 0.7},
        {"bf16": True},
    ],
)
def test_the_first_ratio_is_exactly_one_and_the_reference_stays(causal, options):
    ppo = make_ppo(causal, **options)
    for index in range(2):
        facts = ppo.step(index, PROMPTS[:8])
        assert facts["first_ratio_gap"] == 0.0
        assert facts["first_approx_kl"] == 0.0
        assert facts["approx_kl"] > 0
        assert facts["rollout_gap"] < (0.1 if "bf16" in options else 1e-4)
        assert facts["kl_k3"] >= 0
        if index == 0:  # the policy still is the reference
            assert facts["kl"] == 0.0
            assert facts["kl_k3"] == 0.0
        else:
            assert facts["kl_k3"] > 0


def test_log_probabilities_values_and_masks_against_a_plain_forward_pass(causal):
    ppo = make_ppo(causal, temperature=0.7)
    torch.nn.init.normal_(ppo.nets.critic.head.weight)
    torch.nn.init.normal_(ppo.nets.critic.head.bias)
    episodes = ppo.sampler.sample(ppo.nets.policy, PROMPTS[:6], seed=3)
    old = ppo.experience(episodes, ppo.plan(0, episodes)[0])
    model, head = ppo.nets.policy, ppo.nets.critic.head
    with torch.no_grad():
        for row, episode in enumerate(episodes):
            ids = torch.tensor(episode.sequence.astype(np.int64))[None]
            out = model(ids, output_hidden_states=True)
            table = torch.log_softmax(out.logits[0] / 0.7, -1)
            values = head(out.hidden_states[-1][0])[:, 0]
            P, L = len(episode.prompt_ids), len(episode.ids)
            by_hand = [table[P - 1 + t, episode.ids[t]].item() for t in range(L)]
            assert old.logp[row, :L].tolist() == pytest.approx(by_hand, abs=1e-5)
            assert episode.logprobs.tolist() == pytest.approx(by_hand, abs=1e-5)
            seen = L + episode.ended  # one state further, after the end token
            assert old.values[row, :seen].tolist() == pytest.approx(
                values[P - 1 : P - 1 + seen].tolist(), abs=1e-5
            )
            assert old.acts[row].tolist() == [1.0] * L + [0.0] * (old.acts.shape[1] - L)
            assert old.states[row].sum().item() == seen
            assert not old.values[row, seen:].any()
            assert not old.log_ratio[row, L:].any()
            assert torch.equal(old.logp[row], old.reference[row])


def test_completions_end_at_their_first_end_token(causal):
    ppo = make_ppo(causal, max_new_tokens=40)
    end = load_policy(causal).tokenizer.eos_token_id
    with torch.no_grad():  # makes the end likely enough to be met
        ppo.nets.policy.get_input_embeddings().weight[end] *= 3
    episodes = ppo.sampler.sample(ppo.nets.policy, PROMPTS, seed=1, n=3)
    assert len(episodes) == 60
    assert [e.prompt for e in episodes[:4]] == [PROMPTS[0]] * 3 + [PROMPTS[1]]
    assert any(e.ended for e in episodes)
    for episode in episodes:
        ends = np.flatnonzero(episode.ids == end).tolist()
        assert ends == ([len(episode.ids) - 1] if episode.ended else [])
        assert episode.ended or len(episode.ids) == 40


def test_what_never_ended_scores_minus_one_at_most(causal):
    def score(_, completions):
        return [1.0] * len(completions)

    facts = make_ppo(causal, FunctionScorer(score)).step(0, PROMPTS[:8])
    assert facts["score"] == pytest.approx(2 * facts["ended"] - 1)
    facts = make_ppo(causal, FunctionScorer(score), no_end_score=None).step(0, PROMPTS[:8])
    assert facts["score"] == 1


def test_abstentions_are_left_out_and_counted(causal):
    def score(_, completions):
        return [None if i % 4 == 0 else 1.0 for i in range(len(completions))]

    ppo = make_ppo(causal, FunctionScorer(score), no_end_score=None)
    assert ppo.step(0, PROMPTS[:8])["abstained"] == 2
    ppo = make_ppo(causal, FunctionScorer(lambda _, c: [None] * len(c)), no_end_score=None)
    with pytest.raises(TrainingError, match="abstained on all"):
        ppo.step(0, PROMPTS[:8])
    ppo = make_ppo(causal, FunctionScorer(lambda *_: [1.0]), no_end_score=None)
    with pytest.raises(TrainingError, match="1 scores for 8 completions"):
        ppo.step(0, PROMPTS[:8])


def test_parts_do_not_change_the_gradient(causal):
    """One padded pass over a minibatch and a pass an episode add up to the same gradient."""
    gradients = []
    for alone in (False, True):
        ppo = make_ppo(causal, batch_size=6, minibatches=1, no_end_score=None)
        episodes = ppo.sampler.sample(ppo.nets.policy, PROMPTS[:6], seed=3)
        rows = [[i] for i in range(6)] if alone else [[0, 1, 2, 3, 4, 5]]
        parts = make_parts(episodes, rows, ppo.nets.loaded.filler, "cpu")
        acts, states = sum(len(e.ids) for e in episodes), sum(e.states for e in episodes)
        minibatch = Minibatch(parts, acts, states)
        old = ppo.experience(episodes, [minibatch])
        advantages = torch.linspace(-1, 1, old.acts.numel()).view_as(old.acts) * old.acts
        from rlaif.training.rl.ppo import Meter

        for part in parts:
            ppo.backward(part, minibatch, old, advantages, advantages * 2, Meter())
        gradients.append([p.grad.clone() for p in ppo.parameters.values()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def count_a(_, completions):
    return [float(text.count("a")) for text in completions]


def scores_of(ppo: PPO) -> list[dict]:
    batch = (PROMPTS * 2)[: ppo.settings.batch_size]
    return [ppo.step(i, batch) for i in range(ppo.settings.steps)]


EAGER = {
    "steps": 10,
    "batch_size": 32,
    "learning_rate": 3e-2,
    "beta": 0.0,
    "no_end_score": None,
}


def test_ppo_raises_what_it_is_rewarded_for(causal):
    facts = scores_of(make_ppo(causal, FunctionScorer(count_a), **EAGER))
    assert facts[0]["score"] < 1
    assert facts[-1]["score"] > 3
    assert all(f["first_ratio_gap"] == 0 for f in facts)


@pytest.mark.parametrize("algorithm", ["a2c", "reinforce"])
def test_other_algorithms_in_the_same_loop(causal, algorithm):
    options = {**EAGER, "algorithm": algorithm, "epochs": 1, "minibatches": 1}
    facts = scores_of(make_ppo(causal, FunctionScorer(count_a), **options))
    assert all(f["clip_fraction"] == 0 and f["first_ratio_gap"] == 0 for f in facts)
    assert facts[-1]["score"] > facts[0]["score"] + 0.5
    with pytest.raises(ConfigError, match="set epochs and minibatches to 1"):
        PPOSettings(algorithm=algorithm, epochs=4)
    assert (PPOSettings(algorithm=algorithm).passes, PPOSettings().passes) == (1, 4)


def test_ptx_holds_up_the_likelihood_of_its_sequences(causal):
    ids = load_policy(causal).tokenizer("big red mat under the happily cat")["input_ids"]
    ptx = [np.array(ids, np.int32)]
    ppo = make_ppo(causal, ptx=ptx, ptx_weight=1.0, steps=8, learning_rate=3e-3)
    losses = [ppo.step(i, PROMPTS[:8])["ptx_loss"] for i in range(8)]
    assert losses[-1] < losses[0] - 0.5
    with pytest.raises(ConfigError, match="no ptx sequences"):
        make_ppo(causal, ptx_weight=1.0)


def test_learning_rate_falls_linearly_and_adam_has_its_epsilon(causal):
    ppo = make_ppo(causal, steps=4, learning_rate=1e-3, value_learning_rate=1e-2)
    rates = [ppo.step(i, PROMPTS[:8])["learning_rate"] for i in range(4)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [g["lr"] for g in ppo.optimizer.param_groups] == pytest.approx([2.5e-4, 2.5e-3])
    assert all(g["eps"] == 1e-5 for g in ppo.optimizer.param_groups)


def test_adaptive_beta_moves_with_the_kl(causal):
    ppo = make_ppo(causal, steps=3, target_kl=0.5, horizon=100, learning_rate=3e-3)
    facts = [ppo.step(i, PROMPTS[:8]) for i in range(3)]
    assert facts[0]["beta"] == 0.05
    for before, after in itertools.pairwise(facts):
        error = min(max(before["kl"] / 0.5 - 1, -0.2), 0.2)
        assert after["beta"] == pytest.approx(before["beta"] * (1 + error * 8 / 100))


def test_a_separate_value_model_starts_as_the_reward_model(causal, tmp_path):
    from rlaif.training.reward import RewardModel, train_reward

    train_reward(
        make_preferences(16),
        causal,
        tmp_path / "rm",
        RewardSettings(learning_rate=1e-3),
        runtime=Runtime(device="cpu"),
    )
    ppo = make_ppo(causal, value="separate", value_model=str(tmp_path / "rm"))
    model = RewardModel(tmp_path / "rm", device="cpu")
    episodes = [e for e in ppo.sampler.sample(ppo.nets.policy, PROMPTS, seed=1, n=4) if e.ended][:4]
    assert episodes
    old = ppo.experience(episodes, ppo.plan(0, episodes)[0])
    for row, episode in enumerate(episodes):
        ids, mask = torch.tensor(episode.sequence[None].astype(np.int64)), torch.ones(1, 1)
        mask = torch.ones_like(ids)
        raw = model._loaded.model(input_ids=ids, attention_mask=mask).logits.item()
        expected = model.normalisation.gain * raw + model.normalisation.bias
        assert old.values[row, episode.states - 1].item() == pytest.approx(expected, abs=1e-4)


# ---- plans


def test_a_plan_sees_every_episode_once_an_epoch_in_fresh_order():
    plan = plan_update(32, epochs=3, minibatches=4, seed=(7, 0))
    orders = [[i for m in epoch for i in m] for epoch in plan]
    assert all(sorted(order) == list(range(32)) for order in orders)
    assert [len(m) for m in plan[0]] == [8, 8, 8, 8]
    assert {frozenset(m) for m in plan[0]} != {frozenset(m) for m in plan[1]}
    assert plan == plan_update(32, epochs=3, minibatches=4, seed=(7, 0))


def test_processes_share_a_minibatch_without_gap_or_overlap(causal):
    ppo = make_ppo(causal, max_new_tokens=12)
    episodes = ppo.sampler.sample(ppo.nets.policy, PROMPTS[:9], seed=3)
    rows, T = [1, 2, 3, 5, 7, 8], max(e.states for e in episodes)
    expected = sorted(i * T + t for i in rows for t in range(episodes[i].states))
    for world in (1, 2, 3, 7):
        shares = [
            make_minibatch(episodes, rows, 0, torch.device("cpu"), rank, world)
            for rank in range(world)
        ]
        found = [i for share in shares for part in share.parts for i in part.index.tolist()]
        assert sorted(found) == expected
        for share in shares:
            assert share.states == len(expected)
            assert share.acts == sum(len(episodes[i].ids) for i in rows)


def test_parts_waste_little_padding():
    lengths = [50, 49, 48, 10, 9, 50]
    assert split_by_length(range(6), lengths, 1_000, 16) == [[0, 5, 1, 2], [3, 4]]
    assert split_by_length(range(6), lengths, 1_000, 10_000) == [[0, 5, 1, 2, 3, 4]]
    assert split_by_length(range(6), lengths, 100, 16) == [[0, 5], [1, 2], [3, 4]]
    assert split_by_length(range(2), lengths, 1, 16) == [[0], [1]]


def test_prompts_come_in_shuffled_passes():
    stream = [p.id for i in range(10) for p in prompts_of_step(PROMPTS, i, 6, seed=1)]
    passes = [stream[k : k + 20] for k in (0, 20, 40)]
    assert all(set(turn) == {p.id for p in PROMPTS} for turn in passes)
    assert passes[0] != passes[1]


# ---- runs


def test_a_run_leaves_a_model_a_journal_and_is_not_run_twice(causal, tmp_path):
    result = train_ppo(PROMPTS, causal, tmp_path, FunctionScorer(vowels), PPOSettings(**SMALL))
    assert load_file(tmp_path / "model.safetensors").keys()
    lines = [json.loads(x) for x in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2]
    assert not (tmp_path / "checkpoints").exists()
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = train_ppo(PROMPTS, causal, tmp_path, FunctionScorer(vowels), PPOSettings(**SMALL))
    assert again.metrics == result.metrics
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    assert not same_weights(tmp_path, Path(causal))


def test_lora_leaves_an_adapter_and_the_merged_model(causal, tmp_path):
    settings = PPOSettings(**SMALL, lora=LoraSettings(rank=4))
    train_ppo(PROMPTS, causal, tmp_path, FunctionScorer(vowels), settings)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not same_weights(tmp_path, Path(causal))


def test_prompts_that_leave_no_room_are_counted(causal, tmp_path):
    prompts = [*PROMPTS, Prompt.user("big " * 200)]
    result = train_ppo(prompts, causal, tmp_path, FunctionScorer(vowels), PPOSettings(**SMALL))
    assert result.metrics["refused"] == {"too_long": 1, "ptx": 0}
    with pytest.raises(TrainingError, match="a step takes 8"):
        train_ppo(PROMPTS[:4], causal, tmp_path, FunctionScorer(vowels), PPOSettings(**SMALL))


# One process imports PyTorch; each run is a fork of it, so that what is killed is the training.
SERVER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from rlaif.records import Prompt
from rlaif.training.settings import LoraSettings
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import load_function
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import Runtime

def train(model, out, lora, kill):
    prompts = [Prompt.user(f"the {x} cat {i}") for i, x in enumerate(["big", "red", "blue"] * 4)]
    settings = PPOSettings(
        steps=6, batch_size=8, max_new_tokens=8, learning_rate=1e-3, target_kl=0.1, horizon=50,
        lora=LoraSettings(rank=4) if lora else None, checkpoint_every=2,
    )
    def tell(row):
        if row["step"] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
    train_ppo(prompts, model, out, load_function("scores:length"), settings,
              runtime=Runtime("cpu", on_log=tell))

for lora in (0, 1):
    for out, kill in (("whole", 0), ("killed", 3), ("killed", 6), ("killed", 0)):
        child = os.fork()
        if child == 0:
            train(sys.argv[1], f"{out}-{lora}", lora, kill)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SCORES = "def length(prompts, completions):\n    return [len(c) / 20 for c in completions]\n"


def test_a_run_killed_with_9_ends_with_the_same_weights(causal, tmp_path):
    (tmp_path / "scores.py").write_text(SCORES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER, causal],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "-9", "-9", "0"] * 2, done.stderr
    for kind in ("0", "1"):  # all weights; LoRA
        whole, killed = tmp_path / f"whole-{kind}", tmp_path / f"killed-{kind}"
        assert same_weights(whole, killed)
        journals = [
            [json.loads(x) for x in (folder / "training.jsonl").read_text().splitlines()]
            for folder in (whole, killed)
        ]
        for a, b in zip(*journals, strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_alarms():
    first = {"kl": 0.0, "entropy": 1.0, "length": 20.0, "ended": 1.0}
    limits = PPOSettings()
    assert find_alarms(first, first, limits) == {}
    bad = {"kl": 30.0, "entropy": 0.1, "length": 45.0, "ended": 0.2}
    found = find_alarms(bad, first, limits)
    assert set(found) == {"kl", "entropy", "length", "ended"}
    assert "30.0 nats" in found["kl"]
    assert set(find_alarms({**first, "length": 9.0}, first, limits)) == {"length"}
    assert find_alarms(bad, first, PPOSettings(alarms=QUIET)) == {}


def test_alarms_reach_the_journal_and_people(causal, tmp_path):
    settings = PPOSettings(**{**SMALL, "alarms": AlarmLimits(ended=1.0)})
    with pytest.warns(UserWarning, match="end by themselves"):
        result = train_ppo(PROMPTS, causal, tmp_path, FunctionScorer(vowels), settings)
    line = json.loads((tmp_path / "training.jsonl").read_text().splitlines()[0])
    assert set(line["alarms"]) == {"ended"}
    assert result.metrics["alarms"]["ended"]["steps"] == 2


# ---- scorers


def test_a_judge_scores_against_what_the_policy_said_before():
    asked: list[list[Pair]] = []
    answered: list[str] = []

    def label(pairs):
        asked.append(list(pairs))
        return [
            Preference(p, "abstained", None)
            if not p.first
            else Preference(p, "tie", None)
            if p.first == "even"
            else Preference(p, "preferred", 0.9 if p.first > p.second else 0.2)
            for p in pairs
        ]

    def reference(prompts):
        answered.extend(p.id for p in prompts)
        return ["m"] * len(prompts)

    scorer = JudgeScorer(label, reference, "key")
    texts = ["z", "a", "m", "", "even", "z"]
    prompts = [PROMPTS[0], *PROMPTS[:5]]
    scores = scorer.score(prompts, texts, [True] * 6)
    assert scores == [0.9, 0.2, 0.5, None, 0.5, 0.9]
    assert len(answered) == 5
    assert all(pair.first != pair.second for pair in asked[0])
    scorer.score(prompts, texts, [True] * 6)
    assert len(answered) == 5  # asked once a prompt


def test_functions_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scores.py").write_text(
        "def good(prompts, completions):\n    return [1, None]\n"
    )
    scorer = load_function("my_scores:good")
    assert scorer.score(PROMPTS[:2], ["a", "b"], [True, True]) == [1.0, None]
    for name, why in (
        ("my_scores", "module:function"),
        ("my_scores:bad", "no function 'bad'"),
        ("absent_module:x", "cannot import"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_function(name)


def test_settings_are_checked():
    for options, why in (
        ({"batch_size": 10}, "multiple of minibatches"),
        ({"samples": 7}, "multiple of samples"),
        ({"temperature": 0.0}, "temperature"),
        ({"algorithm": "pop"}, "ppo"),
    ):
        with pytest.raises(ConfigError, match=why):
            PPOSettings(**options)


@pytest.mark.parametrize("options", [{}, {"value": "separate"}, {"lora": LoraSettings(rank=2)}])
def test_gradient_checkpointing_changes_memory_only(causal, options):
    plain, less = make_ppo(causal, **options), make_ppo(causal, **options)
    less.nets.checkpoint_gradients()
    for index in range(2):
        a, b = plain.step(index, PROMPTS[:8]), less.step(index, PROMPTS[:8])
        assert b["first_ratio_gap"] == 0.0
        assert a["policy_loss"] == pytest.approx(b["policy_loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    assert less.nets.policy.is_gradient_checkpointing


def test_time_is_not_part_of_a_step(causal):
    """Two runs of one seed are equal, whenever they are made."""
    one, two = make_ppo(causal), make_ppo(causal)
    a = one.step(0, PROMPTS[:8])
    time.sleep(0.01)
    assert a == two.step(0, PROMPTS[:8])
