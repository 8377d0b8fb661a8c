"""Models asked by an evaluation: judges about pairs, others about rows; what they say is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from rlaif.engines.base import hear
from rlaif.records import Pair, Verdict
from rlaif.stages.jury import Judges
from rlaif.stages.run import Run
from rlaif.steps.executors import Progress
from rlaif.store import RunStore
from rlaif.store.kept import Kept


def ask(store: RunStore, judges: Judges, pairs: Sequence[Pair], title: str) -> list[Verdict]:
    """What all of some judges say of pairs, under their names; what `store` has is not asked again.

    `title` is that of the progress bars.
    """
    sink = store.table("verdicts")
    with closing(judges.verdicts(lambda: pairs, len(pairs), sink, title)) as parts:
        return [verdict for part in parts for verdict in part.rows]


def fill(
    run: Run,
    kept: Kept,
    keys: Sequence[Sequence[str]],
    make: Callable[[Sequence[int]], Mapping[str, Any]],
    title: str,
) -> None:
    """Makes the values of rows that are not kept yet, chunk by chunk, and keeps them.

    `keys` are those of each row; `make` returns the values by key of some rows, named by place.
    """
    todo = [i for i, row in enumerate(keys) if not all(key in kept for key in row)]
    found, total = len(keys) - len(todo), len(keys)
    with run.reporter.progress(title, total) as progress:
        progress(found, total, found)
        for at in range(0, len(todo), run.config.chunk):
            part = todo[at : at + run.config.chunk]
            with hear(partial(_told, progress, found + at, len(part), total, found)):
                kept.add(make(part))
            progress(found + at + len(part), total, found)


def _told(progress: Progress, before: int, size: int, total: int, found: int, share: float) -> None:
    progress(before + share * size, total, found)
