"""Losses against numbers worked by hand, finite differences and their own symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.training import losses
from rlaif.training.settings import DPO_LOSSES, SMOOTHED, DPOSettings

reals = st.floats(-6, 6)
labels = st.floats(0, 1)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_soft_bradley_terry_by_hand():
    # σ(ln 3) = 3/4: −0.8 ln 0.75 − 0.2 ln 0.25 = 0.230145… + 0.277258…
    value = losses.soft_bradley_terry(t(math.log(3)), t(0.8))
    assert value.item() == pytest.approx(0.2301456579 + 0.2772588722, abs=1e-9)
    # a hard label: −ln 0.75; no difference: ln 2 whatever the label
    assert losses.soft_bradley_terry(t(math.log(3)), t(1.0)).item() == pytest.approx(0.2876820724)
    assert losses.soft_bradley_terry(t(0.0), t(0.3)).item() == pytest.approx(math.log(2))


def test_margin_by_hand():
    # Δ − m = ln 3 for the better, −Δ − m = −ln 3 − 2 for the worse
    value = losses.soft_bradley_terry(t(math.log(3) + 1), t(1.0), margin=1.0)
    assert value.item() == pytest.approx(-math.log(0.75))
    soft = losses.soft_bradley_terry(t(math.log(3) + 1), t(0.5), margin=1.0).item()
    worse = math.log(1 + math.exp(math.log(3) + 2))
    assert soft == pytest.approx(-0.5 * math.log(0.75) + 0.5 * worse)


@given(reals, labels, st.floats(0, 3))
def test_exchanging_the_pair_and_its_label_changes_nothing(delta, p, margin):
    one = losses.soft_bradley_terry(t(delta), t(p), margin).item()
    two = losses.soft_bradley_terry(t(-delta), t(1 - p), margin).item()
    assert one == pytest.approx(two, abs=1e-9)


@given(reals, labels)
def test_both_ways_to_write_the_soft_dpo_loss(h, p):
    written = losses.dpo_sigmoid(t(h), 0.5, t(p)).item()
    sigma = 1 / (1 + math.exp(-0.5 * h))
    assert written == pytest.approx(-p * math.log(sigma) - (1 - p) * math.log(1 - sigma), abs=1e-9)


@given(reals)
def test_a_label_of_one_is_the_hard_loss(h):
    hard = math.log(1 + math.exp(-0.1 * h))
    assert losses.dpo_sigmoid(t(h), 0.1, t(1.0)).item() == pytest.approx(hard)


def test_dpo_logits_by_hand():
    # (−3 − −5) − (−4 − −4.5) = 2 − 0.5
    assert losses.dpo_logits(t(-3), t(-4), t(-5), t(-4.5)).item() == pytest.approx(1.5)


def test_conservative_and_robust_by_hand():
    h, beta = t(2 * math.log(3)), 0.5  # βh = ln 3
    good, bad = -math.log(0.75), -math.log(0.25)
    value = losses.dpo_conservative(h, beta, t(1.0), 0.1).item()
    assert value == pytest.approx(0.9 * good + 0.1 * bad)
    value = losses.dpo_robust(h, beta, t(1.0), 0.1).item()
    assert value == pytest.approx((0.9 * good - 0.1 * bad) / 0.8)


@given(reals, labels, st.floats(0.01, 0.45))
def test_robust_is_unbiased_under_flips(h, p, noise):
    kept = losses.dpo_robust(t(h), 1.0, t(p), noise).item()
    flipped = losses.dpo_robust(t(h), 1.0, t(1 - p), noise).item()
    clean = losses.dpo_sigmoid(t(h), 1.0, t(p)).item()
    assert (1 - noise) * kept + noise * flipped == pytest.approx(clean, abs=1e-6)


def test_ipo_by_hand():
    assert losses.ipo(t(3.0), 0.25, t(1.0)).item() == pytest.approx(1.0)  # (3 − 2)²
    assert losses.ipo(t(3.0), 0.25, t(0.75)).item() == pytest.approx(4.0)  # (3 − 1)²


@given(reals, labels)
def test_soft_ipo_is_the_mean_of_the_hard_ones_but_for_a_constant(h, p):
    def mean(x: float) -> float:
        one, other = losses.ipo(t(x), 0.5, t(1.0)).item(), losses.ipo(t(x), 0.5, t(0.0)).item()
        return p * one + (1 - p) * other

    soft = losses.ipo(t(h), 0.5, t(p)).item() - losses.ipo(t(0.0), 0.5, t(p)).item()
    assert soft == pytest.approx(mean(h) - mean(0.0), abs=1e-6)


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_gradients_against_finite_differences(name):
    noise = 0.2 if name in SMOOTHED else 0.0
    p = t(0.9, 0.6, 1.0)

    def f(h, h_token):
        return losses.dpo_loss(name, h, h_token, beta=0.3, p=p, noise=noise)

    h = t(0.4, -1.2, 3.0).requires_grad_()
    h_token = t(0.1, -0.3, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(f, (h, h_token))


def test_reward_gradients_against_finite_differences():
    def f(first, second):
        delta = losses.soft_bradley_terry(first - second, t(0.7, 0.2), 0.5)
        return delta + 0.1 * losses.centring(first, second)

    inputs = (t(0.4, -1.2).requires_grad_(), t(0.1, 2.0).requires_grad_())
    assert torch.autograd.gradcheck(f, inputs)


def test_length_normalised_losses_take_the_ratio_per_token():
    p, h, h_token = t(1.0), t(10.0), t(math.log(3))
    value = losses.dpo_loss("sigmoid_norm", h, h_token, beta=1.0, p=p).item()
    assert value == pytest.approx(-math.log(0.75))


def test_all_pairs_of_a_prompt_weigh_as_one():
    weights = losses.pair_weights(["a", "a", "a", "b"])
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_centring_by_hand():
    assert losses.centring(t(1.0), t(-3.0)).item() == pytest.approx(4.0)


def test_token_logprobs_by_hand():
    logits = torch.log(torch.tensor([[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]])) + 7.0
    value = losses.token_logprobs(logits, torch.tensor([[2, 0]]))
    assert value.tolist()[0] == pytest.approx([math.log(0.5), math.log(0.6)], abs=1e-6)


def test_no_overflow_far_out():
    value = losses.soft_bradley_terry(t(800.0, -800.0), t(1.0, 1.0))
    assert value.tolist() == pytest.approx([0.0, 800.0])


@pytest.mark.parametrize(
    ("name", "beta", "noise", "says"),
    [
        ("sigmod", 0.1, 0.0, "Did you mean 'sigmoid'"),
        ("sigmoid", 0.0, 0.0, "greater than 0"),
        ("robust", 0.1, 0.0, "label noise in"),
        ("sigmoid", 0.1, 0.1, "label noise is for"),
    ],
)
def test_settings_that_do_not_belong_together(name, beta, noise, says):
    with pytest.raises(ConfigError, match=says):
        DPOSettings(loss=name, beta=beta, label_noise=noise)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_token_logprobs_is_autograds(temperature):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=draw, requires_grad=True)
    other = logits.detach().clone().requires_grad_()
    tokens = torch.randint(7, (2, 3), generator=draw)
    weights = torch.randn(2, 3, generator=draw)
    mine = losses.token_logprobs(logits, tokens, temperature)
    plain = torch.log_softmax(other / temperature, -1).gather(-1, tokens[..., None])[..., 0]
    assert torch.allclose(mine, plain, atol=1e-6)
    (mine * weights).sum().backward()
    (plain * weights).sum().backward()
    assert torch.allclose(logits.grad, other.grad, atol=1e-6)
