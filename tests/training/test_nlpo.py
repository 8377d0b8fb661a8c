"""Masked sampling: what is allowed, the same in rollout and training, renewed and resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_ppo import PROMPTS, SMALL, make_ppo, same_weights, vowels

from rlaif.errors import ConfigError
from rlaif.training.models import load_policy
from rlaif.training.rl.nlpo import nucleus, restrict, table_of
from rlaif.training.rl.ppo_losses import categorical_entropy
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import LoraSettings, Runtime


def test_a_nucleus_by_hand():
    logits = torch.log(torch.tensor([[0.3, 0.05, 0.5, 0.15]]))
    assert nucleus(logits, 0.75).tolist() == [[True, False, True, False]]
    assert nucleus(logits, 0.85).tolist() == [[True, False, True, True]]
    assert nucleus(logits, 0.01).tolist() == [[False, False, True, False]]


def test_bits_come_back_as_a_mask():
    draw = np.random.default_rng(0)
    masks = [draw.random((length, 13)) < 0.5 for length in (2, 4)]
    bits = [np.packbits(mask, axis=-1, bitorder="little") for mask in masks]
    kept = restrict(torch.zeros(10, 13), table_of(bits, 5, "cpu")).isfinite().view(2, 5, 13)
    for row, mask in zip(kept, masks, strict=True):
        assert row[: len(mask)].tolist() == mask.tolist()
        assert row[len(mask) :].all()


def test_entropy_of_what_is_allowed_and_its_gradient_are_finite():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, 1.0]], requires_grad=True)
    p = torch.softmax(torch.tensor([0.0, 0.0, 1.0]), 0)
    entropy = categorical_entropy(logits)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item())
    entropy.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("samples", [1, 2])
def test_rollouts_choose_what_the_masking_policy_allows(causal, samples):
    ppo = make_ppo(
        causal,
        mask_top_p=0.9,
        temperature=0.8,
        learning_rate=3e-2,
        samples=samples,
        max_new_tokens=20,
        no_end_score=None,
    )
    policy, masker = ppo.nets.policy, ppo.masker.model
    end = load_policy(causal).tokenizer.eos_token_id
    with torch.no_grad():  # makes the end likely enough to be met
        policy.get_input_embeddings().weight[end] *= 4
    ppo.masker.renew(policy)
    ppo.step(0, PROMPTS[: 8 // samples])  # now policy and masking policy differ
    prompts = PROMPTS[:8]
    episodes = ppo.sampler.sample(policy, prompts, 5, samples, ppo.masker)
    assert len({len(e.ids) for e in episodes}) > 1  # rows leave the batch
    old = ppo.experience(episodes, ppo.plan(1, episodes)[0])
    differ = 0
    for row, episode in enumerate(episodes):
        ids = torch.tensor(episode.sequence.astype(np.int64))[None]
        P, L = len(episode.prompt_ids), len(episode.ids)
        with torch.no_grad():
            own, mask = (
                torch.softmax(m(ids).logits[0, P - 1 : P - 1 + L].double() / 0.8, -1)
                for m in (policy, masker)
            )
        differ += not torch.allclose(own, mask, atol=1e-3)
        for t in range(L):  # the nucleus once more, token by token
            kept, total = set(), 0.0
            for token in mask[t].argsort(descending=True).tolist():
                kept.add(token)
                total += mask[t, token].item()
                if total >= 0.9:
                    break
            token = int(episode.ids[t])
            assert token in kept
            expected = (own[t, token] / own[t, sorted(kept)].sum()).log().item()
            assert episode.logprobs[t] == pytest.approx(expected, abs=1e-4)
            assert old.logp[row, t].item() == pytest.approx(expected, abs=1e-4)
            assert old.free[row, t].item() == pytest.approx(own[t, token].log().item(), abs=1e-4)
    assert differ


@pytest.mark.parametrize("options", [{}, {"lora": LoraSettings(rank=4)}, {"entropy_weight": 0.01}])
def test_ratios_are_exact_and_the_mask_is_renewed_every_few_steps(causal, options):
    ppo = make_ppo(causal, mask_top_p=0.9, mask_every=2, steps=4, learning_rate=1e-2, **options)
    seen = []
    for index in range(4):
        before = {k: v.clone() for k, v in ppo.nets.policy.state_dict().items()}
        facts = ppo.step(index, PROMPTS[:8])
        assert facts["first_ratio_gap"] == 0
        assert facts["rollout_gap"] < 1e-4
        assert (facts["kl"] == 0) == (index == 0)  # of the policy without its mask
        mask = ppo.masker.model.state_dict()
        seen.append(all(torch.equal(before[k], mask[k]) for k in before))
    assert seen == [True, False, True, False]


def test_a_resumed_run_has_the_same_mask(causal, tmp_path):
    settings = PPOSettings(**{**SMALL, "steps": 5, "mask_top_p": 0.8, "mask_every": 3})
    often = settings.but(checkpoint_every=2)
    scorer = FunctionScorer(vowels)

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == 5:
            raise Killed

    train_ppo(PROMPTS, causal, tmp_path / "whole", scorer, settings)
    with pytest.raises(Killed):
        train_ppo(PROMPTS, causal, tmp_path / "cut", scorer, often, runtime=Runtime(on_log=kill))
    train_ppo(PROMPTS, causal, tmp_path / "cut", scorer, often)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_settings_are_checked():
    for options, why in (
        ({"mask_top_p": 1.0}, "mask_top_p.*less than 1"),
        ({"mask_every": 0}, "mask_every.*to 1"),
    ):
        with pytest.raises(ConfigError, match=why):
            PPOSettings(**options)
