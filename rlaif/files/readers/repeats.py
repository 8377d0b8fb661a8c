"""Rows that speak of the same two responses: which contradict one another, what they say in all."""

from __future__ import annotations

from array import array
from dataclasses import replace

from rlaif.records import Pair

_LINES = 40  # bits of a place's line number; the file's number stands above them


class Repeats:
    """The pairs handed out so far, by the hash of their texts, with places and votes.

    An open-addressing hash table of plain numbers, some forty bytes a pair: a dict of objects would
    take three times the memory. A pair and its mirror image are one pair with two votes.
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._held = 0
        self._keys = array("q", [0]) * 1024  # 0 marks a free place
        self._votes = array("q", [0]) * 1024  # the row's place, negative for the second side

    def opposed(self, pair: Pair, where: str) -> str | None:
        """Keeps the pair's vote; the place of an earlier one that says the opposite, if any does.

        Only votes that take a side are kept: a tie is the opposite of nothing.
        """
        if pair.label is None or pair.label == 0.5:
            return None
        low, high = pair.first, pair.second
        mirrored = low > high
        if mirrored:
            low, high = high, low
        vote = self._place(where) * (1 if (pair.label > 0.5) != mirrored else -1)
        # Python's own hash is 64 bits of the same texts; an id costs as much as all the reading.
        key = hash((pair.prompt.messages, low, high)) or 1
        at = self._find(key)
        if self._keys[at]:
            earlier = self._votes[at]
            return self._name(abs(earlier)) if (earlier > 0) != (vote > 0) else None
        self._keys[at], self._votes[at] = key, vote
        self._held += 1
        if self._held * 2 > len(self._keys):
            self._grow()
        return None

    def _find(self, key: int) -> int:
        """Where a key stands, or the free place that it would take."""
        mask = len(self._keys) - 1
        at = key & mask
        while self._keys[at] and self._keys[at] != key:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        keys, votes = self._keys, self._votes
        size = len(keys) * 2
        self._keys, self._votes = array("q", [0]) * size, array("q", [0]) * size
        for key, vote in zip(keys, votes, strict=True):
            if key:
                at = self._find(key)
                self._keys[at], self._votes[at] = key, vote

    def _place(self, where: str) -> int:
        file, _, line = where.rpartition(":")
        if not self._files or self._files[-1] != file:  # files are read one after the other
            self._files.append(file)
        return len(self._files) << _LINES | int(line)

    def _name(self, place: int) -> str:
        return f"{self._files[(place >> _LINES) - 1]}:{place & (1 << _LINES) - 1}"


class Votes:
    """What the rows of one pair say together: the mean of their labels.

    A pair and its mirror image are one pair. Only of pairs that came again is anything kept but the
    id and the first label.
    """

    def __init__(self) -> None:
        self._first: dict[str, float | None] = {}  # P(the first in order of text is better)
        self._more: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def add(self, pair: Pair) -> bool:
        """Counts a row's label; whether its pair is a new one."""
        key, label = _upright(pair)
        if key not in self._first:
            self._first[key] = label
            return True
        if label is not None:
            self._more.setdefault(key, []).append(label)
        return False

    @property
    def split(self) -> bool:
        """Whether the rows of any pair differ in what they say."""
        return any(set(more) != {self._first[key]} for key, more in self._more.items())

    def counted(self, pair: Pair) -> Pair:
        """The pair with the mean of what its rows say."""
        key, _ = _upright(pair)
        first = self._first[key]
        labels = [*([] if first is None else [first]), *self._more.get(key, ())]
        if len(set(labels)) < 2 and pair.label is not None:
            return pair
        mean = sum(labels) / len(labels) if labels else None
        if mean is not None and pair.id.startswith("~"):
            mean = 1.0 - mean
        return replace(pair, label=mean)


def _upright(pair: Pair) -> tuple[str, float | None]:
    """The id that a pair shares with its mirror image, and the label seen from one side."""
    if not pair.id.startswith("~"):
        return pair.id, pair.label
    return pair.id[1:], None if pair.label is None else 1.0 - pair.label
