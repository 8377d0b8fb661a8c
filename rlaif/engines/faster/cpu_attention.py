"""Attention on a CPU, with the log-sum-exp of its scores.

Large pieces in float32 are written out as matrix products by oneDNN, some queries at a time so that
their scores stay in the cache. PyTorch's own kernel for CPUs takes the products of the library that
it was built with, which reaches half of oneDNN's rate on processors that MKL is not made for; small
pieces and other precisions are left to it.
"""

from __future__ import annotations

import itertools

import torch

from rlaif.engines.faster.prepacked import is_readable, product

_ROWS = 256  # of scores that are held at a time, in a piece whose keys some heads share
_TINY = torch.finfo(torch.float32).tiny
_WORTH = 1 << 24  # multiply-adds of a head from which on its products are made apart


def is_worth(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether a piece is so large that products made apart are faster than the kernel."""
    worth = q.shape[1] // k.shape[1] * q.shape[2] * k.shape[2] * q.shape[3] >= _WORTH
    return worth and q.dtype == torch.float32 and is_readable(k)


def by_products(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float,
    softcap: float | None,
    seen: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A piece of attention as `attention` means it, in float32, by oneDNN's products."""
    (size, heads, n), shared = q.shape[:3], k.shape[1]
    groups = heads // shared
    out, lse = q.new_zeros(size, heads, n, v.shape[3]), q.new_full((size, heads, n), -torch.inf)
    step = max(1, _ROWS // groups)
    for b, start in itertools.product(range(size), range(0, n, step)):
        end = min(n, start + step)
        low, high, hidden = _keys(causal, seen, b, start, end, k.shape[2])
        if low == high:
            continue
        for h in range(shared):
            # The query heads that share a key head, as the rows of one product.
            mine = slice(h * groups, h * groups + groups)
            rows = (q[b, mine, start:end] * scale).reshape(-1, q.shape[3])
            scores = product(rows, k[b, h, low:high])
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            if hidden is not None:
                by_head = scores.view(groups, end - start, -1)
                by_head[..., -hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
            top = scores.amax(-1, keepdim=True)
            if seen is not None:  # a query without a key: 0 and −∞, not 0/0 and −∞ − −∞
                top.masked_fill_(top == -torch.inf, 0.0)
            total = scores.sub_(top).exp_().sum(-1, keepdim=True)
            found = product(scores, v[b, h, low:high].t())
            found.div_(total if seen is None else total.clamp_min(_TINY))
            out[b, mine, start:end] = found.view(groups, end - start, -1)
            lse[b, mine, start:end] = total.log_().add_(top).view(groups, end - start)
    return out, lse


def _keys(
    causal: bool, seen: torch.Tensor | None, b: int, start: int, end: int, keys: int
) -> tuple[int, int, torch.Tensor | None]:
    """Which keys the queries start…end may see, and which of the last of them each does not."""
    if causal:
        n = end - start
        return 0, end, torch.ones(n, n, dtype=torch.bool).triu(1)
    if seen is None:
        return 0, keys, None
    mine = (seen if seen.dim() == 2 else seen[b, 0])[start:end]
    some = mine.any(0).nonzero()
    if not len(some):
        return 0, 0, None
    low, high = int(some[0]), int(some[-1]) + 1
    hidden = ~mine[:, low:high]
    return low, high, hidden if hidden.any() else None


def by_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float,
    seen: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch's kernel for CPUs, which knows no soft-cap."""
    shape, width = q.shape, v.shape[-1]
    q, k, v = as_wide(q, k, v)
    groups = shape[1] // k.shape[1]
    folded = len(q) == 1 and groups > 1 and not causal
    if folded:
        # The query heads of one key head as one long head: larger products, keys read once.
        q = q.reshape(k.shape[1], 1, -1, q.shape[3])
        k, v = k.transpose(0, 1), v.transpose(0, 1)
    mask = None
    if seen is not None:
        sees = seen.reshape(seen.shape[-2:]).repeat(groups, 1) if folded else seen
        mask = torch.zeros(sees.shape, dtype=q.dtype).masked_fill_(~sees, -torch.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    out, lse = out.float().reshape(*shape[:3], -1)[..., :width], lse.reshape(shape[:3])
    if seen is not None:  # what the kernel makes of a query without a key is no number
        none = ~seen.any(-1)  # (…, n)
        lse = lse.masked_fill(none, -torch.inf)
        out = out.masked_fill(none[..., None], 0.0)
    return out, lse


def as_wide(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three with heads of one size, a multiple of `of`: zeros behind change no score."""
    width = -(-max(q.shape[-1], v.shape[-1]) // of) * of
    q, k, v = (
        x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))
        for x in (q, k, v)
    )
    return q, k, v
