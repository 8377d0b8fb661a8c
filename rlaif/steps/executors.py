"""Run a step over a store: skip what is done, write the rest chunk by chunk, resume after any kill.

A stage has an `Executor` do it: `Local`, in this process, or `executors_ray.OnRay`, on many
machines over the same store. Their rows are the same.

A chunk is a fixed stretch of the input. One that takes some seconds is written whole or not at all,
so that a resumed run puts the same work into the same batches as an uninterrupted one and ends with
the same rows. One that takes longer is written as it is made and, beyond half a minute, cut into
batches (`rlaif.steps.pace`): then a resumed run has the same rows up to the rounding of a batch.

While the engine works on a chunk, the next one is read and looked up, and the one before is
written: three chunks are in memory, whatever the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Engine, Sampling, hear, listener
from rlaif.errors import EngineError
from rlaif.judges.base import Ask, Judge, Principles, expand
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.judges.protocols import (
    require_engine,
    require_judge,
    require_pairs,
    require_principles,
)
from rlaif.records import ORDERS, Completion, Order, Pair, Preference, Prompt, Revision, Verdict
from rlaif.steps.pace import Pace, Saver, pace_of, paced
from rlaif.steps.sampling import completion_keys, sample_prompts

T = TypeVar("T")
U = TypeVar("U")
Item = TypeVar("Item", Pair, Prompt)
Row = TypeVar("Row", Verdict, Completion, Revision)


class Progress(Protocol):
    """What is told of progress: items done, as a fraction while one is at work; items in all, None
    if unknown; and how many of those done were found done from before."""

    def __call__(self, done: float, total: int | None, found: float = 0) -> None: ...


class Sink(Protocol[Row]):
    """Where rows go and which exist already: a table of a run directory, or memory."""

    def finder(self) -> Callable[[Sequence[str]], Mapping[str, Row]]:
        """A function that finds, by key, the rows that are there now."""
        ...

    def key_batches(self) -> Iterable[Sequence[str]]:
        """The keys of all rows, some at a time."""
        ...

    def append(self, records: Sequence[Row]) -> None: ...


@dataclass
class Memory(Sink[Row]):
    """Rows kept in memory, for a notebook."""

    rows: list[Row] = field(default_factory=list)

    def finder(self) -> Callable[[Sequence[str]], Mapping[str, Row]]:
        found = {row.key: row for row in self.rows}
        return lambda keys: {key: found[key] for key in keys if key in found}

    def key_batches(self) -> Iterable[Sequence[str]]:
        return [[row.key for row in self.rows]]

    def append(self, records: Sequence[Row]) -> None:
        self.rows.extend(records)


@dataclass(slots=True)
class Done:
    """What a stage did: items gone over, rows made now and found from before."""

    items: int = 0
    new_rows: int = 0
    old_rows: int = 0


@dataclass(frozen=True, slots=True)
class Finished(Generic[Item, Row]):
    """A chunk of the input with all its rows, those made now (`new`) and those from before.

    `unsaved`: those of `new` that are yet to be written.
    """

    items: list[Item]
    rows: list[Row]
    new: list[Row]
    unsaved: list[Row]


Judged = Finished[Pair, Verdict]
Sampled = Finished[Prompt, Completion]


def with_found(
    items: list[Item],
    keys: Sequence[str],
    new: list[Row],
    found: Mapping[str, Row],
    unsaved: list[Row] | None = None,
) -> Finished[Item, Row]:
    """A chunk with its rows in the order of its keys. `unsaved` is all of `new` if not given."""
    made = {row.key: row for row in new}
    rows = [made[key] if key in made else found[key] for key in keys]
    return Finished(items, rows, new, new if unsaved is None else unsaved)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def judging_chunks(pairs: Iterable[Pair], size: int, *, together: bool) -> Iterator[list[Pair]]:
    """The pairs' chunks, each pair once. `together` keeps neighbours of one prompt in one chunk,
    which then is longer: what a judge sees side by side must not depend on the chunk."""
    once = each_once(pairs)
    if not together:
        yield from chunks(once, size)
        return
    part: list[Pair] = []
    for _, neighbours in groupby(once, key=lambda pair: pair.prompt.id):
        if len(part) >= size:
            yield part
            part = []
        part += neighbours
    if part:
        yield part


def each_once(items: Iterable[Item]) -> Iterator[Item]:
    """The items without repetitions: what stands twice in the input is worked on once."""
    seen: set[str] = set()
    for item in items:
        if item.id not in seen:
            seen.add(item.id)
            yield item


def counted(
    stream: Iterable[Finished[Item, Row]],
    done: Done,
    total: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Finished[Item, Row]]:
    """The same chunks, counted as they pass; what is told of a chunk at work is passed on."""
    found = 0.0  # items found done from before; the share of a chunk's rows is that of its items

    def told(items: float) -> None:
        if on_progress:
            on_progress(done.items + items, total, found)

    for part in heard(stream, told):
        old = len(part.rows) - len(part.new)
        done.items += len(part.items)
        done.new_rows += len(part.new)
        done.old_rows += old
        found += len(part.items) * old / max(len(part.rows), 1)
        told(0)
        yield part


# ------------------------------------------------------------------------------------ who does it

M = TypeVar("M")


class JudgeByEngine(Judge, Protocol):
    """A judge by an engine, whose usage is told."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class Model(Generic[M]):
    """An engine, or a judge by one, and how to come by it.

    `here` gives this process's own, loaded when it is first asked for. `there` loads one in another
    process, and so can be pickled. `about` is what the manifest tells of it: `fingerprint` and
    `device` at least.
    """

    here: Callable[[], M]
    there: Callable[[], M]
    about: Callable[[M], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked: the principles, which may be chosen pair by pair, and the orders.

    `together`: it wants all pairs of a prompt in one chunk. A stage fails when more than the share
    `limit` of the verdicts have log-probabilities that are not finite.
    """

    principles: Principles
    orders: Sequence[Order]
    together: bool
    limit: float


@dataclass(frozen=True, slots=True)
class Work(Generic[Item, Row]):
    """A stage's chunks, and what the model that does them says of itself.

    `about` is empty so long as it is not known, on Ray until the first chunk is done; `spent` is
    what the engine did for these chunks so far.
    """

    stream: Iterator[Finished[Item, Row]]
    spent: Callable[[], dict[str, Any]]
    about: Callable[[], dict[str, Any]]


class Executor(Protocol):
    """Where sampling and judging are done: in this process, or on the workers of a cluster."""

    def own(self, model: Model[M]) -> M | None:
        """The model, where it is in this process; None where only workers have it."""
        ...

    def sample(
        self,
        prompts: Iterable[Prompt],
        policy: Model[Engine],
        sampling: Sampling,
        sink: Sink[Completion],
    ) -> Work[Prompt, Completion]:
        """Samples what the sink does not have; the chunks are worked on as they are read."""
        ...

    def judge(
        self, pairs: Iterable[Pair], judge: Model[Any], asking: Asking, sink: Sink[Verdict]
    ) -> Work[Pair, Verdict]:
        """Judges what the sink does not have; the chunks are worked on as they are read."""
        ...


@dataclass(frozen=True, slots=True)
class Local:
    """Does the work in this process, `chunk` prompts or pairs at a time."""

    chunk: int = 64

    def own(self, model: Model[M]) -> M | None:
        return model.here()

    def sample(
        self,
        prompts: Iterable[Prompt],
        policy: Model[Engine],
        sampling: Sampling,
        sink: Sink[Completion],
    ) -> Work[Prompt, Completion]:
        engine = policy.here()
        before = engine.usage.snapshot()
        stream = sample_stream(prompts, engine, sampling, sink, chunk=self.chunk)
        return Work(stream, partial(spent, engine, before), partial(policy.about, engine))

    def judge(
        self, pairs: Iterable[Pair], judge: Model[Any], asking: Asking, sink: Sink[Verdict]
    ) -> Work[Pair, Verdict]:
        own = judge.here()
        before = own.engine.usage.snapshot()
        stream = judge_stream(
            pairs,
            own,
            asking.principles,
            sink,
            orders=asking.orders,
            chunk=self.chunk,
            max_not_finite=asking.limit,
        )
        return Work(stream, partial(spent, own.engine, before), partial(judge.about, own))


def spent(engine: Engine, before: Mapping[str, float]) -> dict[str, Any]:
    """What the engine did since `before`."""
    now = engine.usage.snapshot()
    return {k: now[k] - before.get(k, 0) for k in now}


# ------------------------------------------------------------------------------------- the chunks


class _End:
    """Stands after the last item of a stream."""


def heard(stream: Iterable[T], listener: Callable[[float], None]) -> Iterator[T]:
    """The same stream; what is told while its next item is made goes to `listener`."""
    iterator = iter(stream)
    while True:
        with hear(listener):
            item = next(iterator, _End())
        if isinstance(item, _End):
            return
        yield item


class Worked(Protocol):
    """A chunk of a stage, as far as progress is concerned."""

    @property
    def new(self) -> Sequence[object]: ...


Part = TypeVar("Part", bound=Worked)


def followed(
    stream: Iterable[Part], chunk: int, total: int, on_progress: Progress
) -> Iterator[Part]:
    """The same chunks, of `chunk` items each, while progress is told."""
    done = found = 0

    def told(items: float) -> None:
        on_progress(done + items, total, found)

    for part in heard(stream, told):
        size = min(chunk, total - done)
        done += size
        found += 0 if part.new else size
        told(0)
        yield part


def overlapped(
    items: Iterable[T], work: Callable[[T], U], write: Callable[[U], None]
) -> Iterator[U]:
    """`work` of each item in order, while the next item is made and the result before is written.

    The work is done in the caller's thread, so that Ctrl-C strikes there; whatever happens, what is
    being written is still written. A result is yielded once its writing has begun; all of them are
    written when the iterator ends.
    """
    source = iter(items)
    reader, writer = (ThreadPoolExecutor(1, f"rlaif-{name}") for name in ("read", "write"))
    with reader, writer:
        coming = reader.submit(lambda: list(islice(source, 1)))
        writing: Future[None] | None = None
        while item := coming.result():
            coming = reader.submit(lambda: list(islice(source, 1)))
            result = work(item[0])
            if writing is not None:
                writing.result()
            writing = writer.submit(write, result)
            yield result
        if writing is not None:
            writing.result()


# ----------------------------------------------------------------------------------------- judging


def judge_stream(
    pairs: Iterable[Pair],
    judge: Judge,
    principles: Principles,
    sink: Sink[Verdict],
    *,
    orders: Sequence[Order] = ORDERS,
    chunk: int = 64,
    max_not_finite: float = 0.01,
    pace: Pace | None = None,
) -> Iterator[Judged]:
    """Judges what is not yet judged and yields all verdicts, old and new, chunk by chunk.

    A chunk is `chunk` pairs with all their asks, or a few more for a judge that wants a prompt's
    pairs together. `pace` cuts it into batches where the judge is slow. `principles` may be chosen
    pair by pair, as by `Draw`. EngineError when more than `max_not_finite` of the new verdicts
    abstained because the model's log-probabilities were not finite: a broken model must not label a
    data set.
    """
    require_judge(judge)
    find, write = sink.finder(), one_at_a_time(sink.append)
    pace = pace or (pace_of(judge.engine) if isinstance(judge, ByEngine) else Pace())
    guard = FiniteGuard(max_not_finite, judge.name)

    def look_up(part: list[Pair]) -> tuple[list[Pair], dict[str, Ask], Mapping[str, Verdict]]:
        asks = asks_by_key(part, judge, principles, orders)
        return part, asks, find(list(asks))

    def answer(looked_up: tuple[list[Pair], dict[str, Ask], Mapping[str, Verdict]]) -> Judged:
        part, asks, found = looked_up
        saver, new = Saver(write), list[Verdict]()
        with hear(items_of(part, len(asks), len(found))):
            for made in judge_missing(judge, asks, found, pace):
                new += made
                guard.check(made, len(asks) - len(found) - len(new))
                saver.add(made)
        return with_found(part, list(asks), new, found, saver.rest)

    parts = map(look_up, judging_chunks(pairs, chunk, together=judge.together))
    return overlapped(parts, answer, lambda part: write(part.unsaved))


def one_at_a_time(write: Callable[[Sequence[Row]], None]) -> Callable[[Sequence[Row]], None]:
    """The same function, to be called from several threads."""
    lock = Lock()

    def locked(rows: Sequence[Row]) -> None:
        with lock:
            write(rows)

    return locked


def items_of(part: Sequence[object], rows: int, found: int) -> Callable[[float], None]:
    """Tells the share of a chunk's missing rows as the number of its items that are done."""
    outer = listener()
    return lambda share: outer(len(part) * (found + share * (rows - found)) / max(rows, 1))


def asks_by_key(
    pairs: Sequence[Pair], judge: Judge, principles: Principles, orders: Sequence[Order]
) -> dict[str, Ask]:
    """All asks of these pairs; two principles of one id and text make one ask."""
    asks: dict[str, Ask] = {}
    for ask in expand(pairs, principles, orders, together=judge.together):
        asks.setdefault(judge.key(ask), ask)
    return asks


def judged_before(
    pairs: Sequence[Pair],
    judge: Judge,
    principles: Principles,
    orders: Sequence[Order],
    find: Callable[[Sequence[str]], Mapping[str, Verdict]],
) -> list[Verdict]:
    """Those verdicts that are found and that the judge would give again, under these principles.

    Older ones (a principle since edited, another judge) are not among them.
    """
    asks = asks_by_key(pairs, judge, principles, orders)
    found = find(list(asks))
    return [found[key] for key in asks if key in found]


def judge_missing(
    judge: Judge, asks: Mapping[str, Ask], known: Container[str], pace: Pace
) -> Iterator[list[Verdict]]:
    """The verdicts on those asks whose keys are not known, batch by batch."""
    todo = [ask for key, ask in asks.items() if key not in known]
    if judge.together:
        return paced(todo, judge.judge, pace, unit=lambda ask: ask.pair.prompt.id, whole=True)
    return paced(todo, judge.judge, pace, unit=lambda ask: ask.pair.id)


@runtime_checkable
class ByEngine(Protocol):
    """A judge by an engine."""

    engine: Engine


class FiniteGuard:
    """Stops a stage whose model is broken, before its chunk is written."""

    def __init__(self, limit: float, judge: str) -> None:
        self.limit, self.judge = limit, judge
        self.bad = self.made = 0

    def check(self, verdicts: Sequence[Verdict], coming: int = 0) -> None:
        """Counts a batch's verdicts. `coming` are still to be made of its chunk: they may all be
        good, so that one bad verdict among the first few stops nothing."""
        self.made += len(verdicts)
        self.bad += Counter(v.reason for v in verdicts)["not_finite"]
        if self.bad > self.limit * (self.made + coming):
            raise EngineError(
                f"{self.bad} of {self.made} verdicts of {self.judge} have log-probabilities that "
                f"are not finite (limit {self.limit:.1%}). The weights or the dtype are broken: "
                "try dtype=float32, or check the checkpoint. What was judged before is kept."
            )


def run_judge(
    pairs: Iterable[Pair],
    judge: Judge,
    principles: Principles,
    sink: Sink[Verdict],
    *,
    orders: Sequence[Order] = ORDERS,
    chunk: int = 64,
    max_not_finite: float = 0.01,
    pace: Pace | None = None,
) -> Done:
    """`judge_stream` to its end, for those who read the verdicts from the sink."""
    done = Done()
    stream = judge_stream(
        pairs,
        judge,
        principles,
        sink,
        orders=orders,
        chunk=chunk,
        max_not_finite=max_not_finite,
        pace=pace,
    )
    for _ in counted(stream, done):
        pass
    return done


# ---------------------------------------------------------------------------------------- sampling


def sample_stream(
    prompts: Iterable[Prompt],
    engine: Engine,
    sampling: Sampling,
    sink: Sink[Completion],
    *,
    policy: str | None = None,
    chunk: int = 64,
    pace: Pace | None = None,
) -> Iterator[Sampled]:
    """Samples what is not yet sampled and yields all completions, old and new, chunk by chunk.

    A chunk is `chunk` prompts with all their samples, cut by `pace` where the engine is slow.
    """
    require_engine(engine)
    find, pace, write = sink.finder(), pace or pace_of(engine), one_at_a_time(sink.append)

    def look_up(
        part: list[Prompt],
    ) -> tuple[list[Prompt], dict[str, Prompt], Mapping[str, Completion]]:
        wanted = prompts_by_key(part, engine, sampling)
        return part, wanted, find(list(wanted))

    def answer(
        looked_up: tuple[list[Prompt], dict[str, Prompt], Mapping[str, Completion]],
    ) -> Sampled:
        part, wanted, found = looked_up
        saver, new = Saver(write), list[Completion]()
        with hear(items_of(part, len(wanted), len(found))):
            for made in sample_missing(engine, sampling, wanted, found, policy, pace):
                new += made
                saver.add(made)
        return with_found(part, list(wanted), new, found, saver.rest)

    parts = map(look_up, chunks(each_once(prompts), chunk))
    return overlapped(parts, answer, lambda part: write(part.unsaved))


def prompts_by_key(
    prompts: Sequence[Prompt], engine: Engine, sampling: Sampling
) -> dict[str, Prompt]:
    """The prompt of each wanted completion."""
    return {key: p for p in prompts for key in completion_keys(engine, sampling, p)}


def sample_missing(
    engine: Engine,
    sampling: Sampling,
    wanted: Mapping[str, Prompt],
    known: Container[str],
    policy: str | None,
    pace: Pace,
) -> Iterator[list[Completion]]:
    """The completions whose keys are not known, batch by batch."""
    todo = {prompt.id: prompt for key, prompt in wanted.items() if key not in known}

    def work(prompts: Sequence[Prompt]) -> list[Completion]:
        made = sample_prompts(engine, prompts, sampling, policy)
        return [c for c in made if c.key not in known]

    return paced(list(todo.values()), work, pace)


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
    """`sample_stream` to its end, for those who read the completions from the sink."""
    done = Done()
    stream = sample_stream(prompts, engine, sampling, sink, policy=policy, chunk=chunk)
    for _ in counted(stream, done, total, on_progress):
        pass
    return done


def label_pairs(
    pairs: Sequence[Pair],
    judge: Judge,
    constitution: Constitution | Sequence[Principle],
    preferences: PreferenceSettings | None = None,
    *,
    orders: Sequence[Order] = ORDERS,
    on_progress: Callable[[float, int | None], None] | None = None,
) -> list[Preference]:
    """Judges the pairs in memory and aggregates: the whole of labelling for a notebook.

    `preferences` says how verdicts become preferences. `on_progress(done, total)` is called with
    the number of pairs done, a fraction while one is at work, and of all pairs. TypeError for what
    is no judge, no pairs or no constitution.
    """
    require_judge(judge)
    require_pairs(pairs)
    require_principles(constitution)
    principles = constitution.principles if isinstance(constitution, Constitution) else constitution
    memory: Memory[Verdict] = Memory()

    def told(done: float, total: int | None, found: float = 0) -> None:
        del found
        if on_progress:
            on_progress(done, total)

    stream = judge_stream(pairs, judge, principles, memory, orders=orders)
    for _ in counted(stream, Done(), len(pairs), told):
        pass
    return aggregate(
        pairs,
        memory.rows,
        preferences,
        orders=orders,
        weights={p.id: p.weight for p in principles},
        tiers={p.id: p.tier for p in principles},
    )
