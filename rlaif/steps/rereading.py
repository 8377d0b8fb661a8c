"""Verdicts that are stored, read anew at another threshold: nothing is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlaif.judges.base import Principles, expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.records import Order, Pair, Verdict
from rlaif.steps.executors import Sink, chunks

READ = 1_024  # pairs at a time


def reread(
    pairs: Iterable[Pair],
    judge: PairwiseJudge,
    min_mass: float,
    principles: Principles,
    orders: Sequence[Order],
    sink: Sink[Verdict],
) -> None:
    """Writes what the judge would say of the pairs, where the sink has what it said when its
    threshold was `min_mass`."""
    find, fingerprint = sink.finder(), judge.fingerprint_at(min_mass)
    for some in chunks(pairs, READ):
        asks = {judge.key(ask): ask for ask in expand(some, principles, orders)}
        known = find(list(asks))
        then = {k: judge.key_by(fingerprint, a) for k, a in asks.items() if k not in known}
        found = find(list(then.values()))
        rows = [judge.reread(asks[k], found[old]) for k, old in then.items() if old in found]
        if rows:
            sink.append(rows)
