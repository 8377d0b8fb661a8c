"""PPO's rollouts by vLLM: they are the live policy's own, and its training takes them."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlaif import tiny
from rlaif.config import load_config
from rlaif.engines.settings import VLLMSettings
from rlaif.records import Prompt
from rlaif.stages import Run
from rlaif.stages import train_ppo as train_stage
from rlaif.store import RunStore
from rlaif.training.models import add_lora, load_policy
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.rollout import Episode, Sampler
from rlaif.training.rl.rollout_vllm import VLLMSampler
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import LoraSettings, Runtime

PROMPTS = [Prompt.user(p.text) for p in tiny.prompts("train", limit=12)]
SMALL = {"cache_gib": 0.25}


def worst_gap(model: torch.nn.Module, episodes: list[Episode], temperature: float) -> float:
    """Largest |Δ log p| of the sampled tokens to a plain forward pass over each episode."""
    worst = 0.0
    for e in episodes:
        ids = torch.from_numpy(e.sequence.astype(np.int64))[None]
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0].double() / temperature, -1)
        at = torch.arange(len(e.prompt_ids) - 1, ids.shape[1] - 1)
        own = table[at, ids[0, at + 1]].numpy()
        worst = max(worst, float(np.abs(own - e.logprobs).max()))
    return worst


def jolt(model: torch.nn.Module) -> None:
    """Moves every weight that learns, so that the model says something else."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std().clamp_min(0.1) * 0.3)


@pytest.fixture(scope="module")
def sampler():
    made = VLLMSampler(
        load_policy("tiny"), "tiny", temperature=0.7, max_new_tokens=24, options=SMALL
    )
    yield made
    made.close()


@pytest.mark.parametrize("lora", [False, True])
def test_log_probabilities_are_those_of_the_weights_of_the_moment(sampler, lora):
    loaded, before = load_policy("tiny"), load_policy("tiny").model
    if lora:
        add_lora(loaded, LoraSettings(rank=4), "policy", 0)
    jolt(loaded.model)
    kept = {name: p.clone() for name, p in loaded.model.state_dict().items()}
    episodes = sampler.sample(loaded.model, PROMPTS, seed=1, n=2)
    assert [e.prompt for e in episodes] == [p for p in PROMPTS for _ in range(2)]
    gap = worst_gap(loaded.model, episodes, 0.7)
    print(f"vLLM against the policy after an update: max |Δ log p| = {gap:.1e}")
    assert gap <= 1e-3
    assert worst_gap(before, episodes, 0.7) > 0.1  # the update did something
    now = loaded.model.state_dict()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_samples_depend_on_the_seed_and_on_nothing_before(sampler):
    model = load_policy("tiny").model
    one = sampler.sample(model, PROMPTS, seed=1, n=2)
    other = sampler.sample(model, PROMPTS, seed=2, n=2)
    again = sampler.sample(model, PROMPTS, seed=1, n=2)
    for a, b in zip(one, again, strict=True):
        assert (a.ids.tolist(), a.logprobs.tolist()) == (b.ids.tolist(), b.logprobs.tolist())
    assert [e.ids.tolist() for e in one] != [e.ids.tolist() for e in other]


def alike(ours: list[Episode], theirs: list[Episode]) -> None:
    """Where Transformers had hardly a choice; the embedded model often has two equal ways on."""
    decided = [e.logprobs.sum() > -1e-3 for e in theirs]
    assert sum(decided) >= 8
    for x, y in itertools.compress(zip(ours, theirs, strict=True), decided):
        assert (x.prompt, x.text, x.ended) == (y.prompt, y.text, y.ended)
        assert x.prompt_ids.tolist() == y.prompt_ids.tolist()
        assert x.ids.tolist() == y.ids.tolist()
        assert x.ids.dtype == y.ids.dtype
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-3)


def test_at_a_low_temperature_episodes_are_those_of_transformers(sampler):
    """Ids with their end token, texts, prompts and what has ended."""
    loaded = load_policy("tiny")
    for longest in (8, 24):
        plain = Sampler(loaded, temperature=0.01, max_new_tokens=longest)
        sampler.temperature, sampler.max_new_tokens = 0.01, longest
        try:
            ours = sampler.sample(loaded.model, PROMPTS, seed=3)
        finally:
            sampler.temperature, sampler.max_new_tokens = 0.7, 24
        theirs = plain.sample(loaded.model, PROMPTS, seed=3)
        alike(ours, theirs)
        assert {e.ended for e in ours} >= {longest == 24}


