"""PPO's mathematics against hand-worked numbers, direct sums and published behaviour."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.training.rl.ppo_losses import (
    KLController,
    approx_kl,
    categorical_entropy,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    k1,
    k3,
    score_function_loss,
    token_rewards,
    whiten,
)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gae_by_hand():
    # γ 0.9, λ 0.5: δ₁ = 2 − 1 = 1, A₁ = 1; δ₀ = 1 + 0.9·1 − 0.5 = 1.4, A₀ = 1.4 + 0.45·1
    advantages, returns = gae(t(1, 2)[None], t(0.5, 1)[None], 0.9, 0.5)
    assert advantages[0].tolist() == pytest.approx([1.85, 1.0])
    assert returns[0].tolist() == pytest.approx([2.35, 2.0])


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_gae_is_the_direct_double_sum(T, gamma, lam, seed):
    draw = np.random.default_rng(seed)
    rewards, values = draw.normal(size=(2, 3, T))
    found, returns = gae(torch.from_numpy(rewards), torch.from_numpy(values), gamma, lam)
    for b in range(3):
        for start in range(T):
            total = 0.0
            for n in range(start, T):
                following = values[b, n + 1] if n + 1 < T else 0.0
                delta = rewards[b, n] + gamma * following - values[b, n]
                total += (gamma * lam) ** (n - start) * delta
            assert found[b, start].item() == pytest.approx(total, abs=1e-9)
            assert returns[b, start].item() == pytest.approx(total + values[b, start], abs=1e-9)


def test_lambda_of_one_is_the_whole_return_less_the_baseline():
    rewards, values = t(-0.1, -0.2, 1.5)[None], t(0.3, 0.1, -0.4)[None]
    advantages, returns = gae(rewards, values, 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([1.2, 1.3, 1.5])
    assert advantages[0].tolist() == pytest.approx([0.9, 1.2, 1.9])


def test_padding_behind_an_episode_changes_nothing():
    rewards, values = t(0.1, -0.3, 1.0), t(0.2, 0.4, 0.6)
    alone = gae(rewards[None], values[None], 0.99, 0.95)[0][0]
    padded = torch.zeros(1, 7, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)
    padded[0][0, :3], padded[1][0, :3] = rewards, values
    found = gae(*padded, 0.99, 0.95)[0][0]
    assert found[:3].tolist() == alone.tolist()
    assert found[3:].tolist() == [0, 0, 0, 0]


def test_whitening_by_hand_and_its_flag():
    x, mask = t(1, 3, 100)[None], t(1, 1, 0)[None]  # mean 2, biased variance 1
    scale = 1 / math.sqrt(1 + 1e-8)
    assert whiten(x, mask)[0].tolist() == pytest.approx([-scale, scale, 0])
    assert whiten(x, mask, shift_mean=False)[0].tolist() == pytest.approx([2 - scale, 2 + scale, 0])


def test_rewards_are_a_penalty_a_token_and_the_score_at_the_end():
    log_ratio = t(0.5, -1.0, 0.0, 0.0).repeat(2, 1)
    states = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])  # ended; cut after the same two tokens
    rewards = token_rewards(t(2.0, -1.0), log_ratio, states, 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, 2.0, 0])
    assert rewards[1].tolist() == pytest.approx([-0.05, 0.1 - 1.0, 0, 0])
    weighed = token_rewards(t(2.0, -1.0), log_ratio, states, 0.1, score_weight=0.9)
    assert weighed[0].tolist() == pytest.approx([-0.05, 0.1, 1.8, 0])
    positive = token_rewards(t(0.0, 0.0), log_ratio, states, 0.1, estimator="k3")
    assert positive[0, 0].item() == pytest.approx(-0.1 * (math.exp(-0.5) - 1 + 0.5))


def test_policy_loss_by_hand():
    # ρ = 1.5, 0.5, 1.1 with A = 1: −min(ρA, clip(ρ)A) = −1.2, −0.5, −1.1
    logp, old = torch.log(t(1.5, 0.5, 1.1)), t(0, 0, 0)
    loss, clipped = clipped_policy_loss(logp, old, t(1, 1, 1), 0.2)
    assert loss.tolist() == pytest.approx([-1.2, -0.5, -1.1])
    assert clipped.tolist() == [True, False, False]
    # with A = −1: the larger of ρ and its clipped self
    loss, clipped = clipped_policy_loss(logp, old, t(-1, -1, -1), 0.2)
    assert loss.tolist() == pytest.approx([1.5, 0.8, 1.1])
    assert clipped.tolist() == [False, True, False]


def test_at_ratio_one_ppo_and_the_score_function_have_one_gradient():
    advantages = t(0.7, -1.2, 0.1)
    one, two = t(-1.0, -2.0, -0.5).requires_grad_(), t(-1.0, -2.0, -0.5).requires_grad_()
    clipped_policy_loss(one, one.detach(), advantages, 0.2)[0].sum().backward()
    score_function_loss(two, advantages).sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert one.grad.tolist() == pytest.approx(two.grad.tolist())


def test_value_loss_by_hand():
    # V = 1, V_old = 0, R = 2: unclipped ½·1, clipped to 0.2: ½·1.8²
    loss = clipped_value_loss(t(1, 0.1), t(0, 0), t(2, 2), 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 1.9**2])


@settings(deadline=None)
@given(st.floats(-5, 5))
def test_the_kl_estimates(log_ratio):
    value = k3(t(log_ratio)).item()
    assert value >= 0
    assert value == pytest.approx(math.exp(-log_ratio) - 1 + log_ratio, abs=1e-9)
    assert k1(t(log_ratio)).item() == log_ratio


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_both_estimates_are_unbiased(seed):
    draw = np.random.default_rng(seed)
    p, q = draw.dirichlet(np.ones(5), size=2)
    exact = float((p * np.log(p / q)).sum())
    ratio = torch.from_numpy(np.log(p / q))
    weights = torch.from_numpy(p)
    assert (weights * k1(ratio)).sum().item() == pytest.approx(exact)
    assert (weights * k3(ratio)).sum().item() == pytest.approx(exact, abs=1e-6)


def test_approx_kl_and_entropy_by_hand():
    assert approx_kl(t(-1.0), t(-1.4)).item() == pytest.approx(0.08)
    p = np.array([0.5, 0.25, 0.25])
    assert categorical_entropy(torch.log(torch.from_numpy(p))[None]).item() == pytest.approx(
        1.5 * math.log(2)
    )


def test_adaptive_beta_follows_the_formula():
    control = KLController(0.1, target=6.0, horizon=1_000)
    control.update(6.6, 64)  # e = 0.1
    assert control.beta == pytest.approx(0.1 * (1 + 0.1 * 0.064))
    control.update(60.0, 100)  # e clipped to 0.2
    assert control.beta == pytest.approx(0.1 * 1.0064 * (1 + 0.2 * 0.1))
    before = control.beta
    control.update(0.0, 100)
    assert control.beta == pytest.approx(before * (1 - 0.2 * 0.1))
    fixed = KLController(0.1)
    fixed.update(60.0, 100)
    assert fixed.beta == 0.1
