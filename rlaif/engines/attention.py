"""The attention of one pack of a token trie, for any model that calls its attention through the
attention interface of Transformers (or whose own is known to `own_attention`).

It is done in the dense pieces of an `attention_plan`: queries against the keys of the path, which
earlier passes left; against each long run above them; and against the short rest of their way. The
pieces' softmaxes are merged by their log-sum-exp, so the sum is the tree's attention, and nothing
masked is computed but at the edges of sliding windows and chunks. An attention sink is one more
piece: a score without a value.

What a model asks for beyond that is refused by name, never left out: a mask of its own, two-way
attention, arguments that are not known here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface

from rlaif.engines.faster import apply, cpu_attention
from rlaif.engines.faster.cpu_attention import as_wide
from rlaif.engines.own_attention import attending
from rlaif.engines.trie import Ints, Plan, Rows

_MASKED = 2**24  # scores that are held at a time where no kernel does without
_BLOCK = 256  # queries of a long run whose window is masked at a time
_NAME = "rlaif_tree"
_now = threading.local()  # the pass that is running in this thread: models carry no room for it
# Arguments that models hand on to their attention and that change nothing here: positions are in
# the queries and keys already, and dropout is that of training.
_NEUTRAL = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
# How far back a layer looks: ("window", 512): less than 512 positions, its own included; ("chunk",
# 8192): as far as the last multiple of 8192.
Reach = tuple[str, int]


class KeptPath:
    """Keys and values of the way to one token, layer by layer: row d belongs to depth d.

    It lasts between packs; its first rows, those of `tokens`, also between calls.
    """

    def __init__(self) -> None:
        self.tokens: Ints = np.zeros(0, np.int32)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def read(self, layer: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `depth` tokens: (1, Hkv, depth, D) each."""
        keys, values = self._layers[layer]
        return keys[:, :, :depth], values[:, :, :depth]

    def write(self, layer: int, depth: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Puts keys and values (1, Hkv, n, D) at `depth`…`depth + n`, making room as needed."""
        new = (keys, values)
        end = depth + keys.shape[2]
        old = self._layers.get(layer)
        if old is None or old[0].shape[2] < end:
            room = -(-end // 512) * 512
            grown = tuple(x.new_empty(*x.shape[:2], room, x.shape[3]) for x in new)
            for to, source in zip(grown, old or (), strict=False):
                to[:, :, : source.shape[2]] = source
            self._layers[layer] = old = (grown[0], grown[1])
        for to, source in zip(old, new, strict=True):
            to[:, :, depth:end] = source


class _Piece(NamedTuple):
    """Queries a…b against keys lo…hi of the pass (or of the path before it).

    `causal`: hi − lo = b − a, and each sees those up to its own; `seen`: (b − a, hi − lo) which
    keys a query sees, None for all.
    """

    a: int
    b: int
    of_path: bool
    lo: int
    hi: int
    causal: bool
    seen: torch.Tensor | None


class _RowPiece(NamedTuple):
    """Short ways (B, L) of a plan. `seen`: (B, 1, L, L), None where they are plainly causal."""

    gather: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    seen: torch.Tensor | None


class Pass:
    """The attention of one forward pass."""

    def __init__(self, plan: Plan, kept: KeptPath, depths: Ints, device: torch.device) -> None:
        self.plan, self.kept, self.device = plan, kept, device
        self._depths = np.asarray(depths, np.int64)
        self.depths = torch.from_numpy(self._depths).to(device)  # (N,)
        self.deepest = int(depths.max(initial=0))
        self.softcaps = True
        self._cut: dict[Reach | None, tuple[list[_Piece], list[_RowPiece]]] = {}
        self._calls = 0
        self._pending: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []

    def commit(self) -> None:
        """Keeps what the pass found. Not before its end: a pass out of memory is run again."""
        for layer, depth, keys, values in self._pending:
            self.kept.write(layer, depth, keys, values)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None = None,
        reach: Reach | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Queries (1, H, N, D), keys (1, Hkv, N, D) and values (1, Hkv, N, E) → (1, N, H, E).

        `sinks`: (H,) scores that are part of every query's softmax and have no value.
        """
        layer, self._calls = self._calls, self._calls + 1  # some models attend twice in a layer
        softcap = softcap if self.softcaps else None
        total = _Merged(q.shape[2])
        self._add(total, layer, q, k, v, scale, softcap, reach)
        if sinks is not None:
            total.add_sinks(sinks)
        for a, b, depth in self.plan.keep:
            self._pending.append((layer, depth, k[:, :, a:b].clone(), v[:, :, a:b].clone()))
        return total.out.to(q.dtype).contiguous()[None]  # some models view it

    def _add(
        self,
        total: _Merged,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None,
        reach: Reach | None,
    ) -> None:
        """Adds the attention over all keys, of the path and of the pack, to `total`."""
        pieces, rows = self._pieces(reach)
        for a, b, of_path, lo, hi, causal, seen in pieces:
            keys, values = self.kept.read(layer, hi) if of_path else (k, v)
            part = q[:, :, a:b], keys[:, :, lo:hi], values[:, :, lo:hi]
            total.add(a, b, *_dense(*part, causal, scale, softcap, seen))
        for gather, source, target, seen in rows:
            rq, rk, rv = (x[0].transpose(0, 1)[gather].transpose(1, 2) for x in (q, k, v))
            out, lse = _dense(rq, rk, rv, seen is None, scale, softcap, seen)  # (B, H, L, ·)
            out = out.transpose(1, 2).flatten(0, 1)[source]
            lse = lse.transpose(1, 2).flatten(0, 1)[source]
            total.add_at(target, out, lse)

    def _pieces(self, reach: Reach | None) -> tuple[list[_Piece], list[_RowPiece]]:
        """The plan cut down to what a layer of this reach sees: made once a pass."""
        if reach not in self._cut:
            first = self._first(reach)
            self._cut[reach] = (
                [p for piece in self._whole() for p in self._within(piece, first)],
                [self._row(rows, first) for rows in self.plan.rows],
            )
        return self._cut[reach]

    def _first(self, reach: Reach | None) -> Ints | None:
        """The lowest depth that each token sees (N,); None if all see all that is above them."""
        if reach is None:
            return None
        kind, size = reach
        d = self._depths
        first: Ints = d - d % size if kind == "chunk" else d - size + 1
        return first if (first > 0).any() else None

    def _whole(self) -> Iterator[_Piece]:
        for a, b, depth in self.plan.path:
            yield _Piece(a, b, True, 0, depth, False, None)
        for a, b, stop in self.plan.trunks:
            yield _Piece(a, b, False, a, b, True, None)
            if stop > b:
                yield _Piece(b, stop, False, a, b, False, None)

    def _within(self, piece: _Piece, first: Ints | None) -> Iterator[_Piece]:
        """A piece without the keys that none of its queries sees, and the queries that see none."""
        a, b, of_path, lo, hi, causal, _ = piece
        # Keys stand at consecutive depths, and so their numbers are as far from these everywhere.
        ahead = 0 if of_path else int(self._depths[lo]) - lo
        if first is None or (first[a:b] <= lo + ahead).all():
            yield piece
            return
        for start in range(a, b, _BLOCK) if causal else (a,):
            end = min(b, start + _BLOCK) if causal else b
            last = end if causal else hi
            some = np.flatnonzero(first[start:end] < last + ahead)
            if not len(some):
                continue
            start, end = start + int(some[0]), start + int(some[-1]) + 1
            low = max(lo, int(first[start:end].min()) - ahead)
            at = np.arange(low, last)
            seen = at + ahead >= first[start:end, None]
            if causal:
                seen &= at <= np.arange(start, end)[:, None]
            yield _Piece(start, end, of_path, low, last, False, self._mask(seen))

    def _row(self, rows: Rows, first: Ints | None) -> _RowPiece:
        gather, source, target = (
            torch.from_numpy(x).to(self.device) for x in (rows.gather, rows.source, rows.target)
        )
        if first is None:
            return _RowPiece(gather, source, target, None)
        starts = self._depths[rows.gather[:, :1]]  # (B, 1)
        at = np.arange(rows.gather.shape[1])
        hidden = starts[..., None] + at < first[rows.gather][..., None]  # (B, L, L)
        hidden[(rows.gather == 0) & (at > 0)] = False  # padding: only the first may be token 0
        if not hidden.any():
            return _RowPiece(gather, source, target, None)
        return _RowPiece(
            gather, source, target, self._mask(((at <= at[:, None]) & ~hidden)[:, None])
        )

    def _mask(self, seen: npt.NDArray[np.bool_]) -> torch.Tensor | None:
        return None if seen.all() else torch.from_numpy(seen).to(self.device)


class _Merged:
    """Attention over a union of key sets, from that over each: out (N, H, D), lse (N, H).

    Over disjoint sets, softmax(all)·v is the mean of the parts' outputs weighted by exp(lse).
    """

    out: torch.Tensor
    lse: torch.Tensor

    def __init__(self, size: int) -> None:
        self._size = size
        self._empty = True

    def add(self, a: int, b: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Adds a part for the queries a…b: out (1, H, b−a, D), lse (1, H, b−a), both float32."""
        out, lse = out[0].transpose(0, 1), lse[0].transpose(0, 1)
        if self._empty and (a, b) == (0, self._size):
            self.out, self.lse, self._empty = out, lse, False
            return
        self._start(out, lse)
        self.out[a:b].lerp_(out, _weight(lse, self.lse[a:b]))
        torch.logaddexp(self.lse[a:b], lse, out=self.lse[a:b])

    def add_at(self, index: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Adds a part for the queries `index` (n,): out (n, H, D), lse (n, H)."""
        self._start(out, lse)
        before = self.lse[index]
        self.out[index] = torch.lerp(self.out[index], out, _weight(lse, before))
        self.lse[index] = torch.logaddexp(before, lse)

    def add_sinks(self, sinks: torch.Tensor) -> None:
        """Adds (H,) scores without a value to every query's softmax."""
        lse = sinks.float().expand_as(self.lse)
        self.out = self.out * (1 - _weight(lse, self.lse))
        self.lse = torch.logaddexp(self.lse, lse)

    def _start(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        if self._empty:
            self.out = out.new_zeros(self._size, *out.shape[1:])
            self.lse = lse.new_full((self._size, lse.shape[1]), -torch.inf)
            self._empty = False


def _weight(lse: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """That of a part (n, H, 1) against what was there; 0 where neither saw a key."""
    return torch.sigmoid(lse - before).nan_to_num(0.0)[..., None]


def _dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float,
    softcap: float | None,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log-sum-exp of its scores, in float32.

    q (B, H, n, D), k (B, Hkv, m, D) and v (B, Hkv, m, E) → (B, H, n, E), (B, H, n). `causal` needs
    n = m. `seen` (n, m) or (B, 1, n, m): which keys a query sees; one that sees none gets −∞.
    """
    if q.device.type == "cpu":
        if apply.attends_by_products(q, k):
            return cpu_attention.by_products(q, k, v, causal, scale, softcap, seen)
        if softcap is None:
            return cpu_attention.by_kernel(q, k, v, causal, scale, seen)
    fits = q.is_cuda and q.dtype != torch.float32 and max(q.shape[-1], v.shape[-1]) <= 256
    if softcap is None and seen is None and fits:
        wide = as_wide(q, _per_head(k, q), _per_head(v, q), 8)
        found = torch.ops.aten._scaled_dot_product_flash_attention(*wide, 0.0, causal, scale=scale)
        return found[0][..., : v.shape[-1]].float(), found[1]
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return _explicit(q, k, v, scale, softcap, seen)


def _explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    seen: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same written out, some queries at a time."""
    k, v = _per_head(k, q).float(), _per_head(v, q).float()
    rows = max(1, _MASKED // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    outs, sums = [], []
    for start in range(0, q.shape[2], rows):
        scores = q[:, :, start : start + rows].float() @ k.transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if seen is not None:
            scores = scores.masked_fill(~seen[..., start : start + rows, :], -torch.inf)
        lse = scores.logsumexp(-1)
        outs.append(torch.exp(scores - lse[..., None]).nan_to_num(0.0) @ v)
        sums.append(lse)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def _per_head(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Keys or values (B, Hkv, m, D) repeated for the query heads that share them."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1) if x.shape[1] != q.shape[1] else x


def _interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that models call: their layer's share of the pass that is running."""
    unknown = sorted(k for k, x in kwargs.items() if x is not None and k not in _NEUTRAL)
    if attention_mask is not None:
        unknown.append("a mask of the model's own")
    if not getattr(module, "is_causal", True):
        unknown.append("two-way attention")
    if unknown:
        raise NotImplementedError(f"packed attention does not know {', '.join(unknown)}")
    run: Pass = _now.run
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = _tempered(module, query, run.depths)
    return run.attend(query, key, value, scale, softcap, _reach(module, kwargs), s_aux), None


def _reach(module: Any, told: dict[str, Any]) -> Reach | None:
    """How far back a layer looks. Some models tell their attention; the masks of others, of which
    none is made here, follow from the config alone."""
    config: Any = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    layer = getattr(module, "layer_idx", None)  # None where several layers share one attention
    kind = kinds[layer] if kinds and layer is not None else None
    if kind == "chunked_attention":
        return "chunk", int(config.attention_chunk_size)
    window = getattr(config, "sliding_window", None)
    if "sliding_window" in told:
        window = told["sliding_window"]
    elif kinds and kind != "sliding_attention":
        window = None
    return None if window is None else ("window", int(window))


def _tempered(module: Any, query: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """Llama 4 scales the queries of layers without rotary positions by where they stand in their
    row, whatever positions it is given: undone, and done by where they stand on their path."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return query

    def scales(at: torch.Tensor) -> torch.Tensor:
        steps = torch.floor((at.float() + 1.0) / float(module.floor_scale))
        return torch.log1p(steps) * float(module.attn_scale) + 1.0

    row = torch.arange(query.shape[2], device=query.device)
    right = (scales(depths) / scales(row))[:, None]
    return (query * right).to(query.dtype)


AttentionInterface.register(_NAME, _interface)


@contextlib.contextmanager
def tree_attention(model: Any, run: Pass) -> Iterator[None]:
    """Sends the model's attention to `run` while inside."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {k: c._attn_implementation for k, c in configs.items()}
    run.softcaps = "sdpa" not in before.values()  # Transformers' SDPA leaves soft-capping out
    _now.run = run
    try:
        for config in configs.values():
            config._attn_implementation = _NAME
        with attending(model, run):
            yield
    finally:
        _now.run = None
        for key, config in configs.items():
            config._attn_implementation = before[key]