def test_stop_strings_end_an_episode_as_with_transformers(sampler):
    """Models without a chat template end at the transcript's next turn."""
    loaded = load_policy("tiny")
    plain = Sampler(loaded, temperature=0.01, max_new_tokens=24)
    text = plain.sample(loaded.model, PROMPTS[:1], seed=3)[0].text
    stop = (text[len(text) // 2 :][:3],)
    sampler.temperature = 0.01
    sampler.encoder.stop = sampler.engine.encoder.stop = plain.encoder.stop = stop
    try:
        ours = sampler.sample(loaded.model, PROMPTS, seed=3)
    finally:
        sampler.temperature = 0.7
        sampler.encoder.stop = sampler.engine.encoder.stop = ()
    alike(ours, plain.sample(loaded.model, PROMPTS, seed=3))
    assert ours[0].ended
    assert len(ours[0].text) < len(text)


def brevity(_, completions):
    return [1 / (1 + len(text)) for text in completions]


def stop_at(step: int):
    def on_log(row) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return on_log


def train(out, *, steps: int = 3, bf16: bool = False, **options):
    settings = PPOSettings(
        steps=steps,
        batch_size=12,
        epochs=2,
        minibatches=2,
        max_new_tokens=24,
        learning_rate=1e-3,
        temperature=0.7,
        rollouts="vllm",
        vllm=VLLMSettings(**SMALL),
        bf16=bf16,
        checkpoint_every=1,
        seed=0,
    )
    runtime = Runtime("cpu", **{"on_log": lambda _: None, **options})
    scorer = FunctionScorer(brevity)
    train_ppo(PROMPTS, "tiny", out, scorer, settings, runtime=runtime)
    return [json.loads(x) for x in (out / "training.jsonl").read_text().splitlines()]


def test_ppo_learns_from_vllms_rollouts_and_goes_on_after_a_kill(tmp_path):
    check(train(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", on_log=stop_at(2))
    train(tmp_path / "killed")
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    start = load_policy("tiny").model.state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)


def test_ppo_in_bfloat16(tmp_path):
    """Both round otherwise, by as much as bfloat16's eight bits let them."""
    lines = train(tmp_path, bf16=True, steps=1)
    assert 1e-4 < lines[0]["rollout_gap"] < 0.2
    assert lines[0]["rollout_gap_mean"] < 0.01
    assert lines[0]["first_ratio_gap"] == 0.0


class Silent:
    """A reporter that tells nobody."""

    def say(self, text: str) -> None:
        del text

    warn = say

    def progress(self, title: str, total: int | None):
        del title, total
        return nullcontext(lambda *_: None)


def test_ppo_with_an_adapter_by_the_config(tmp_path):
    settings = [
        "train.ppo={reward: test_rollouts:brevity, rollouts: vllm, steps: 3, batch_size: 12}",
        "train.ppo.vllm.cache_gib=0.25",
        "train.ppo.lora.rank=4",
        "train.ppo.learning_rate=0.01",
        "train.ppo.held_out={every: 2, prompts: 4}",
        "prompts.limit=16",
    ]
    config = load_config("demo", settings, {"out": str(tmp_path / "run")})
    with RunStore(config.out) as store, Run(config, store, Silent()) as run:
        train_stage(run)
    text = (tmp_path / "run/models/ppo/training.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    check(lines)
    # None where the judge abstains on all, as it may once this learning rate has spoilt the policy.
    assert ["held_out" in line for line in lines] == [True, False, True]
    assert lines[0]["held_out"] is not None


def check(lines: list[dict]) -> None:
    """Every step's samples were its own policy's, and the first policy was the reference."""
    assert len(lines) == 3
    for line in lines:
        assert line["first_ratio_gap"] == 0.0
        assert 0 < line["rollout_gap_mean"] <= line["rollout_gap"] <= 1e-3
    print("rollout_gap", [f"{line['rollout_gap']:.1e}" for line in lines])
    print("rollout_gap_mean", [f"{line['rollout_gap_mean']:.1e}" for line in lines])
    assert lines[0]["kl"] == 0.0
    assert lines[-1]["kl_k3"] > 1e-3  # more than the difference could be
