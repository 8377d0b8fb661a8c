"""Forward passes over a token trie: every distinct token is computed once, by any decoder whose
attention goes through the attention interface of Transformers.

One pass computes one pack: a row of tokens in depth-first order, with the depth of each as its
position. Everything but attention treats tokens alike. Attention is done here, in the dense pieces
of an `attention_plan`: queries against the keys of the path, which earlier passes left; against
each long run above them; and against the short rest of their way. The pieces' softmaxes are merged
by their log-sum-exp, so the sum is the tree's attention and nothing masked is ever computed.

A sliding window takes from each piece the keys that none of its queries sees, and masks the rest.

Simplified away: recurrent layers, position biases and attention sinks. Callers check for them
(`obstacle`), compare with plain passes, and use those where packing cannot work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from rlaif.engines.prepacked import Prepacked
from rlaif.engines.trie import SHORT, Ints, Plan, Trie, attention_plan, build, packs

# What a model's code raises when it is called in a way that it does not know.
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError)
# Measured on six models: packed passes 0.3 to 1.4 times. In float32 wrong keys, masks and positions
# 600 times and more. In bfloat16 mostly 4 to 100, but what is small beside its rounding passes: a
# position one off in a freshly initialised Llama (0.5), a key twice in Gemma's full layers (2.9).
TIMES_ITS_NOISE = 3.0
TRIAL_WINDOW = 7  # shorter than the trial's paths and trunks
_MASKED = 2**24  # scores that a masked piece makes at a time
_NAME = "rlaif_tree"
_now = threading.local()  # the pass that is running in this thread: models carry no room for it


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


class PackedModel:
    """Runs a causal language model over packs of a trie."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept = KeptPath()
        self._short = SHORT
        self._faster: Prepacked | None = None

    @torch.no_grad()
    def logits(self, trie: Trie, begin: int, end: int, nodes: Ints) -> torch.Tensor:
        """Logits (U, V) after the given nodes, all of them tokens of the pack begin…end.

        Leaves the path to `end` (after the last pack: to the last token) kept for the next pack.
        """
        target = end if end < len(trie) else len(trie) - 1
        plan = attention_plan(trie, begin, end, target, self._short)
        device = self.model.device
        run = _Pass(plan, self.kept, trie.depths[begin:end], device)
        ids = torch.from_numpy(trie.tokens[begin:end].astype(np.int64))[None].to(device)
        positions = torch.from_numpy(trie.depths[begin:end].astype(np.int64))[None].to(device)
        where = torch.from_numpy(nodes - begin)
        if self._faster is None:
            self._faster = Prepacked(self.model)
        tree, ends = _tree_attention(self.model, run), logits_at(self.model, where)
        with self._faster.active(), tree, ends as found:
            self.model(input_ids=ids, position_ids=positions, use_cache=False)
        run.commit()
        return found[0]

    def forget(self) -> None:
        """Drops what was kept, because the weights may change or memory is wanted."""
        self.kept = KeptPath()
        self._faster = None

    @torch.no_grad()
    def check(self, longest: int, window: int | None = None) -> str:
        """Compares packed with plain passes on a small tree; "" if equal, else what was found.

        The tree has all that real ones have: a shared prefix, long and short runs, a way that ends
        inside another, and packs that cut it. `window` narrows the model's windows for the trial,
        so that its small paths are longer than they.
        """
        with _windows(self.model, window):
            return self._check(longest)

    def _check(self, longest: int) -> str:
        paths = _trial_paths(self.model.get_input_embeddings().weight.shape[0])
        if max(map(len, paths)) > longest:
            return f"only paths of {longest} tokens could be packed"
        trie = build(paths)
        nodes = np.array([trie.node(r, len(path) - 1) for r, path in enumerate(paths)])
        packed: dict[int, torch.Tensor] = {}
        plain = torch.cat([self._plain([path]) for path in paths])
        other = self._plain(paths)
        self.forget()
        self._short = 8  # the trial's trunks are shorter than real ones
        try:
            for begin, end in packs(trie, 20):
                mine = np.unique(nodes[(nodes >= begin) & (nodes < end)])
                packed |= dict(zip(mine.tolist(), self.logits(trie, begin, end, mine), strict=True))
        except REFUSALS as error:
            return f"its code cannot do it ({error})"
        finally:
            self._short = SHORT
            self.forget()
        found = torch.stack([packed[node] for node in nodes.tolist()])
        return _difference(plain, other, found)

    def _plain(self, paths: list[Ints]) -> torch.Tensor:
        """Logits (R, V) after each path, by one ordinary pass, padded behind the paths."""
        ids = torch.zeros(len(paths), max(map(len, paths)), dtype=torch.long)
        for row, path in zip(ids, paths, strict=True):
            row[: len(path)] = torch.from_numpy(path)
        logits = self.model(input_ids=ids.to(self.model.device)).logits
        return torch.stack([row[len(path) - 1] for row, path in zip(logits, paths, strict=True)])


