"""The trie against its definition: sets of prefixes, and a mask built from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.engines import trie as t

# Few letters and shared stems, so that paths branch everywhere; empty and repeated ones included.
stems = st.lists(st.integers(0, 2), max_size=9)
requests = st.lists(
    st.tuples(st.sampled_from([[], [1, 1], [1, 1, 0, 2, 1]]), stems).map(lambda x: x[0] + x[1]),
    max_size=14,
).map(lambda paths: [np.array(p, np.int32) for p in paths])
budgets = st.integers(1, 40)


def tree_mask(trie: t.Trie) -> np.ndarray:
    """Who sees whom, (N, N): [i, j] is True where token j is token i or one of its ancestors."""
    mask = np.eye(len(trie), dtype=bool)
    for i in range(len(trie)):
        mask[i, trie.ancestors(i)] = True
    return mask


def prefixes(paths) -> set[tuple[int, ...]]:
    return {tuple(p[: i + 1].tolist()) for p in paths for i in range(len(p))}


def path_of(trie: t.Trie, token: int) -> tuple[int, ...]:
    return (*trie.tokens[trie.ancestors(token)].tolist(), int(trie.tokens[token]))


@given(requests)
def test_each_distinct_prefix_is_one_token(paths):
    trie = t.build(paths)
    assert t.lower_bound(paths) == len(trie) == len(prefixes(paths))
    assert {path_of(trie, i) for i in range(len(trie))} == prefixes(paths)
    assert all(len(trie.ancestors(i)) == trie.depths[i] for i in range(len(trie)))


@given(requests)
def test_every_token_of_every_request_is_found_in_order(paths):
    trie = t.build(paths)
    for r, path in enumerate(paths):
        assert [trie.tokens[trie.node(r, d)] for d in range(len(path))] == path.tolist()
        with pytest.raises(IndexError):
            trie.node(r, len(path))


@given(requests)
def test_subtrees_are_contiguous_and_heights_are_the_longest_way_down(paths):
    trie = t.build(paths)
    mask = tree_mask(trie)
    assert not np.triu(mask, 1).any()
    for run, (begin, stop) in enumerate(zip(trie.begin, trie.stop, strict=True)):
        assert np.array_equal(np.flatnonzero(mask[:, begin]), np.arange(begin, stop))
        assert trie.height[run] == trie.depths[begin:stop].max() + 1 - trie.depths[begin]


@given(requests, budgets)
def test_packs_cover_each_token_once_within_the_budget(paths, budget):
    trie = t.build(paths)
    packs = t.packs(trie, budget)
    assert [i for a, b in packs for i in range(a, b)] == list(range(len(trie)))
    assert all(0 < b - a <= budget for a, b in packs)
    cuts = [b for _, b in packs[:-1]]
    for begin, stop in zip(trie.begin, trie.stop, strict=True):
        if stop - begin <= budget / 2:  # no needless split
            assert not any(begin < cut < stop for cut in cuts)


@settings(max_examples=300, deadline=None)
@given(requests, budgets, st.sampled_from([0, 1, 3, 64]))
def test_the_plans_together_are_the_tree_mask(paths, budget, short):
    """Every pair (query, key) that the tree allows is computed once, and no other is used."""
    trie = t.build(paths)
    seen = np.zeros((len(trie), len(trie)), int)
    kept = np.full(len(trie) + 1, -1)  # which token stands at each depth of the kept path
    for a, b in t.packs(trie, budget):
        plan = t.attention_plan(trie, a, b, b if b < len(trie) else None, short)
        assert kept[: trie.depths[a]].tolist() == trie.ancestors(a).tolist()
        for q0, q1, depth in plan.path:
            seen[a + q0 : a + q1, kept[:depth]] += 1
        for k0, k1, stop in plan.trunks:
            seen[a + k0 : a + k1, a + k0 : a + k1] += np.tri(k1 - k0, dtype=int)
            seen[a + k1 : a + stop, a + k0 : a + k1] += 1
        for rows in plan.rows:
            for source, target in zip(rows.source, rows.target, strict=True):
                row, column = divmod(int(source), rows.gather.shape[1])
                assert rows.gather[row, column] == target
                seen[a + target, a + rows.gather[row, : column + 1]] += 1
        for k0, k1, depth in plan.keep:
            kept[depth : depth + k1 - k0] = np.arange(a + k0, a + k1)
    assert np.array_equal(seen, tree_mask(trie).astype(int))


def test_a_worked_example():
    paths = [np.array(p) for p in ([5, 6, 7], [5, 6, 8, 9], [5, 6], [4], [], [5, 6, 8, 9])]
    trie = t.build(paths)
    assert trie.tokens.tolist() == [4, 5, 6, 7, 8, 9]
    assert trie.depths.tolist() == [0, 0, 1, 2, 2, 3]
    assert trie.parent.tolist() == [-1, -1, 1, 1]
    assert trie.leaf_run.tolist() == [2, 3, 1, 0, -1, 3]
    assert t.packs(trie, 4) == [(0, 4), (4, 6)]
    assert t.packs(trie, 6, start=2) == [(2, 6)]


def test_no_requests_are_an_empty_trie():
    assert len(t.build([])) == t.lower_bound([]) == 0
    assert t.packs(t.build([np.zeros(0, np.int32)]), 8) == []


def test_common_prefix():
    a, b = np.array([1, 2, 3]), np.array([1, 2])
    assert t.common_prefix(a, b) == t.common_prefix(b, a) == 2
    assert t.common_prefix(a, np.array([1, 9, 3])) == 1
    assert t.common_prefix(a, np.zeros(0, int)) == 0


@settings(max_examples=300, deadline=None)
@given(requests, budgets)
def test_a_walk_goes_on_from_the_state_of_every_tokens_own_path(paths, budget):
    """The state here is the tuple of tokens read so far: each must be its own path."""
    trie = t.build(paths)
    kept: dict[int, tuple] = {0: ()}
    for a, b in t.packs(trie, budget):
        walk = t.walk(trie, a, b)
        states = [kept[depth] for depth in walk.starts] + [None] * (walk.slots - len(walk.starts))
        found: dict[int, tuple] = {}
        for step in walk.steps:
            assert step.real.any(0).all()
            assert not (step.real[:, 1:] & ~step.real[:, :-1]).any()  # padded on the right only
            for row, (gather, real) in enumerate(zip(step.gather, step.real, strict=True)):
                state = states[step.source[row]]
                assert state is not None
                for token in gather[real]:
                    state = (*state, a + token)
                    assert token not in found
                    found[int(token)] = state
                if step.target is not None:
                    states[step.target[row]] = state
        for token, state in found.items():
            assert list(state) == [*trie.ancestors(a + token), a + token]
            before = walk.previous[token]
            chain = kept[walk.starts[-1 - before]] if before < 0 else found[before]
            assert chain == state[:-1]
        assert sorted(found) == list(range(b - a))
        new = {depth: states[slot] for depth, slot, _ in walk.keep}
        assert all(found[token] == new[depth] for depth, _, token in walk.keep)
        kept = {0: ()} | {depth: kept[depth] for depth in walk.stay} | new
        assert all(len(state) == depth for depth, state in kept.items())
