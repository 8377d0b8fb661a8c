"""The token trie of a batch of requests: what must be computed, in what order, and who sees whom.

Sixteen principles in both orders over one pair submit fifty thousand tokens, of which some sixteen
hundred differ. The trie of all requests holds each distinct token once: its size is the lower bound
of any scoring. Everything here is a pure function over token ids; no model is involved.

The trie is kept as a radix tree in depth-first order. A *run* is a stretch of tokens without a
branch; the subtree of a run is a contiguous range of tokens. A *pack* is a contiguous range of
tokens computed by one forward pass, given the keys and values of the *path*: the ancestors of its
first token. So whatever the budget, no token is ever computed twice.

`attention_plan` writes the tree's attention as dense pieces that need no mask, so that nothing is
computed that a mask would throw away: a token sees the path (`Plan.path`), the long runs of its
pack that it descends from (`Plan.trunks`), and the short rest down to itself (`Plan.rows`).

A recurrent layer cannot see several keys at once; it goes on from a state. `walk` says in which
order its runs are computed, each from the state that the run above it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
SHORT = 64  # tokens: subtrees no taller than this become the rows of one padded batch
_NARROW = 15  # tokens, less one: runs no longer than this are one batch of a recurrent layer


@dataclass(frozen=True, slots=True)
class Trie:
    """N distinct tokens in S runs for R requests, in depth-first order.

    `tokens`, `depths`: (N,) ids and positions. `begin`, `end`: (S,) the tokens of each run;
    `stop`: (S,) the end of its subtree; `parent`: (S,) the run above, -1 at a root; `height`: (S,)
    tokens on the longest way down from the run's first token. `leaf_run`: (R,) the run where each
    request ends, -1 for an empty one; `lengths`: (R,) tokens of each request.
    """

    tokens: Ints
    depths: Ints
    begin: Ints
    end: Ints
    stop: Ints
    parent: Ints
    height: Ints
    leaf_run: Ints
    lengths: Ints

    def __len__(self) -> int:
        return len(self.tokens)

    def node(self, request: int, depth: int) -> int:
        """The index in `tokens` of the token at `depth` on the way to a request's end."""
        if not 0 <= depth < self.lengths[request]:
            raise IndexError(f"request {request} has {self.lengths[request]} tokens, not {depth}")
        run = int(self.leaf_run[request])
        while depth < self.depths[self.begin[run]]:
            run = int(self.parent[run])
        return int(self.begin[run] + depth - self.depths[self.begin[run]])

    def first_way(self) -> Ints:
        """The ids of the first way down to its end: the trie's first tokens, in order of depth."""
        turns = np.flatnonzero(self.depths != np.arange(len(self)))
        return self.tokens[: turns[0] if len(turns) else len(self)]

    def path_to(self, token: int) -> Ints:
        """The ids on the way to a token, itself included."""
        return self.tokens[[*self.ancestors(token), token]]

    def ancestors(self, token: int) -> Ints:
        """The tokens before this one on its path, root first: (depth of the token,)."""
        run = int(np.searchsorted(self.begin, token, side="right")) - 1
        parts = [np.arange(self.begin[run], token)]
        while (run := int(self.parent[run])) >= 0:
            parts.append(np.arange(self.begin[run], self.end[run]))
        return np.concatenate(parts[::-1])


