"""The few that are largest, of many that go by."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Largest(Generic[T]):
    """Keeps the `most` elements of the largest value, and no more of them in memory.

    Of elements of one value, the first ones stay.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[tuple[float, int, T]] = []
        self._number = count()

    def add(self, value: float, element: T) -> None:
        """Keeps an element, unless `most` others are larger."""
        entry = (value, -next(self._number), element)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        elif self.most:
            heapq.heappushpop(self._heap, entry)

    def found(self) -> list[tuple[float, T]]:
        """What is kept, as (value, element), the largest first."""
        return [(value, element) for value, _, element in sorted(self._heap, reverse=True)]
