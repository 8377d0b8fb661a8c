"""Models asked by an evaluation: judges about pairs, others about rows; what they say is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rlaif.config import Config
from rlaif.engines.base import hear
from rlaif.errors import ConfigError
from rlaif.judges.base import Ask
from rlaif.records import Pair, Verdict
from rlaif.stages.jury import Judges
from rlaif.stages.run import Run
from rlaif.steps.executors import (
    FiniteGuard,
    Progress,
    Sink,
    chunks,
    items_of,
    judge_missing,
)
from rlaif.steps.pace import Saver, pace_of
from rlaif.store import RunStore
from rlaif.store.kept import Kept

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge


class WithAsks(Protocol):
    """What a judge is asked for one thing that is measured."""

    @property
    def asks(self) -> tuple[Ask, ...]: ...


Item = TypeVar("Item", bound=WithAsks)


def ask(store: RunStore, judges: Judges, pairs: Sequence[Pair], title: str) -> list[Verdict]:
    """What all of some judges say of pairs, under their names; what `store` has is not asked again.

    `title` is that of the progress bars.
    """
    sink = store.table("verdicts")
    with closing(judges.verdicts(lambda: pairs, len(pairs), sink, title)) as parts:
        return [verdict for part in parts for verdict in part.rows]


def require_one_judge(config: Config, what: str) -> None:
    """ConfigError where a run has a jury. `what` is said of one judge: "attacks are made on"."""
    if config.jury:
        raise ConfigError(
            f"{what} one judge, and this run has a jury: give one juror's settings as `judge`, and "
            "set jury=[]; the verdicts it has given are found"
        )


def answered(
    run: Run, sink: Sink[Verdict], judge: AnyJudge, todo: Sequence[Item], title: str
) -> tuple[list[tuple[Item, list[Verdict]]], int]:
    """Each item with the verdicts on its asks, and how many were made now: those that the sink has
    are not asked again. `title` is that of the progress bar."""
    new = 0
    guard = FiniteGuard(run.config.judge.max_not_finite, judge.name)
    out: list[tuple[Item, list[Verdict]]] = []
    pace, old = pace_of(judge.engine), 0.0

    def told(items: float) -> None:
        progress(len(out) + items, len(todo), old)

    with run.reporter.progress(title, len(todo)) as progress:
        for part in chunks(todo, run.config.chunk):
            asks = {judge.key(ask): ask for item in part for ask in item.asks}
            found = dict(sink.finder()(list(asks)))
            known, saver = len(found), Saver(sink.append)
            with hear(told), hear(items_of(part, len(asks), known)):
                for made in judge_missing(judge, asks, found, pace):
                    found |= {v.key: v for v in made}
                    guard.check(made, len(asks) - len(found))
                    saver.add(made)
            saver.flush()
            new += len(asks) - known
            old += len(part) * known / max(len(asks), 1)
            out += [(item, [found[judge.key(ask)] for ask in item.asks]) for item in part]
            told(0)
    return out, new


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