def build(paths: Sequence[Ints]) -> Trie:
    """The trie of token paths. Equal paths share their end; order is kept by the request index."""
    order, common = _sorted(paths)
    lengths = np.array([len(p) for p in paths], np.int64)
    runs: list[list[int]] = []  # begin, end, stop, parent
    tokens: list[Ints] = []
    depths: list[Ints] = []
    leaf_run = np.full(len(paths), -1, np.int64)
    size = 0
    # Groups of sorted requests that share `depth` tokens, the next one last.
    stack = [(lo, hi, 0, -1) for lo, hi in reversed(_groups(common, 0, len(order), 0))]
    while stack:
        lo, hi, depth, parent = stack.pop()
        first = order[lo]
        extent = int(common[lo + 1 : hi].min()) if hi - lo > 1 else int(lengths[first])
        if extent == depth == 0:  # empty requests
            continue
        run = len(runs)
        runs.append([size, size + extent - depth, 0, parent])
        tokens.append(paths[first][depth:extent])
        depths.append(np.arange(depth, extent))
        size += extent - depth
        for a, b in reversed(_groups(common, lo, hi, extent)):
            if lengths[order[a]] == extent:  # ends here, as do its duplicates: they sort first
                leaf_run[order[a:b]] = run
            else:
                stack.append((a, b, extent, run))
    table = np.array(runs, np.int64).reshape(-1, 4)
    heights = _close(table)
    return Trie(
        tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int64),
        depths=np.concatenate(depths) if depths else np.zeros(0, np.int64),
        begin=table[:, 0],
        end=table[:, 1],
        stop=table[:, 2],
        parent=table[:, 3],
        height=heights,
        leaf_run=leaf_run,
        lengths=lengths,
    )


def lower_bound(paths: Sequence[Ints]) -> int:
    """Tokens that must be computed at least once: the distinct prefixes of all paths."""
    _, common = _sorted(paths)
    return int(sum(len(p) for p in paths) - common.sum())


def common_prefix(a: Ints, b: Ints) -> int:
    """How many tokens two paths share at their start."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _sorted(paths: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Requests in lexicographic order (R,), and what each shares with the one before it (R,)."""
    keys = [np.asarray(p).astype(">u4").tobytes() for p in paths]
    order = np.array(sorted(range(len(paths)), key=keys.__getitem__), np.int64)
    common = np.zeros(len(paths), np.int64)
    for k in range(1, len(order)):
        common[k] = common_prefix(paths[order[k - 1]], paths[order[k]])
    return order, common


def _groups(common: Ints, lo: int, hi: int, depth: int) -> list[tuple[int, int]]:
    """Splits sorted requests lo…hi, which share `depth` tokens, by the token that comes next."""
    cuts = np.flatnonzero(common[lo + 1 : hi] <= depth) + lo + 1
    edges = [lo, *cuts.tolist(), hi]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def _close(table: Ints) -> Ints:
    """Fills in where each run's subtree stops, bottom up; returns the heights."""
    heights = table[:, 1] - table[:, 0]
    own = heights.copy()
    table[:, 2] = table[:, 1]
    for run in range(len(table) - 1, -1, -1):  # children come after their parents
        parent = table[run, 3]
        if parent >= 0:
            table[parent, 2] = max(table[parent, 2], table[run, 2])
            heights[parent] = max(heights[parent], own[parent] + heights[run])
    return heights


def packs(trie: Trie, budget: int, start: int = 0) -> list[tuple[int, int]]:
    """Ranges of tokens that cover the trie from `start`, each of at most `budget` tokens."""
    out = []
    while start < len(trie):
        out.append((start, next_pack(trie, start, budget)))
        start = out[-1][1]
    return out


def next_pack(trie: Trie, start: int, budget: int) -> int:
    """Where a pack that begins at `start` ends, given that it may have `budget` tokens.

    A cut keeps the path to it for the next pack, so it is made where that path is shortest, in the
    second half of the budget: no subtree of up to half the budget is ever split.
    """
    last = start + max(1, budget)
    if last >= len(trie):
        return len(trie)
    first = start + (max(1, budget) + 1) // 2
    low, high = np.searchsorted(trie.begin, first), np.searchsorted(trie.begin, last, "right")
    latest_first = trie.begin[low:high][::-1]
    return int(latest_first[trie.depths[latest_first].argmin()]) if high > low else last


