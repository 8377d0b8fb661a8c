"""NLPO's masked sampling (Ramamurthy et al. 2022, §4): PPO that chooses among likely tokens only.

A masking policy, a copy of the policy that is renewed every few steps, allows in each state the
tokens of its nucleus. The policy samples from itself restricted to them, and its ratios and its
entropy are of that restricted distribution; the penalty against the reference is of the policy as
it is, as in RL4LMs.

What was allowed when an episode was sampled is kept with it, a bit a token of the vocabulary, so
that rollout and training agree on it whatever the rounding of their passes.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Bits = NDArray[np.uint8]


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens (.., V) whose probability reaches `top_p`, the last one included."""
    p, order = torch.softmax(logits.double(), -1).sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, p.cumsum(-1) - p < top_p)


class Masker:
    """The masking policy: a frozen copy of the policy as it was at the last renewal."""

    def __init__(self, policy: nn.Module, top_p: float, temperature: float) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False).eval()
        self.top_p, self.temperature = top_p, temperature

    @torch.no_grad()
    def renew(self, policy: nn.Module) -> None:
        """Takes over the policy's weights."""
        own = self.model.state_dict()
        for name, value in policy.state_dict().items():
            own[name].copy_(value)

    def weights(self, learnt: set[str]) -> dict[str, Tensor]:
        """Its weights that are among those `learnt` (`policy.` before the name)."""
        return {k: v for k, v in self.model.state_dict().items() if f"policy.{k}" in learnt}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Puts back what `weights` gave."""
        own = self.model.state_dict()
        for name, value in weights.items():
            own[name].copy_(value)


class MaskedPolicy:
    """The policy as a decoder sees it: what the masking policy does not allow has logit −∞.

    Both run beside each other, each with its own cache. `masks` holds, by row of the decoder's
    batch, what was allowed at each of its steps.
    """

    def __init__(self, policy: Any, masker: Masker) -> None:
        self._policy, self._masker = policy, masker
        self.device = policy.device
        self.masks: list[list[Bits]] = []

    def __call__(self, **inputs: Any) -> Any:
        pair = inputs.pop("past_key_values", None)
        caches = (None, None) if pair is None else pair.caches
        out = self._policy(past_key_values=caches[0], **inputs)
        other = self._masker.model(past_key_values=caches[1], **inputs)
        last = other.logits[:, -1:].float() / self._masker.temperature
        allowed = nucleus(last, self._masker.top_p)
        bits = np.packbits(allowed[:, -1].cpu().numpy(), axis=-1, bitorder="little")
        if pair is None:
            pair = _Caches([], self.masks, list(bits))
        else:
            for row, mask in zip(pair.rows, bits, strict=True):
                self.masks[row].append(mask)
        pair.caches = (out.past_key_values, other.past_key_values)
        logits = out.logits[:, -1:].masked_fill(~allowed, -torch.inf)
        return SimpleNamespace(logits=logits, past_key_values=pair)


class _Caches:
    """Two caches that are repeated and selected from as one, and the rows that are still there."""

    def __init__(self, caches: Any, masks: list[list[Bits]], first: list[Bits]) -> None:
        self.caches, self._masks = caches, masks
        self._start(first)

    def _start(self, first: list[Bits]) -> None:
        self.rows = list(range(len(first)))
        self._masks[:] = [[mask] for mask in first]

    def reorder_cache(self, index: Tensor) -> None:
        """Repeats rows before the first step, or leaves some out after it."""
        for cache in self.caches:
            cache.reorder_cache(index)
        if len(index) > len(self.rows):
            self._start([self._masks[i][0] for i in index.tolist()])
        else:
            self.rows = [self.rows[i] for i in index.tolist()]


def table_of(masks: list[Bits], states: int, device: Any) -> Tensor:
    """Masks (L, V/8) of each of B episodes as one table (B·states, V/8) of bits.

    Where no token is chosen everything is allowed.
    """
    table = np.full((len(masks), states, masks[0].shape[-1]), 255, np.uint8)
    for row, mask in zip(table, masks, strict=True):
        row[: len(mask)] = mask
    return torch.from_numpy(table.reshape(-1, table.shape[-1])).to(device)


def restrict(logits: Tensor, bits: Tensor) -> Tensor:
    """Logits (N, V), −∞ where the bits (N, V/8) do not allow a token."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    allowed = ((bits[:, :, None] >> places) & 1).view(len(bits), -1)[:, : logits.shape[-1]].bool()
    return logits.masked_fill(~allowed, -torch.inf)
