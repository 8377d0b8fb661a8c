"""Judges asked about pairs that an evaluation made, their verdicts kept in its own store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from rlaif.records import Pair, Verdict
from rlaif.stages.jury import Judges
from rlaif.store import RunStore


def ask(store: RunStore, judges: Judges, pairs: Sequence[Pair], title: str) -> list[Verdict]:
    """What all of some judges say of pairs, under their names; what `store` has is not asked again.

    `title` is that of the progress bars.
    """
    sink = store.table("verdicts")
    with closing(judges.verdicts(lambda: pairs, len(pairs), sink, title)) as parts:
        return [verdict for part in parts for verdict in part.rows]
