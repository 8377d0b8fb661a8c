"""What people see: a live bar on a terminal, plain lines elsewhere; the time left once known."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rlaif.steps.executors import Progress as ProgressCallback

LINE_SECONDS = 5.0  # between two plain progress lines, and a step more: 10 where steps are short
KNOWN_SECONDS = 2.0  # of work, before a rate is told


@dataclass(slots=True)
class Rate:
    """Items a second, as far as they are worked on now: those found done from before are not.

    The clock starts when something is told for the first time: a model has been loaded by then.
    """

    _start: tuple[float, float] | None = None  # when, and the items worked on by then
    _now: tuple[float, float] = (0.0, 0.0)

    def saw(self, worked: float, now: float) -> None:
        self._start = self._start or (now, worked)
        self._now = (now, worked)

    @property
    def value(self) -> float | None:
        """None before it is known."""
        if self._start is None:
            return None
        seconds, items = (self._now[i] - self._start[i] for i in (0, 1))
        return items / seconds if items > 0 and seconds >= KNOWN_SECONDS else None

    def text(self, done: float, total: int | None) -> str:
        """Such as ", 5.1/s, 20 s left"; empty before it is known."""
        if self.value is None:
            return ""
        text = f", {pace(self.value)}"
        if total is not None and done < total:
            text += f", {duration((total - done) / self.value)} left"
        return text


def pace(rate: float) -> str:
    """Items a second, or seconds an item."""
    return f"{rate:,.1f}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each"


def duration(seconds: float) -> str:
    """Such as 20 s, 4 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def amount(done: float) -> str:
    """How many are done: a fraction while there are few, as one of them may take minutes."""
    return f"{done:,.0f}" if done == int(done) or done >= 100 else f"{int(done * 10) / 10:,.1f}"


class Terminal:
    """A reporter for the command line. Progress and warnings go to stderr, results to stdout."""

    def __init__(self) -> None:
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.out.print(text, markup=False, soft_wrap=not self.out.is_terminal)  # for grep and less

    def warn(self, text: str) -> None:
        self.err.print("note: " + text, style="yellow", markup=False)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says what is waited for, off a terminal or on one, where it takes long."""
        timer = threading.Timer(LINE_SECONDS, self.err.print, [what], {"markup": False})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[ProgressCallback]:
        if not sys.stderr.isatty():
            yield self._lines(title)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        rate = Rate()
        columns = (
            TextColumn("{task.description:>9}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(title, total=total, said="")

            def update(done: float, total: int | None, found: float = 0) -> None:
                rate.saw(done - found, time.monotonic())
                of = "" if total is None else f" of {total:,}"
                said = amount(done) + of + rate.text(done, total)
                bar.update(task, completed=done, total=total, said=said)

            yield update

    def _lines(self, title: str) -> ProgressCallback:
        rate, started = Rate(), time.monotonic()
        last, ended = started, False

        def update(done: float, total: int | None, found: float = 0) -> None:
            nonlocal last, ended
            now = time.monotonic()
            rate.saw(done - found, now)
            end = done == total
            if ended or (now - last < LINE_SECONDS and not end):
                return
            last, ended = now, end
            text = f"{title}: {amount(done)}" + ("" if total is None else f" of {total:,}")
            text += f" in {duration(now - started)}" if end else rate.text(done, total)
            self.err.print(text, markup=False)

        return update


class Silent:
    """A reporter for the processes beside the main one."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[ProgressCallback]:
        del title, total
        yield lambda *_: None
