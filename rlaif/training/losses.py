"""The losses of preference learning, as pure functions of tensors.

B is the number of pairs of a batch, T tokens, V the vocabulary. `p` is the soft label
P(first is better) of each pair, (B,), in [0, 1]; 1 is a hard label. Every loss comes back a pair at
a time, (B,), unreduced: the caller weighs and averages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif.errors import ConfigError, nearest
from rlaif.training.settings import DPO_LOSSES, DPOLoss


def soft_bradley_terry(delta: Tensor, p: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−p log σ(Δ − m) − (1 − p) log σ(−Δ − m), (B,), with Δ = r_first − r_second, (B,).

    The cross-entropy between the label and softmax(r_first, r_second) (Bai et al. 2022; Lee et al.
    2023). `margin` m ≥ 0 asks the better one to lead by m (Llama 2, Touvron et al. 2023, eq. 2),
    told from either side, so that exchanging the pair and its label changes nothing.
    """
    return -p * logsigmoid(delta - margin) - (1 - p) * logsigmoid(-delta - margin)


def centring(first: Tensor, second: Tensor) -> Tensor:
    """(r_first + r_second)², (B,): keeps rewards near zero (Eisenstein et al. 2023, eq. 2).

    Bradley–Terry sees differences only; this term settles the free constant.
    """
    return (first + second) ** 2


def pair_weights(prompts: Sequence[Hashable]) -> Tensor:
    """1 / (number of the prompt's pairs), (B,): all pairs of a prompt together count once.

    With all pairs of K completions this is InstructGPT's 1/C(K, 2) (Ouyang et al. 2022, eq. 1),
    which keeps a prompt with many completions from outweighing, and being overfitted.
    """
    count = Counter(prompts)
    return torch.tensor([1.0 / count[name] for name in prompts])


def dpo_logits(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
) -> Tensor:
    """h = log(π/π_ref)(chosen) − log(π/π_ref)(rejected), (B,), from log-probabilities (B,)."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def dpo_sigmoid(h: Tensor, beta: float, p: Tensor) -> Tensor:
    """−log σ(βh) + (1 − p) βh, (B,): soft Bradley–Terry on DPO's implicit rewards.

    Rafailov et al. 2023, eq. 7, at p = 1. Equal to −p log σ(βh) − (1 − p) log σ(−βh).
    """
    delta = beta * h
    return -logsigmoid(delta) + (1 - p) * delta


def dpo_conservative(h: Tensor, beta: float, p: Tensor, noise: float) -> Tensor:
    """cDPO, (B,): `dpo_sigmoid` for labels that are wrong with probability ε (Mitchell 2023).

    A label p is then (1 − ε)p + ε(1 − p); at p = 1 that is Mitchell's 1 − ε.
    """
    return dpo_sigmoid(h, beta, (1 - noise) * p + noise * (1 - p))


def dpo_robust(h: Tensor, beta: float, p: Tensor, noise: float) -> Tensor:
    """[(1 − ε) ℓ(h) − ε ℓ(−h)] / (1 − 2ε), (B,), with ℓ = `dpo_sigmoid` (Chowdhury et al. 2024).

    Unbiased under label flips of probability ε < ½: its mean over the noise is the clean loss.
    """
    kept, flipped = dpo_sigmoid(h, beta, p), dpo_sigmoid(-h, beta, p)
    return ((1 - noise) * kept - noise * flipped) / (1 - 2 * noise)


def ipo(h: Tensor, beta: float, p: Tensor) -> Tensor:
    """(h − (2p − 1)/(2β))², (B,) (Azar et al. 2023, eq. 17, at p = 1).

    The soft form is the mean p(h − 1/(2β))² + (1 − p)(h + 1/(2β))², less a constant in h. Give it
    log-ratios divided by their tokens (see `dpo_loss`), as the authors and TRL do.
    """
    return (h - (2 * p - 1) / (2 * beta)) ** 2


def dpo_loss(
    name: DPOLoss, h: Tensor, h_token: Tensor, *, beta: float, p: Tensor, noise: float = 0.0
) -> Tensor:
    """The named loss of each pair, (B,).

    `h` is the difference of summed log-ratios, `h_token` that of log-ratios divided by their
    completion's tokens, which `ipo` and `sigmoid_norm` (length-normalised DPO, Meng et al. 2024)
    take. `noise` is the ε of `cdpo` and `robust`.
    """
    match name:
        case "sigmoid":
            return dpo_sigmoid(h, beta, p)
        case "cdpo":
            return dpo_conservative(h, beta, p, noise)
        case "robust":
            return dpo_robust(h, beta, p, noise)
        case "ipo":
            return ipo(h_token, beta, p)
        case "sigmoid_norm":
            return dpo_sigmoid(h_token, beta, p)
    raise ConfigError(f"unknown DPO loss '{name}'.{nearest(name, DPO_LOSSES)}")


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log P of each token, (B, T), from logits (B, T, V) that predict it; computed in float32.

    P is the softmax of logits over the temperature.
    """
    found: Tensor = _TokenLogprobs.apply(logits.float(), tokens, temperature)  # type: ignore[no-untyped-call]
    return found


class _TokenLogprobs(torch.autograd.Function):
    """Its gradient, g·(onehot − softmax)/temperature, is written into one table of logits' size.

    Autograd's own would write three, of the vocabulary's size at every token.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        scaled = logits if temperature == 1 else logits / temperature
        total = scaled.logsumexp(-1)
        ctx.save_for_backward(scaled, tokens, total)
        ctx.temperature = temperature
        return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scaled, tokens, total = ctx.saved_tensors
        g = gradients[0].unsqueeze(-1) / ctx.temperature
        table = (scaled - total.unsqueeze(-1)).exp_().mul_(-g)
        return table.scatter_add_(-1, tokens.unsqueeze(-1), g), None, None


def soft_cross_entropy(logprobs: Tensor, target: Tensor) -> Tensor:
    """−Σ_k target_k log P_k, (N,), from log P and target (N, K); 0 log P is 0.

    Where P need not sum to 1 over the K, as the options of a judge do not over all that it could
    say, the least of it, the target's entropy, is reached at P = target alone.
    """
    return -torch.where(target > 0, target * logprobs, 0.0).sum(-1)


def exclusive_logprobs(logprobs: Tensor, begins: Tensor) -> Tensor:
    """Log-probabilities (N, K) of options as events that exclude one another.

    `begins` (K, K) says which option's tokens begin which other's: P(going on with "1") counts "10"
    too, which is taken out, as `engines.tokens.exclusive` does.
    """
    out = list(logprobs.unbind(-1))
    inside = begins.tolist()
    for i in sorted(range(len(out)), key=lambda i: sum(inside[i])):  # longest first
        longer = [out[j] for j, begun in enumerate(inside[i]) if begun]
        if longer:
            rest = 1 - (torch.stack(longer) - logprobs[..., i]).exp().sum(0)
            out[i] = logprobs[..., i] + rest.clamp_min(1e-7).log()
    return torch.stack(out, -1)
