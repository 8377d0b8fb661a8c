"""Sampling from a Transformers model, so that no text depends on the batch it was sampled in,
but for what rounding does to a probability.

Every sequence has a random stream of its own, keyed by the seed, the prompt's ids and the number of
the sample; step t uses its t-th uniform number by inverse CDF. Batches are left-padded, the prompt
is computed once for its n samples, and rows that have ended leave the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlaif.engines.base import Sampling, tell
from rlaif.engines.tokens import Ids
from rlaif.errors import EngineError

_BLOCK = 256  # tokens whose probabilities are added up before those of the blocks


@dataclass(slots=True)
class Row:
    """One sequence on its way. `uniforms`: one number in [0, 1) for each token it may have.

    `finish_reason` becomes "stop", "length", or "not_finite" where the model gave no probabilities.
    """

    prompt: int
    sample: int
    uniforms: np.ndarray[Any, np.dtype[np.float64]]
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    logprobs: list[float] = field(default_factory=list)


def uniforms(ids: Ids, sample: int, seed: int, count: int) -> np.ndarray[Any, Any]:
    """The random stream of one sample: Philox keyed by (seed, ids, sample)."""
    digest = hashlib.sha256(f"{seed}:{sample}:".encode() + ids.astype("<i4").tobytes()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def choose(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Next tokens (B,) from logits (B, V) and uniforms (B,); temperature 0 takes the likeliest.

    `top_p` keeps the likeliest tokens until their probability reaches it, the last one included.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if top_p < 1:
        p = torch.softmax(logits.double() / temperature, dim=-1)  # (B, V)
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        return _drawn(torch.zeros_like(p).scatter_(-1, order, ordered), u)
    # The greatest is taken off first: logits over a small temperature are more than float32 holds.
    below = logits - logits.amax(-1, keepdim=True)
    return _drawn(below.div_(temperature).exp_(), u)


def _drawn(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) by inverse CDF of weights (B, V), whatever their sum.

    The first token whose cumulative weight exceeds u of the total: never one of weight 0. Sums are
    of blocks first, and then within one block: a vocabulary of 262,144 is read once, in float32,
    and added up in float64.
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK))
    blocks = blocks.reshape(len(weights), -1, _BLOCK)  # (B, V / _BLOCK, _BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = u.to(sums)[:, None] * sums[:, -1:]  # (B, 1); < the total, as u < 1
    block = torch.searchsorted(sums, target, right=True).clamp_max(sums.shape[-1] - 1)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp_min(0)), 0.0)
    within = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].double().cumsum(-1)
    # The two sums of a block may part in the last digit: its last token with a weight is in reach.
    last = torch.nextafter(within[:, -1:], within.new_zeros(()))
    token = torch.searchsorted(within, torch.minimum(target - before, last), right=True)
    return (block * _BLOCK + token)[:, 0].clamp_max(weights.shape[-1] - 1)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a model's texts end.

    `room` is the context length in tokens, `eos` the tokens that end a text, and `stops(ids)` says
    whether the text so far holds a stop string. `pad` fills what is masked.
    """

    room: int
    pad: int
    eos: frozenset[int]
    stops: Callable[[list[int]], bool]


@torch.no_grad()
def decode_batch(
    model: Any,
    prompts: Sequence[Ids],
    sampling: Sampling,
    ends: Ends,
    *,
    logprobs: bool = False,
    first: Sequence[int] = (),
) -> list[Row]:
    """All samples of a batch of prompts, `sampling.n` rows a prompt, in order.

    `first` numbers the first sample of each prompt, 0 if not given: the others count on from it.
    `logprobs` also keeps each token's log-probability at the temperature, before `top_p`.
    """
    device = model.device
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), ends.pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, ids in enumerate(prompts):
        tokens[i, width - len(ids) :] = torch.from_numpy(ids.astype(np.int64))
        mask[i, width - len(ids) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=position,
        use_cache=True,
        logits_to_keep=1,
    )
    (name, cache), n = _cache_of(out, model), sampling.n
    if n > 1:
        cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(n))
    logits = out.logits[:, -1].float().repeat_interleave(n, 0)  # (B·n, V)
    mask = mask.repeat_interleave(n, 0)
    position = position[:, -1:].repeat_interleave(n, 0)
    limits = [min(sampling.max_new_tokens, ends.room - len(ids)) for ids in prompts]
    rows = [
        Row(i, j, uniforms(ids, (first[i] if first else 0) + j, sampling.seed, limits[i]))
        for i, ids in enumerate(prompts)
        for j in range(n)
    ]
    live = list(rows)
    for step in range(max(limits)):
        u = torch.tensor([row.uniforms[step] for row in live], dtype=torch.float64)
        chosen = choose(logits, u.to(device), sampling.temperature, sampling.top_p)
        if logprobs:
            scaled = logits / (sampling.temperature or 1.0)
            picked = scaled.gather(-1, chosen[:, None])[:, 0] - scaled.logsumexp(-1)
            for row, value in zip(live, picked.tolist(), strict=True):
                row.logprobs.append(value)
        sick = (~logits.amax(-1).isfinite()).tolist()  # NaN or +inf somewhere, or -inf everywhere
        for row, token, lost in zip(live, chosen.tolist(), sick, strict=True):
            if lost:
                row.finish_reason = "not_finite"
                continue
            row.ids.append(token)
            if token in ends.eos or ends.stops(row.ids):
                row.finish_reason = "stop"
            elif len(row.ids) == limits[row.prompt]:
                row.finish_reason = "length"
        keep = [k for k, row in enumerate(live) if not row.finish_reason]
        tell((step + 1) / max(limits))
        if not keep:
            break
        if len(keep) < len(live):
            index = torch.tensor(keep, device=device)
            cache.reorder_cache(index)
            live = [live[k] for k in keep]
            chosen, mask, position = chosen[index], mask[index], position[index]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
        position = position + 1
        more = {name: cache}
        if name == "past_key_values":  # others take one for the new token only
            more["attention_mask"] = mask
        out = model(input_ids=chosen[:, None], position_ids=position, use_cache=True, **more)
        logits = out.logits[:, -1].float()
    return rows


def _cache_of(out: Any, model: Any) -> tuple[str, Any]:
    """A model's cache, and the name by which its code gives and takes it: Mamba's is another.

    It is asked for `reorder_cache` alone, as recurrent layers can neither repeat nor select rows.
    """
    for name in ("past_key_values", "cache_params"):
        if (cache := getattr(out, name, None)) is not None:
            return name, cache
    raise EngineError(
        f"{type(model).__name__} gives no cache from which sampling could go on. "
        "Sample with an engine that knows it (engine: vllm or http)"
    )
