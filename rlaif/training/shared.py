"""The completions of a prompt in one row behind it, so that the prompt is computed once.

A row holds prompt, first completion, second completion and so on. Positions count on from the
prompt in each, and no completion sees another, so every log-probability, and every reward, is that
of a row of its own. The mask is dense: attention computes what it then throws away, which costs
less than the prompt a second time.

Simplified away: models whose layers do not take a mask a pair of tokens (recurrent ones, sliding
windows, other attention than SDPA). `why_not` finds them, and training takes rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlaif.engines.head import logits_at
from rlaif.engines.packed import obstacle
from rlaif.engines.tokens import Ids
from rlaif.training.data import Row, pad
from rlaif.training.forward import completion_batch, completion_logprobs, to_device
from rlaif.training.losses import token_logprobs
from rlaif.training.models import Loaded

Both = tuple[Tensor, Tensor]  # the same numbers from rows of their own, and from shared ones


def shared_batch(
    prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], filler: int
) -> dict[str, Tensor]:
    """Right-padded rows (B, T) of prompts, each with K completions.

    `branches` says what a token belongs to: 0 the prompt, k the k-th completion, −1 padding.
    """
    B = len(prompts)
    T = max(len(p) + sum(map(len, c)) for p, c in zip(prompts, completions, strict=True))
    ids, positions = np.full((B, T), filler, np.int64), np.zeros((B, T), np.int64)
    branches = np.full((B, T), -1, np.int64)
    for b, (prompt, several) in enumerate(zip(prompts, completions, strict=True)):
        end = 0
        for k, part in enumerate([prompt, *several]):
            here = slice(end, end + len(part))
            ids[b, here], branches[b, here] = part, k
            positions[b, here] = np.arange(len(part)) + (len(prompt) if k else 0)
            end += len(part)
    names = ("input_ids", "position_ids", "branches")
    return {n: torch.from_numpy(x) for n, x in zip(names, (ids, positions, branches), strict=True)}


def tree_mask(branches: Tensor) -> Tensor:
    """Which tokens see which, (B, 1, T, T): what stands before, in the prompt or the same branch.

    Padding sees padding, as a row of a softmax must not be empty.
    """
    T = branches.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=branches.device).tril()
    one, other = branches[:, :, None], branches[:, None, :]
    return (causal & ((one == other) | (other == 0)))[:, None]


def branch_logprobs(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion, (B, K), and its tokens, (B, K).

    The first token of every completion is predicted at the prompt's end, the others each by the
    one before it.
    """
    ids, branches = batch["input_ids"], batch["branches"]
    following = torch.nn.functional.pad(branches[:, 1:], (0, 1), value=-1)
    inside = (branches > 0) & (branches == following)  # (B, T) predicts the next of its branch
    ends = (branches == 0) & (following != 0)  # the prompt's end, which predicts each first one
    wanted = (inside | ends).flatten().nonzero()[:, 0]  # (N,)
    logits, _ = logits_at(  # (N, V)
        model,
        wanted,
        input_ids=ids,
        attention_mask=tree_mask(branches),
        position_ids=batch["position_ids"],
    )
    opens = ends.flatten()[wanted]  # (N,) B of them, row after row
    starting = logits[opens]
    later = torch.roll(ids, -1, 1)[inside]
    each = token_logprobs(logits[~opens], later)
    each = each.new_zeros(inside.shape).masked_scatter(inside, each)
    rows = torch.arange(len(ids), device=ids.device)
    sums, counts = [], []
    for k in range(1, int(branches.max()) + 1):
        mine = branches == k
        opening = token_logprobs(starting, ids[rows, mine.int().argmax(1)])
        sums.append(opening + (each * mine).sum(1))
        counts.append(mine.sum(1))
    return torch.stack(sums, 1), torch.stack(counts, 1)


def branch_ends(branches: Tensor) -> Tensor:
    """Where completions end, (N,) places in the flat (B·T), row after row, in their order."""
    following = torch.nn.functional.pad(branches[:, 1:], (0, 1), value=-1)
    return ((branches > 0) & (branches != following)).flatten().nonzero()[:, 0]


def branch_rewards(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The raw reward of each completion, (N,), row after row; of a model by `load_reward`."""
    branches = batch["branches"]
    scores: Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=tree_mask(branches),
        position_ids=batch["position_ids"],
        where=branch_ends(branches),
    ).logits
    return scores[:, 0].float()


def why_not(loaded: Loaded, rows: Sequence[Row]) -> str:
    """Why this policy cannot compute its completions in one row; "" if it can.

    Tried on some rows: what a config does not tell shows in the numbers.
    """
    return _obstacle(loaded, rows, _logprobs_both_ways, "log-probabilities")


def why_not_rewards(loaded: Loaded, rows: Sequence[Row]) -> str:
    """The same of a reward model."""
    if "score" not in loaded.model._modules:
        return "it is an encoder, whose tokens see what comes after them"
    return _obstacle(loaded, rows, _rewards_both_ways, "rewards")


@torch.no_grad()
def _obstacle(
    loaded: Loaded, rows: Sequence[Row], both_ways: Callable[[Loaded, Sequence[Row]], Both], of: str
) -> str:
    config = loaded.model.config
    reason, longest = obstacle(config)
    if reason:
        return reason
    if max(row.length for row in rows) > longest:
        return f"its layers look back {longest} tokens only"
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation}, not sdpa"
    some = sorted(rows, key=lambda row: row.length)[:: max(1, len(rows) // 3)][:3]
    training = loaded.model.training
    loaded.model.eval()
    try:
        wanted, found = both_ways(loaded, some)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"its code cannot do it ({error})"
    finally:
        loaded.model.train(training)
    apart = float(((found - wanted) / wanted.abs().clamp_min(1)).abs().max())
    exact = loaded.model.dtype == torch.float32 and not loaded.four_bit
    limit = 2e-5 if exact else 0.02
    return "" if apart <= limit else f"its {of} come out {apart:.1g} apart, relatively"


def _logprobs_both_ways(loaded: Loaded, some: Sequence[Row]) -> Both:
    prompts = [row.prompt for row in some]
    both = [row.chosen for row in some] + [row.rejected for row in some]
    plain = to_device(completion_batch(prompts * 2, both, loaded.filler), loaded.model.device)
    shared = to_device(_pairs(some, loaded.filler), loaded.model.device)
    wanted = completion_logprobs(loaded.model, plain)[0].sum(1)
    return wanted, branch_logprobs(loaded.model, shared)[0].T.reshape(-1)


def _rewards_both_ways(loaded: Loaded, some: Sequence[Row]) -> Both:
    each = [np.concatenate([row.prompt, c]) for row in some for c in (row.chosen, row.rejected)]
    ids, mask = (x.to(loaded.model.device) for x in pad(each, loaded.filler))
    shared = to_device(_pairs(some, loaded.filler), loaded.model.device)
    wanted = loaded.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    return wanted, branch_rewards(loaded.model, shared)


def _pairs(some: Sequence[Row], filler: int) -> dict[str, Tensor]:
    return shared_batch(
        [row.prompt for row in some], [(row.chosen, row.rejected) for row in some], filler
    )