def _trial_paths(vocabulary: int) -> list[Ints]:
    """Random requests that share what those of a judge share, small."""
    draw = np.random.default_rng(0)

    def run(n: int) -> Ints:
        return draw.integers(0, vocabulary, n)

    prefix, pair = run(5), run(7)
    stems = [np.concatenate([prefix, pair, run(4)]), np.concatenate([prefix, pair, run(2)]), prefix]
    return [np.concatenate([stem, run(n)]) for stem in stems for n in (0, 3, 1, 6)]


def _difference(plain: torch.Tensor, other: torch.Tensor, packed: torch.Tensor) -> str:
    """What to say if packed logits (R, V) differ from plain ones by more than rounding.

    How much rounding is, the model tells itself: by `other`, the same paths in a plain pass of
    another shape. Root mean squares, of all and of each path, are compared, as single values have
    long tails. A pass that agrees with itself to the last bit has the rounding of its numbers, on
    the scale of how far the paths lie apart.
    """
    fine = 2e-6 if plain.dtype == torch.float32 else 2**-7
    plain, other, packed = (x.float().log_softmax(-1) for x in (plain, other, packed))
    if not plain.isfinite().all():
        return "" if not packed.isfinite().all() else "its plain passes are not finite"
    error, noise, apart = (
        _spread(packed - plain),
        _spread(other - plain),
        _spread(plain.diff(dim=0)),
    )
    for found, rounding, scale in zip(error, noise, apart, strict=True):
        if not found <= TIMES_ITS_NOISE * max(rounding, fine * scale):
            return (
                f"packed and plain log-probabilities differ by {found:.2g} on a trial, "
                f"two plain passes by {rounding:.2g}"
            )
    return ""


def _spread(x: torch.Tensor) -> tuple[float, float]:
    """The root mean square of values (R, V), and the greatest of a row's."""
    rows = x.double().pow(2).mean(-1)
    return float(rows.mean().sqrt()), float(rows.max().sqrt())


class _Pass:
    """The attention of one forward pass."""

    def __init__(self, plan: Plan, kept: KeptPath, depths: Ints, device: torch.device) -> None:
        self.plan, self.kept = plan, kept
        self.depths = torch.from_numpy(depths.astype(np.int64)).to(device)  # (N,)
        self._deepest = int(depths.max(initial=0))
        self.rows = [
            tuple(torch.from_numpy(x).to(device) for x in (r.gather, r.source, r.target))
            for r in plan.rows
        ]
        self.softcaps = True
        self._pending: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []

    def commit(self) -> None:
        """Keeps what the pass found. Not before its end: a pass out of memory is run again."""
        for layer, depth, keys, values in self._pending:
            self.kept.write(layer, depth, keys, values)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Queries (1, H, N, D), keys and values (1, Hkv, N, D) → (1, N, H, D).

        `window`: a token sees those less than so many positions before it, itself included.
        """
        total = _Merged(q.shape[2])
        softcap = softcap if self.softcaps else None
        if window is not None and window > self._deepest:
            window = None  # it holds every path

        def add(a: int, b: int, keys: Any, values: Any, depths: torch.Tensor) -> None:
            """The queries a…b against keys above all of them, which stand at `depths`."""
            if window is None:
                total.add(a, b, *_dense(q[:, :, a:b], keys, values, False, scale, softcap))
                return
            seen = depths > self.depths[a:b, None] - window  # (n, m)
            some = seen.any(0).nonzero()
            if len(some):
                near = slice(int(some[0]), None)
                part = q[:, :, a:b], keys[:, :, near], values[:, :, near]
                total.add(a, b, *_dense(*part, False, scale, softcap, seen[:, near]))

        for a, b, depth in self.plan.path:
            add(a, b, *self.kept.read(layer, depth), torch.arange(depth, device=q.device))
        for a, b, stop in self.plan.trunks:
            keys, values = k[:, :, a:b], v[:, :, a:b]
            inside = _band(b - a, window, q.device)
            part = q[:, :, a:b], keys, values
            total.add(a, b, *_dense(*part, inside is None, scale, softcap, inside))
            if stop > b:
                add(b, stop, keys, values, self.depths[a:b])
        for gather, source, target in self.rows:
            rq, rk, rv = (x[0].transpose(0, 1)[gather].transpose(1, 2) for x in (q, k, v))
            inside = _band(gather.shape[1], window, q.device)
            out, lse = _dense(rq, rk, rv, inside is None, scale, softcap, inside)  # (B, H, L, ·)
            out = out.transpose(1, 2).flatten(0, 1)[source]
            lse = lse.transpose(1, 2).flatten(0, 1)[source]
            total.add_at(target, out, lse)
        for a, b, depth in self.plan.keep:
            self._pending.append((layer, depth, k[:, :, a:b].clone(), v[:, :, a:b].clone()))
        return total.out.to(q.dtype)[None]


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

    def _start(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        if self._empty:
            self.out = out.new_zeros(self._size, *out.shape[1:])
            self.lse = lse.new_full((self._size, lse.shape[1]), -torch.inf)
            self._empty = False


def _weight(lse: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """That of a part (n, H, 1) against what was there; 0 where neither saw a key."""
    return torch.sigmoid(lse - before).nan_to_num(0.0)[..., None]


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Who sees whom in a run (n, n) that is longer than the window; None where it is not."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    apart = at[:, None] - at
    return (apart >= 0) & (apart < window)


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

    q (B, H, n, D), k and v (B, Hkv, m, D) → (B, H, n, D), (B, H, n). `causal` needs n = m. `seen`
    (n, m): which keys a query sees; one that sees none gets zeros, and −∞.
    """
    aten = torch.ops.aten
    if seen is not None and not seen.all():
        return _masked(q, k, v, scale, softcap, seen)
    if softcap is None and q.shape[-1] == v.shape[-1]:
        if q.device.type == "cpu":
            # The query heads of one key head as one long head: larger products, keys read once.
            shape = q.shape
            if len(q) == 1 and shape[1] != k.shape[1] and not causal:
                q = q.reshape(k.shape[1], 1, -1, shape[3])
                k, v = k.transpose(0, 1), v.transpose(0, 1)
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, causal, scale=scale
            )
            return out.float().reshape(shape), lse.reshape(shape[:3])
        if q.is_cuda and q.dtype != torch.float32 and q.shape[-1] in range(8, 257, 8):
            k, v = _per_head(k, q), _per_head(v, q)
            found = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
            return found[0].float(), found[1]
    k, v = _per_head(k, q).float(), _per_head(v, q).float()
    scores = q.float() @ k.transpose(-1, -2) * scale  # (B, H, n, m)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        upper = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(upper, -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.exp(scores - lse[..., None]) @ v, lse


