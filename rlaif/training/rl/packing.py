"""Sequences of one forward pass behind one another in a single row, so that no padding is computed.

Everything but attention treats tokens alike, and positions are given. Attention is that of
Transformers, called for each sequence by itself: nothing masked is computed but in sequences longer
than a sliding window. The model's attention is changed for good, as gradient checkpointing calls it
again when the pass is over; it does what it did before wherever no `packed_lengths` are given.

Simplified away: models that look at their neighbours otherwise than by attention through
Transformers' attention interface (recurrent ones).
`learn_packing` finds them, and their sequences are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlaif.engines.packed import REFUSALS, obstacle
from rlaif.engines.tokens import Ids
from rlaif.engines.trial import narrowed

_NAME = "rlaif_packed"
_TRIAL = (7, 1, 4, 6)  # lengths
_TRIAL_WINDOW = 3


def packed(sequences: Sequence[Ids], device: Any) -> dict[str, Any]:
    """What a model that has learnt packing is called with: sequences in one row (1, N)."""
    lengths = [len(ids) for ids in sequences]
    ids = np.concatenate(sequences).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in lengths])
    return {
        "input_ids": torch.from_numpy(ids)[None].to(device),
        "position_ids": torch.from_numpy(positions)[None].to(device),
        # Four dimensions say that the mask is made, so Transformers makes none (1, 1, N, N).
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "packed_lengths": lengths,
    }


def learn_packing(model: Any) -> tuple[int, str]:
    """Makes a model take `packed` sequences: the longest that it can, or 0 and why not.

    Tried on some tokens: what a config does not tell shows in the numbers. Sliding windows are
    narrowed for that; where they go wrong, only sequences within them are packed.
    """
    reason, longest = obstacle(model.config, windows=True)
    before = model.config._attn_implementation
    if not reason and before != "sdpa":
        reason = f"its attention is {before}, not sdpa"
    if reason:
        return 0, reason
    model.set_attn_implementation(_NAME)
    with narrowed(model, _TRIAL_WINDOW):
        reason = _difference(model)
    if reason:
        refused, within = obstacle(model.config)
        if within < longest:
            longest, reason = within, refused or _difference(model)
    if reason:
        model.set_attn_implementation(before)
        return 0, reason
    return longest, ""


@torch.no_grad()
def _difference(model: Any) -> str:
    draw = np.random.default_rng(0)
    size = model.get_input_embeddings().weight.shape[0]
    some = [draw.integers(0, size, n).astype(np.int32) for n in _TRIAL]
    trunk, device, training = model.base_model, model.device, model.training
    model.eval()
    try:
        alone = [
            trunk(input_ids=torch.from_numpy(s)[None].long().to(device), use_cache=False)
            for s in some
        ]
        row = trunk(**packed(some, device), use_cache=False).last_hidden_state[0]
    except REFUSALS as error:
        return f"its code cannot do it ({error})"
    finally:
        model.train(training)
    wanted = torch.cat([out.last_hidden_state[0] for out in alone])
    apart = float((row - wanted).abs().max() / wanted.abs().max())
    limit = 1e-4 if row.dtype == torch.float32 else 0.05
    return "" if apart <= limit else f"its hidden states come out {apart:.1g} apart, relatively"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Queries (B, H, T, D), keys and values (B, Hkv, T, D) → (B, T, H, D)."""
    if packed_lengths is None:
        out: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return out, None
    each = zip(*(torch.split(x, packed_lengths, 2) for x in (query, key, value)), strict=True)
    window = kwargs.get("sliding_window")
    found = [
        sdpa_attention_forward(module, *qkv, _band(n, window, query.device), **kwargs)[0]
        for n, qkv in zip(packed_lengths, each, strict=True)
    ]
    return torch.cat(found, 1), None


def _band(length: int, window: int | None, device: Any) -> Tensor | None:
    """Which tokens of a sequence see which (n, n), where it is longer than the window."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    behind = at[:, None] - at
    return (behind >= 0) & (behind < window)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
