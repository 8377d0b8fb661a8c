"""Judges asked about pairs that an evaluation made, their verdicts kept in its own store."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.records import Pair, Verdict
from rlaif.stages.jury import Bench
from rlaif.stages.labelling import current_verdicts
from rlaif.stages.run import Run
from rlaif.steps.executors import run_judge
from rlaif.store import RunStore


def ask(
    run: Run, store: RunStore, judges: Bench, pairs: Sequence[Pair], title: str
) -> list[Verdict]:
    """What all of some judges say of pairs, under their names; what `store` has is not asked again.

    `title` is that of the progress bars.
    """
    verdicts = []
    for juror, judge in judges.seats:
        with run.reporter.progress(juror.title(title), len(pairs)) as progress:
            run_judge(
                pairs,
                judge,
                run.asked(),
                store.table("verdicts"),
                orders=juror.orders,
                chunk=run.config.chunk,
                max_not_finite=juror.section.max_not_finite,
                total=len(pairs),
                on_progress=progress,
            )
        said = current_verdicts(store, pairs, judge, run.asked(), juror.orders)
        verdicts += juror.named(said)
    return verdicts