@dataclass(frozen=True, slots=True)
class Rows:
    """Short ways down, as a padded batch of B rows of up to L tokens, causal within a row.

    `gather`: (B, L) the tokens of each row, 0 where it is padded, always on the right. Shared
    tokens stand in several rows; `source`: (n,) is where, in the flat batch, the n tokens `target`
    (n,) are to be read, each once.
    """

    gather: Ints
    source: Ints
    target: Ints


@dataclass(frozen=True, slots=True)
class Plan:
    """The attention of one pack, in dense pieces. Token numbers are relative to the pack.

    `path`: (from, to, depth): the queries from…to see the first `depth` tokens of the path.
    `trunks`: (begin, end, stop): the run begin…end is causal on itself, and end…stop see all of it.
    `keep`: (begin, end, depth): tokens whose keys and values stand at `depth` on the next path.
    """

    begin: int
    end: int
    path: tuple[tuple[int, int, int], ...]
    trunks: tuple[tuple[int, int, int], ...]
    rows: tuple[Rows, ...]
    keep: tuple[tuple[int, int, int], ...]


def attention_plan(
    trie: Trie, begin: int, end: int, keep_path_of: int | None, short: int = SHORT
) -> Plan:
    """How the tokens begin…end attend; the path to `keep_path_of` is to be kept for later.

    That token is the first of the next pack, or the last of the trie; None keeps nothing.
    """
    first = int(np.searchsorted(trie.begin, begin, side="right")) - 1
    last = int(np.searchsorted(trie.begin, end))
    path: list[tuple[int, int, int]] = []
    trunks: list[tuple[int, int, int]] = []
    ways: dict[int, Ints] = {}  # run of a short subtree → its tokens and those above it
    above: set[int] = set()
    outside: dict[int, int] = {}  # run → how much of its path lies before the pack
    for run in range(first, last):
        a, b = max(begin, int(trie.begin[run])), min(end, int(trie.end[run]))
        parent = int(trie.parent[run])
        depth = outside.get(parent, int(trie.depths[a]))
        outside[run] = depth
        if path and path[-1][2] == depth:
            path[-1] = (path[-1][0], b - begin, depth)
        else:
            path.append((a - begin, b - begin, depth))
        if trie.height[run] > short:
            trunks.append((a - begin, b - begin, min(end, int(trie.stop[run])) - begin))
        else:
            own = np.arange(a - begin, b - begin)
            ways[run] = np.concatenate([ways[parent], own]) if parent in ways else own
            above.add(parent)
    rows = _padded([way for run, way in ways.items() if run not in above], end - begin)
    return Plan(
        begin,
        end,
        tuple(p for p in path if p[2]),
        tuple(trunks),
        tuple(rows),
        () if keep_path_of is None else tuple(_kept(trie, begin, end, keep_path_of)),
    )


def kept_plan(trie: Trie, begin: int, end: int, keep_path_of: int) -> Plan:
    """The plan of a pass that attends in one piece: only what is to be kept of it for later."""
    return Plan(begin, end, (), (), (), tuple(_kept(trie, begin, end, keep_path_of)))


def _padded(ways: Sequence[Ints], size: int) -> list[Rows]:
    """Batches of ways down whose lengths lie between the same powers of two."""
    buckets: dict[int, list[Ints]] = {}
    for way in ways:
        buckets.setdefault((len(way) - 1).bit_length(), []).append(way)
    out = []
    seen = np.zeros(size, bool)
    for bucket in buckets.values():
        lengths = np.array([len(way) for way in bucket])
        real = np.arange(lengths.max()) < lengths[:, None]  # (B, L)
        gather = np.zeros(real.shape, np.int64)
        gather[real] = np.concatenate(bucket)
        real &= ~seen[gather]
        target, first = np.unique(gather[real], return_index=True)
        seen[target] = True
        out.append(Rows(gather, np.flatnonzero(real)[first], target))
    return out


