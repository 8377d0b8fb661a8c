"""The loop of all readers: rows of a source made into whatever they hold, bad ones told or refused.

Two things can be wrong with a row, as `rlaif.files.readers` says: a malformed one ends the run
unless it is skipped, an unusable one is left out and told.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlaif.errors import DataError
from rlaif.files.readers.fields import (
    STOPPING,
    BadReason,
    BadRow,
    Left,
    OnBad,
    Raw,
    Row,
    excerpt,
    parse,
)
from rlaif.files.readers.repeats import Repeats
from rlaif.files.readers.settings import Reading
from rlaif.files.readers.sources import open_source
from rlaif.records import Pair

R = TypeVar("R")
Placed = Sequence[tuple[str, Row]]
Convert = Callable[[Placed], Iterable[R | Left]]


def read_rows(
    source: str | Path,
    convert: Callable[[str, Row], Iterable[R]],
    columns: Collection[str],
    *,
    skip_bad: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[R]:
    """What `convert(where, row)` makes of each row of a source that is no text file; it raises
    `Left` for a row that makes nothing. `columns` are those wanted of a Parquet file.

    Raises DataError as `rlaif.files.readers.read_pairs` does.
    """
    raw = open_source(str(source), columns, allow_text=False)
    return read_units(
        str(source), raw, lambda rows: convert(*rows[0]), Reading(skip_bad=skip_bad), on_bad
    )


def read_units(
    source: str,
    raw: Iterator[tuple[str, Raw]],
    convert: Convert[R],
    reading: Reading,
    on_bad: OnBad | None,
    group: Callable[[Row], Any] = lambda _: None,
    repeats: Repeats | None = None,
) -> Iterator[R]:
    left: Counter[str] = Counter()
    made = 0

    def tell(where: str, reason: BadReason, content: Raw, detail: str) -> None:
        left[reason] += 1
        stopped = sum(left[r] for r in STOPPING)
        if reason in STOPPING and stopped > reading.skip_bad:
            raise DataError(_malformed(where, detail, reading.skip_bad))
        if on_bad:
            on_bad(BadRow(where, reason, excerpt(content), detail))

    for unit in _units(raw, group):
        where, content, _ = unit[0]
        for found in _made(unit, convert):
            if isinstance(found, Left):
                tell(where, found.reason, content, found.detail)
                continue
            earlier = repeats.opposed(found, where) if repeats and isinstance(found, Pair) else None
            if earlier:
                tell(where, "contradicts", content, f"says the opposite of {earlier}")
            yield found
            made += 1
            if made == reading.limit:
                break
        if made == reading.limit:
            break
    if left and on_bad is None:
        _sum_up(source, left)


_Unit = list[tuple[str, Raw, Row | Left]]


def _units(raw: Iterable[tuple[str, Raw]], group: Callable[[Row], Any]) -> Iterator[_Unit]:
    """Rows one by one, and those that belong together in one list."""
    waiting: _Unit = []
    common: Any = None
    for where, content in raw:
        row: Row | Left
        try:
            row = parse(content)
            its = group(row)
        except Left as reason:
            row, its = reason, None
        if waiting and (its is None or its != common):
            yield waiting
            waiting = []
        if its is None:
            yield [(where, content, row)]
        else:
            waiting.append((where, content, row))
            common = its
    if waiting:
        yield waiting


def _made(unit: _Unit, convert: Convert[R]) -> list[R | Left]:
    """What rows make. A malformed one makes nothing, even where some of it could be read."""
    rows = []
    for where, _, row in unit:
        if isinstance(row, Left):
            return [row]
        rows.append((os.path.basename(where), row))
    try:
        return list(convert(rows))
    except Left as reason:
        return [reason]
    except RecursionError:
        return [Left("malformed", "expected a row of some depth, got one nested without end")]


def _malformed(where: str, detail: str, skipped: int) -> str:
    after = f" (after {skipped} skipped ones)" if skipped else ""
    return f"{where}: {detail}{after}. Fix the row, or leave it out: --skip-bad {skipped + 1}"


def _sum_up(source: str, left: Counter[str]) -> None:
    opposed = left.pop("contradicts", 0)
    if left:
        counts = ", ".join(f"{reason} {n}" for reason, n in sorted(left.items()))
        warnings.warn(f"{source}: {left.total()} rows left out ({counts})", stacklevel=3)
    if opposed:
        warnings.warn(
            f"{source}: {opposed} rows say the opposite of an earlier row of the same two "
            "responses; on_bad is told which",
            stacklevel=3,
        )
