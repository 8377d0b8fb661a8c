"""PPO's rollouts by vLLM, as far as they need no vLLM; with it, see tests/on_vllm."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_ppo import PROMPTS, SMALL, make_ppo, vowels

from rlaif.config import load_config
from rlaif.errors import ConfigError
from rlaif.training.models import add_lora, load_policy
from rlaif.training.rl.ppo import Experience, Meter
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.rollout import Episode
from rlaif.training.rl.rollout_vllm import VLLMSampler, merged_weights
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import LoraSettings, Runtime

_found = find_spec("vllm")
HAS_VLLM = _found is not None and _found.origin is not None


def adapted(causal: str, **options):
    loaded = load_policy(causal)
    add_lora(loaded, LoraSettings(rank=4, **options), "policy", 0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return loaded.model


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_merged_weights_are_those_that_peft_merges_and_the_policy_stays(causal, targets):
    plain = dict(merged_weights(load_policy(causal).model))
    model = adapted(causal, targets=targets)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    merged = dict(merged_weights(model))
    assert merged.keys() == plain.keys()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):  # as rollouts of `bf16` are asked for
        inside = dict(merged_weights(model))
    expected = model.merge_and_unload().state_dict()  # changes the model
    moved = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert moved
    for name, value in merged.items():
        assert torch.allclose(value, expected[name], atol=1e-7), name
        assert torch.equal(value, inside[name])


def test_an_adapter_on_tied_embeddings_is_refused(causal):
    loaded = load_policy(causal)
    assert loaded.model.config.tie_word_embeddings
    with pytest.warns(UserWarning, match="tied"):
        add_lora(loaded, LoraSettings(targets=("q_proj", "embed_tokens")), "policy", 0)
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        next(merged_weights(loaded.model))


def test_what_vllm_cannot_sample_is_refused(causal, monkeypatch):
    for options, why in (
        ({"mask_top_p": 0.9}, "NLPO"),
        ({"lora": LoraSettings(four_bit=True)}, "lora.four_bit: false"),
        ({"temperature": 0.001}, "temperatures from 0.01 to 2"),
        ({"temperature": 2.5}, "temperatures from 0.01 to 2"),
    ):
        with pytest.raises(ConfigError, match=why):
            PPOSettings(rollouts="vllm", **options)
    with pytest.raises(ConfigError, match=r"'rollouts'.*'vllm', got 'vlm'"):
        PPOSettings(rollouts="vlm")
    loaded, room = load_policy(causal), {"temperature": 1.0, "max_new_tokens": 8}
    with pytest.raises(ConfigError, match=r"vllm\.quantization to null, not fp8"):
        VLLMSampler(loaded, causal, **room, options={"quantization": "fp8"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process, and 2 were launched"):
        VLLMSampler(loaded, causal, **room)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_error_names_the_command_that_installs_it(causal, tmp_path):
    settings = PPOSettings(**SMALL, rollouts="vllm")
    with pytest.raises(ConfigError, match=r'pip install "vllm>='):
        train_ppo(
            PROMPTS, causal, tmp_path, FunctionScorer(vowels), settings, runtime=Runtime("cpu")
        )


def test_the_config_asks_for_it():
    config = load_config("demo", ["train.ppo={rollouts: vllm, vllm: {cache_gib: 1}}"], {})
    assert config.train.ppo.rollouts == "vllm"
    assert config.train.ppo.vllm.model_dump(exclude_none=True)["cache_gib"] == 1
    with pytest.raises(ConfigError, match="rollouts"):
        load_config("demo", ["train.ppo={rollouts: sglang}"], {})


def test_the_gap_to_the_rollout_is_of_the_tokens_alone():
    """|−1 + 1.1| = 0.1, |−2 + 2.3| = 0.3, |−3 + 3.2| = 0.2: at most 0.3, on average 0.2."""
    empty = np.zeros(0, np.int32)

    def episode(*logprobs: float) -> Episode:
        ids = np.zeros(len(logprobs), np.int32)
        return Episode(PROMPTS[0], empty, ids, "", False, np.array(logprobs))

    logp = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    acts, zeros = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.zeros(2, 2)
    old = Experience(logp, logp, logp, zeros, zeros, acts, acts)
    meter = Meter()
    meter.batch([episode(-1.1, -2.3), episode(-3.2)], torch.ones(2), old, torch.ones(2, 2), 0.1)
    assert meter.facts["rollout_gap"] == pytest.approx(0.3, abs=1e-6)
    assert meter.facts["rollout_gap_mean"] == pytest.approx(0.2, abs=1e-6)


def test_rollouts_by_transformers_have_both_numbers(causal):
    facts = make_ppo(causal).step(0, PROMPTS[:8])
    assert 0 <= facts["rollout_gap_mean"] <= facts["rollout_gap"] < 1e-4