def _kept(trie: Trie, begin: int, end: int, token: int) -> list[tuple[int, int, int]]:
    """The stretches of the pack that lie on the path to a token."""
    path = trie.ancestors(token) if token < len(trie) else np.zeros(0, np.int64)
    path = path[(path >= begin) & (path < end)]
    if not len(path):
        return []
    edges = [0, *(np.flatnonzero(np.diff(path) != 1) + 1).tolist(), len(path)]
    return [
        (int(path[a]) - begin, int(path[b - 1]) + 1 - begin, int(trie.depths[path[a]]))
        for a, b in pairwise(edges)
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """B runs that a recurrent layer computes together, their parents done: up to L tokens each.

    `gather`: (B, L) the tokens of each run, `real`: (B, L) False where it is padded, on the right.
    `source`: (B,) the slot of the state that each goes on from; `target`: (B,) that of the state
    that it leaves, or nothing where no run asks for them.
    """

    gather: Ints
    real: npt.NDArray[np.bool_]
    source: Ints
    target: Ints | None


@dataclass(frozen=True, slots=True)
class Walk:
    """The order in which a recurrent layer walks one pack. Token numbers are relative to the pack.

    `starts`: the depths on the kept path whose states are slots 0, 1, …; `steps` fill the others.
    `previous`: (N,) the token before each, −1−i where it is the last one before start i.
    `keep`: (depth, slot, last token) of the states that later packs go on from, `stay`: the depths
    of those that were kept before; all others are no longer on the path.
    """

    starts: tuple[int, ...]
    steps: tuple[Step, ...]
    slots: int
    previous: Ints
    keep: tuple[tuple[int, int, int], ...]
    stay: tuple[int, ...]


def walk(trie: Trie, begin: int, end: int) -> Walk:
    """How the tokens begin…end are computed run by run, and which states the rest will ask for."""
    first = int(np.searchsorted(trie.begin, begin, side="right")) - 1
    last = int(np.searchsorted(trie.begin, end))
    low, high = np.maximum(trie.begin, begin), np.minimum(trie.end, end)
    later = set(trie.parent[last:].tolist())  # runs that other packs go on from at their end
    if last and trie.end[last - 1] > end:
        later.add(last - 1)  # cut
    kept = [run for run in range(first, last) if run in later]
    above = {int(parent) for parent in trie.parent[first:last] if parent >= first}
    tops = [run for run in range(first, last) if trie.parent[run] < first]
    starts = np.unique(trie.depths[low[tops]]).tolist()
    slot = {run: len(starts) + i for i, run in enumerate(sorted({*above, *kept}))}
    previous = np.arange(-1, end - begin - 1)
    level: dict[int, int] = {}
    source: dict[int, int] = {}
    batches: dict[tuple[int, bool, int], list[int]] = {}
    for run in range(first, last):
        parent, a = int(trie.parent[run]), int(low[run])
        if parent >= first:
            level[run], source[run] = level[parent] + 1, slot[parent]
            previous[a - begin] = high[parent] - 1 - begin
        else:
            level[run], source[run] = 0, starts.index(int(trie.depths[a]))
            previous[a - begin] = -1 - source[run]
        size = max(_NARROW, int(high[run]) - a - 1).bit_length()
        batches.setdefault((level[run], run in slot, size), []).append(run)
    steps = []
    for (_, wanted, _), runs in sorted(batches.items()):
        lengths = high[runs] - low[runs]
        real = np.arange(lengths.max()) < lengths[:, None]
        gather = np.where(real, np.arange(lengths.max()) + (low[runs] - begin)[:, None], 0)
        targets = np.array([slot[run] for run in runs]) if wanted else None
        steps.append(Step(gather, real, np.array([source[run] for run in runs]), targets))
    stay = sorted(int(trie.depths[trie.end[run] - 1]) + 1 for run in later if 0 <= run < first)
    return Walk(
        tuple(starts),
        tuple(steps),
        len(starts) + len(slot),
        previous,
        tuple((int(trie.depths[high[r] - 1]) + 1, slot[r], int(high[r]) - 1 - begin) for r in kept),
        tuple(stay),
    )
