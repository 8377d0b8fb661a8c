"""Run a step over a store: skip what is done, write the rest chunk by chunk, resume after any kill.

A chunk is a fixed stretch of the input and is written whole or not at all. So a resumed run puts
the same work into the same batches as an uninterrupted one, and ends with the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Engine, Sampling
from rlaif.errors import EngineError
from rlaif.judges.base import Ask, Judge, expand
from rlaif.preferences import Aggregate, aggregate
from rlaif.records import ORDERS, Completion, Order, Pair, Preference, Prompt, Verdict
from rlaif.sampling import completion_keys, sample_prompts

T = TypeVar("T")
Row = TypeVar("Row", Verdict, Completion)
R_contra = TypeVar("R_contra", Verdict, Completion, contravariant=True)
Progress = Callable[[int, int | None], None]  # (items done, items in all or None if unknown)


class Sink(Protocol[R_contra]):
    """Where rows go and which exist already: a table of a run directory, or memory."""

    def keys(self) -> set[str]: ...

    def append(self, records: Sequence[R_contra]) -> None: ...


@dataclass
class Memory(Sink[Row]):
    """Rows kept in memory, for a notebook."""

    rows: list[Row] = field(default_factory=list)

    def keys(self) -> set[str]:
        return {row.key for row in self.rows}

    def append(self, records: Sequence[Row]) -> None:
        self.rows.extend(records)


@dataclass(slots=True)
class Done:
    """What a stage did: items gone over, rows made now and found from before."""

    items: int = 0
    new_rows: int = 0
    old_rows: int = 0


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def run_judge(
    pairs: Iterable[Pair],
    judge: Judge,
    principles: Sequence[Principle],
    sink: Sink[Verdict],
    *,
    orders: Sequence[Order] = ORDERS,
    chunk: int = 64,
    max_not_finite: float = 0.01,
    total: int | None = None,
    on_progress: Progress | None = None,
) -> Done:
    """Judges what is not yet judged. A chunk is `chunk` pairs with all their asks.

    EngineError when more than `max_not_finite` of the new verdicts abstained because the model's
    log-probabilities were not finite: a broken model must not label a data set.
    """
    known = sink.keys()
    done = Done()
    reasons: Counter[str] = Counter()
    for part in chunks(pairs, chunk):
        asks: dict[str, Ask] = {}  # a pair that stands twice in the input is judged once
        for ask in expand(part, principles, orders):
            key = judge.key(ask)
            if key in known:
                done.old_rows += 1
            else:
                asks.setdefault(key, ask)
        verdicts = judge.judge(list(asks.values())) if asks else []
        reasons.update(v.reason for v in verdicts if v.reason)
        done.items += len(part)
        done.new_rows += len(verdicts)
        _refuse_not_finite(reasons["not_finite"], done.new_rows, max_not_finite, judge.name)
        if verdicts:
            sink.append(verdicts)
            known.update(asks)
        if on_progress:
            on_progress(done.items, total)
    return done


def _refuse_not_finite(bad: int, made: int, limit: float, name: str) -> None:
    if bad > max(limit * made, 0):
        raise EngineError(
            f"{bad} of {made} verdicts of {name} have log-probabilities that are not finite "
            f"(limit {limit:.1%}). The weights or the dtype are broken: try dtype=float32, or "
            "check the checkpoint. What was judged before this chunk is kept."
        )


def run_sampling(
    prompts: Iterable[Prompt],
    engine: Engine,
    sampling: Sampling,
    sink: Sink[Completion],
    *,
    policy: str | None = None,
    chunk: int = 64,
    total: int | None = None,
    on_progress: Progress | None = None,
) -> Done:
    """Samples what is not yet sampled. A chunk is `chunk` prompts with all their samples."""
    known = sink.keys()
    done = Done()
    for part in chunks(prompts, chunk):
        wanted = {p.id: completion_keys(engine, sampling, p) for p in part}
        todo = [p for p in part if not known.issuperset(wanted[p.id])]
        made = sample_prompts(engine, todo, sampling, policy) if todo else []
        new = [c for c in made if c.key not in known]
        done.items += len(part)
        done.new_rows += len(new)
        done.old_rows += sum(len(wanted[p.id]) for p in part) - len(new)
        if new:
            sink.append(new)
            known.update(c.key for c in new)
        if on_progress:
            on_progress(done.items, total)
    return done


def label_pairs(
    pairs: Sequence[Pair],
    judge: Judge,
    constitution: Constitution | Sequence[Principle],
    *,
    orders: Sequence[Order] = ORDERS,
    rule: Aggregate = "mean",
    principle_margin: float = 0.0,
    min_margin: float = 0.0,
    on_progress: Progress | None = None,
) -> list[Preference]:
    """Judges the pairs in memory and aggregates: the whole of labelling for a notebook."""
    principles = constitution.principles if isinstance(constitution, Constitution) else constitution
    memory: Memory[Verdict] = Memory()
    run_judge(
        pairs, judge, principles, memory,
        orders=orders, total=len(pairs), on_progress=on_progress,
    )  # fmt: skip
    return aggregate(
        pairs, memory.rows, rule=rule, orders=orders, min_margin=min_margin,
        principle_margin=principle_margin, weights={p.id: p.weight for p in principles},
    )  # fmt: skip
