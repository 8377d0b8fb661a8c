"""The mathematics of PPO on language models, as pure functions of tensors.

B episodes, T states of the longest one, N states (or actions) of a part laid out in one row. State
t of a completion is that before its token t; a completion that ended has one state more, after its
end token. Tensors hold 0 where an episode has no such state, so a sum over T is a sum over the
episode. Log-probabilities are natural, of one token.

Ziegler et al. 2019; Stiennon et al. 2020; Huang et al. 2024, "The N+ implementation details of RLHF
with PPO".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k3"]


def k1(log_ratio: Tensor) -> Tensor:
    """log π − log π_ref, as given: unbiased for the KL, of any sign (Schulman 2020)."""
    return log_ratio


def k3(log_ratio: Tensor) -> Tensor:
    """(ρ − 1) − log ρ with ρ = π_ref/π = exp(−log_ratio): unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio


def kl_estimate(name: Estimator, log_ratio: Tensor) -> Tensor:
    """The named estimate of KL(π ‖ π_ref) from log π − log π_ref, of the same shape."""
    return k1(log_ratio) if name == "k1" else k3(log_ratio)


def token_rewards(
    scores: Tensor,
    log_ratio: Tensor,
    states: Tensor,
    beta: float,
    *,
    estimator: Estimator = "k1",
    score_weight: float = 1.0,
) -> Tensor:
    """Rewards (B, T): −β·KL of every token, and the score (B,) in the last state.

    `log_ratio` is log π − log π_ref (B, T), against the fixed reference, 0 where there is no token;
    `states` (B, T) is 1 where there is a state. The last state is the one after the end token, or
    the last token's where a limit cut the completion. `score_weight` is 1, or 1 − β in RLAIF's
    REINFORCE (Lee et al. 2023, §3.2).
    """
    rewards = -beta * kl_estimate(estimator, log_ratio)
    last = states.long().sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, score_weight * scores[:, None])


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (B, T) each (Schulman et al. 2016).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, with V = 0 behind the last state;
    returns are A + V, of the advantages as they are here, before any whitening.
    """
    advantages = torch.zeros_like(values)
    following = carried = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = delta + gamma * lam * carried
        advantages[:, t] = carried
        following = values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(x − μ)·rsqrt(σ² + 1e-8) over the masked entries, the others 0; σ² is the biased variance.

    Without `shift_mean` the mean is put back: rewards keep theirs, advantages are centred.
    """
    mask = mask.to(x)
    mean = (x * mask).sum() / mask.sum()
    variance = ((x - mean) ** 2 * mask).sum() / mask.sum()
    out = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (out if shift_mean else out + mean) * mask


def clipped_policy_loss(
    logp: Tensor, old: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """max(−Aρ, −A·clip(ρ, 1 − ε, 1 + ε)) of each token, and whether the clipped one was taken.

    ρ = exp(log π − log π_old) (Schulman et al. 2017, eq. 7, with the sign of a loss).
    """
    ratio = torch.exp(logp - old)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def score_function_loss(logp: Tensor, advantages: Tensor) -> Tensor:
    """−A log π of each token: REINFORCE (Williams 1992) and A2C (Mnih et al. 2016)."""
    return -advantages * logp


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²) of each state."""
    near = torch.minimum(torch.maximum(values, old - clip), old + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def approx_kl(logp: Tensor, old: Tensor) -> Tensor:
    """½ (log π − log π_old)² of each token: how far an update has moved the policy."""
    return 0.5 * (logp - old) ** 2


def categorical_entropy(logits: Tensor) -> Tensor:
    """−Σ p log p in nats, (N,), of logits (N, V), of which −∞ adds nothing."""
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp.masked_fill(logits == -torch.inf, 0.0)).sum(-1)


@dataclass
class KLController:
    """β of the KL penalty: fixed, or steered to a target (Ziegler et al. 2019, §2.2).

    e = clip(KL/target − 1, ±0.2) and β ← β(1 + e·n/horizon), with n the episodes of the batch and
    KL in nats an episode. `target` None keeps β as it is.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, n: int) -> None:
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * n / self.horizon
