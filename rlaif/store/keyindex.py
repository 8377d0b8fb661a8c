"""Where the row of a key stands, in twelve bytes a row: millions of keys as strings would not fit.

A key is known by its 64-bit hash, so two keys may be taken for one. Whoever asks gets every row
that may be meant and compares the keys of what it reads: the answer is then exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.int64]
Numbers = NDArray[np.int64]


def hashes_of(keys: Sequence[str]) -> Hashes:
    """Python's own hashes: good within one process, which is all that an index lives for."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def hash_all(batches: Iterable[Sequence[str]]) -> Hashes:
    """The hashes of all keys, in order."""
    parts = [hashes_of(keys) for keys in batches]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def repeated(hashes: Hashes) -> set[int]:
    """The hashes that stand more than once."""
    hashes = np.sort(hashes)
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


class KeyIndex:
    """Row numbers by key."""

    def __init__(self, hashes: Hashes) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._numbers = order.astype(np.uint32) if len(order) < 2**32 else order

    def __len__(self) -> int:
        return len(self._numbers)

    def candidates(self, keys: Sequence[str]) -> Numbers:
        """The numbers of all rows that may have one of these keys, ascending."""
        wanted = hashes_of(keys)
        low = np.searchsorted(self._hashes, wanted, "left")
        counts = np.searchsorted(self._hashes, wanted, "right") - low
        # The ranges low[i] … low[i] + counts[i], one after the other.
        starts = np.repeat(low - (np.cumsum(counts) - counts), counts)
        return np.unique(self._numbers[starts + np.arange(len(starts))]).astype(np.int64)


class KeySet:
    """Which keys there are, for another process: 128-bit digests, which do not collide."""

    def __init__(self, batches: Iterable[Sequence[str]]) -> None:
        parts = [_digests(keys) for keys in batches]
        self._sorted = np.sort(np.concatenate(parts)) if parts else _digests([])

    def among(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are in the set."""
        if not len(self._sorted):
            return set()
        wanted = _digests(keys)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return {keys[i] for i in np.flatnonzero(self._sorted[at] == wanted).tolist()}


def _digests(keys: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([blake2b(key.encode(), digest_size=16).digest() for key in keys], "S16")
