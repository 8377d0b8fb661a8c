"""How much work is done at a time: batches that end within seconds, however slow the model is.

A chunk of a stage's input is cut into batches by the time that those before took. What is done is
written every few seconds, so that neither a kill nor a look at the terminal meets many minutes of
nothing.

Where a row's last bits depend on its batch (an engine that is `Watched`), a chunk is given whole,
so that the same work is always done in the same batches. Only if it turns out after some seconds
that it would take longer than the limit is it begun again in smaller ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

from rlaif.engines.base import Engine, Watched, hear, listener, tell

T = TypeVar("T")
Row = TypeVar("Row")
LIMIT = 20.0  # seconds: a batch that takes longer makes the next one smaller
SAVE = 5.0  # seconds between two writes inside a chunk
FIRST = 1  # items of the first batch, where nothing is known of the model's speed
FIRST_WIDE = 64  # of an engine that does many at a time: a GPU's, a server's


_ALL = 2**62  # items: as many as there are


class Slow(Exception):
    """Breaks off a batch that would take too long, from within what its engine tells."""


class Pace:
    """The size of the next batch, by what the batches before it took.

    Batches grow until one takes about half the limit, and shrink where one takes more than it. Both
    are measured against the batch before: where the time hardly changes with the size, as on a GPU
    or a server that does many rows at a time, smaller batches would gain nothing and are not made.

    `whole` begins with all that there is, and goes on so as long as that takes at most half as long
    again as the limit.
    """

    def __init__(self, first: int = FIRST, *, limit: float = LIMIT, whole: bool = False) -> None:
        self.size, self.limit = _ALL if whole else first, limit
        self._floor, self._floor_seconds = 1, 0.0  # smaller batches were no faster
        self._before: tuple[int, float] | None = None  # size and seconds

    def check(self, count: int, share: float, seconds: float) -> None:
        """Raises Slow where a batch given whole is far from its end after some seconds."""
        if self.size == _ALL and seconds >= self.limit / 4 and seconds > 2 * self.limit * share:
            self.size = max(1, int(0.75 * self.limit * count * share / seconds))
            raise Slow

    def took(self, count: int, seconds: float) -> None:
        """Learns from a batch of `count` items."""
        if self.size == _ALL:
            if seconds > 1.5 * self.limit:
                self.size = max(1, int(0.75 * self.limit * count / seconds))
            return
        full = 2 * count > self.size
        if not full and seconds < self.limit:
            return  # the rest of a chunk: it might have been more
        before, self._before = self._before, (count, seconds)
        if seconds > 2 * self._floor_seconds:
            self._floor = 1  # the work has become another
        if before is not None and full and count < before[0] and seconds > 0.9 * before[1]:
            self._floor, self._floor_seconds = before
            self.size, self._before = before[0], before  # back: as long for fewer is no gain
            return
        flat = before is not None and count > before[0] and seconds < 1.1 * before[1]
        self.size = max(self._floor, self._next(count, seconds, flat, before is None))

    def _next(self, count: int, seconds: float, flat: bool, first: bool) -> int:
        fits = int(0.75 * self.limit * count / max(seconds, 1e-9))
        if flat or seconds < self.limit / 2:
            return min(8 * count, max(2 * count, fits))
        if first and (count == 1 or seconds < 2 * self.limit):
            return 2 if count == 1 else count  # whether batches pay is not known yet
        return fits if seconds > self.limit else count

    def end(self, todo: Sequence[T], begin: int, unit: Callable[[T], Hashable], whole: bool) -> int:
        """Where a batch that begins at `begin` ends: at the end of a unit (a pair, a prompt).

        A unit larger than the batch is cut, unless it has to stay `whole`.
        """
        end = min(begin + self.size, len(todo))
        if end == len(todo):
            return end
        back = end
        while back > begin and unit(todo[back - 1]) == unit(todo[back]):
            back -= 1
        if back > begin or not whole:
            return back if back > begin else end
        while end < len(todo) and unit(todo[end - 1]) == unit(todo[end]):
            end += 1
        return end


def paced(
    todo: Sequence[T],
    work: Callable[[Sequence[T]], list[Row]],
    pace: Pace,
    *,
    unit: Callable[[T], Hashable] = id,
    whole: bool = False,
) -> Iterator[list[Row]]:
    """`work` on consecutive batches of `todo`, each of whose rows are yielded as they come.

    Tells whoever hears how many of `todo` are done, as a part of all, and what of a batch its
    engine tells.
    """
    begin = 0
    while begin < len(todo):
        end = pace.end(todo, begin, unit, whole)
        started = time.monotonic()
        try:
            with hear(_within(begin, end, len(todo), pace)):
                made = work(todo[begin:end])
        except Slow:
            continue
        pace.took(end - begin, time.monotonic() - started)
        begin = end
        tell(begin / len(todo))
        yield made


def _within(begin: int, end: int, every: int, pace: Pace) -> Callable[[float], None]:
    """Tells the share of a batch as a share of all. A judge may ask its engine several times over
    the batch; what it tells last is not yet the end."""
    outer, started = listener(), time.monotonic()
    most = 0.0

    def told(share: float) -> None:
        nonlocal most
        pace.check(end - begin, share, time.monotonic() - started)
        most = max(most, min(share, 0.99))
        outer((begin + most * (end - begin)) / every)

    return told


def pace_of(engine: Engine) -> Pace:
    """A pace that suits the engine: one item first on a CPU, many on a GPU or a server, which take
    as long for one; all of a chunk where the engine tells how far it is."""
    if isinstance(engine, Watched):
        return Pace(whole=True)
    return Pace(FIRST if engine.device == "cpu" else FIRST_WIDE)


class Saver(Generic[Row]):
    """Writes rows as they come, every few seconds; the rest is left to whoever ends the chunk."""

    def __init__(self, write: Callable[[Sequence[Row]], None]) -> None:
        self._write = write
        self._last = time.monotonic()
        self.rest: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        self.rest += rows
        if time.monotonic() - self._last >= SAVE:
            self.flush()

    def flush(self) -> None:
        """Writes what is not yet written."""
        if self.rest:
            self._write(self.rest)
        self.rest = []
        self._last = time.monotonic()