def _masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    seen: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with a mask, some queries at a time."""
    k, v = _per_head(k, q).float(), _per_head(v, q).float()
    rows = max(1, _MASKED // (q.shape[0] * q.shape[1] * k.shape[2]))
    outs, sums = [], []
    for start in range(0, q.shape[2], rows):
        part, sees = q[:, :, start : start + rows], seen[start : start + rows]
        scores = part.float() @ k.transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~sees, -torch.inf)
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
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the plan takes its place
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that models call: their layer's share of the pass that is running."""
    unknown = [k for k in ("s_aux", "position_bias") if kwargs.get(k) is not None]
    if unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"tree attention cannot do {unknown or 'two-way attention'}")
    run: _Pass = _now.run
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = kwargs.get("sliding_window")
    return run.attend(module.layer_idx, query, key, value, scale, softcap, window), None


AttentionInterface.register(_NAME, _interface)


@contextlib.contextmanager
def _tree_attention(model: Any, run: _Pass) -> Iterator[None]:
    """Sends the model's attention to `run` while inside."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {k: c._attn_implementation for k, c in configs.items()}
    run.softcaps = "sdpa" not in before.values()  # Transformers' SDPA leaves soft-capping out
    _now.run = run
    try:
        for config in configs.values():
            config._attn_implementation = _NAME
        yield
    finally:
        _now.run = None
        for key, config in configs.items():
            config._attn_implementation = before[key]


@contextlib.contextmanager
def logits_at(model: Any, where: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """The logits (N, V) of N flat positions of a forward pass run inside, and of no others.

    The head's input is cut down before the head, so scaling and soft-capping after it still happen.
    """
    found: list[torch.Tensor] = []

    def gather(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]  # (B, T, D)
        picked = hidden.reshape(-1, hidden.shape[-1])[where.to(hidden.device)]
        return (picked[None], *args[1:])

    def keep(_: Any, __: Any, ___: Any, output: Any) -> None:
        found.append(output.logits[0])

    hooks = (
        model.get_output_embeddings().register_forward_pre_hook(gather),
        model.register_forward_hook(keep, with_kwargs=True),
    )
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _windows(model: Any, size: int | None) -> Iterator[None]:
    """Gives all sliding windows of a model, wherever they are said, another size while inside."""
    parts = [*model.modules(), *{id(c): c for c in map(_config_of, model.modules())}.values()]
    said = [p for p in parts if isinstance(getattr(p, "sliding_window", None), int)]
    before = [p.sliding_window for p in said]
    try:
        for part in said if size is not None else ():
            part.sliding_window = size
        yield
    finally:
        for part, old in zip(said, before, strict=True):
            part.sliding_window = old


def _config_of(module: Any) -> Any:
    return getattr(module, "config", None)


def obstacle(config: Any, *, windows: bool = False) -> tuple[str, int]:
    """Why a model cannot be packed ("" if nothing is known), and the longest path that can be.

    `windows`: whether sliding windows are computed, and so bound no path.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    other = kinds - {"full_attention", "sliding_attention"}
    if other:
        return f"it has {', '.join(sorted(other))} layers", 0
    longest = 2**30
    window = getattr(text, "sliding_window", None)
    # Configs without layer types that name a window use it in every layer.
    if (
        not windows
        and window
        and ("sliding_attention" in kinds or not getattr(text, "layer_types", None))
    ):
        longest = min(longest, int(window))
    rope = getattr(text, "rope_parameters", None) or {}
    if "longrope" in str(rope):  # its frequencies change with the length of the input
        longest = min(longest, int(rope.get("original_max_position_embeddings") or 0))
    return "", longest
