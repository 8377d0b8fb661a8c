"""The same steps on Ray Data: one actor a GPU, over the same store.

A chunk is a block, so a pair's requests stay together on one worker and its prefixes stay shared.
Workers load an engine, make the keys, leave out what is known and send back the rest; this process
is the only writer. So a run may start local and end on Ray, or the other way round. A worker that
dies is started again, and the chunk it had is done by another; Ray keeps the order.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Generic

from rlaif.engines.base import Engine, Sampling
from rlaif.errors import ConfigError, RlaifError, missing_extra
from rlaif.files import own
from rlaif.judges.base import Principles
from rlaif.records import Completion, Order, Pair, Prompt, Verdict
from rlaif.steps.executors import (
    Asking,
    Finished,
    FiniteGuard,
    Item,
    JudgeByEngine,
    M,
    Model,
    Row,
    Sink,
    Work,
    asks_by_key,
    chunks,
    each_once,
    judge_missing,
    judging_chunks,
    overlapped,
    prompts_by_key,
    sample_missing,
    with_found,
)
from rlaif.steps.pace import pace_of
from rlaif.steps.settings import RaySettings
from rlaif.store.keyindex import KeySet


@dataclass(frozen=True, slots=True)
class Answer(Generic[Item, Row]):
    """What a worker sends back for a chunk."""

    items: list[Item]
    keys: list[str]
    new: list[Row]
    usage: dict[str, float]  # of the worker's engine, since it was loaded
    about: dict[str, Any]  # what the worker's model says of itself
    worker: str = ""


@dataclass(slots=True)
class Tally:
    """What the workers said of themselves."""

    about: dict[str, Any] = field(default_factory=dict)
    _usage: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, answer: Answer[Any, Any]) -> None:
        self.about = answer.about
        self._usage[answer.worker] = answer.usage

    def usage(self) -> dict[str, float]:
        """The sum over the workers, those that died included as far as they told."""
        names = {name for usage in self._usage.values() for name in usage}
        return {n: sum(u.get(n, 0) for u in self._usage.values()) for n in sorted(names)}


Task = Callable[[list[Any], KeySet], Answer[Any, Any]]


# -------------------------------------------------------------------------------- on the workers


def judge_task(
    load: Callable[[], JudgeByEngine],
    about: Callable[[Any], dict[str, Any]],
    principles: Principles,
    orders: Sequence[Order],
) -> Task:
    """Loads the judge and returns what it does with a chunk."""
    judge = load()
    pace = pace_of(judge.engine)

    def task(pairs: list[Pair], known: KeySet) -> Answer[Pair, Verdict]:
        asks = asks_by_key(pairs, judge, principles, orders)
        new = list(chain(*judge_missing(judge, asks, known.among(list(asks)), pace)))
        return Answer(pairs, list(asks), new, judge.engine.usage.snapshot(), about(judge))

    return task


def sample_task(
    load: Callable[[], Engine],
    about: Callable[[Engine], dict[str, Any]],
    sampling: Sampling,
) -> Task:
    """Loads the policy and returns what it does with a chunk."""
    engine = load()
    pace = pace_of(engine)

    def task(prompts: list[Prompt], known: KeySet) -> Answer[Prompt, Completion]:
        wanted = prompts_by_key(prompts, engine, sampling)
        old = known.among(list(wanted))
        new = list(chain(*sample_missing(engine, sampling, wanted, old, None, pace)))
        return Answer(prompts, list(wanted), new, engine.usage.snapshot(), about(engine))

    return task


class _Worker:
    """The actor. Our own errors travel as results, so that they arrive as they were raised."""

    def __init__(self, load: Callable[[], Task], known: KeySet) -> None:
        self._known = known
        self._name = uuid.uuid4().hex  # a worker that is started again counts its usage anew
        self._task: Task | None = None
        self._load = load

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        results = [self._do(pickle.loads(chunk)) for chunk in batch["chunk"].to_pylist()]
        return pa.table({"result": pa.array(map(pickle.dumps, results), pa.binary())})

    def _do(self, items: list[Any]) -> Answer[Any, Any] | RlaifError:
        try:
            if self._task is None:
                self._task = self._load()
            return replace(self._task(items, self._known), worker=self._name)
        except RlaifError as error:
            return error


# -------------------------------------------------------------------------------- in this process


@dataclass(frozen=True, slots=True)
class OnRay:
    """An executor whose work is done by the workers of a Ray cluster; this process has no model."""

    chunk: int = 64
    workers: RaySettings = field(default_factory=RaySettings)

    def own(self, model: Model[M]) -> M | None:
        del model  # each worker has one of its own
        return None

    def sample(
        self,
        prompts: Iterable[Prompt],
        policy: Model[Engine],
        sampling: Sampling,
        sink: Sink[Completion],
    ) -> Work[Prompt, Completion]:
        task = _Partial(sample_task, (policy.there, policy.about, sampling))
        parts = chunks(each_once(prompts), self.chunk)
        return self._work(parts, task, sink, lambda _: None)

    def judge(
        self, pairs: Iterable[Pair], judge: Model[Any], asking: Asking, sink: Sink[Verdict]
    ) -> Work[Pair, Verdict]:
        principles = asking.principles
        asked = principles if callable(principles) else tuple(principles)
        task = _Partial(judge_task, (judge.there, judge.about, asked, tuple(asking.orders)))
        parts = judging_chunks(pairs, self.chunk, together=asking.together)
        return self._work(parts, task, sink, FiniteGuard(asking.limit, "the judge").check)

    def _work(
        self,
        parts: Iterable[list[Item]],
        task: Callable[[], Task],
        sink: Sink[Row],
        check: Callable[[Sequence[Row]], None],
    ) -> Work[Item, Row]:
        tally = Tally()
        stream = _stream(parts, task, sink, self.workers, tally, check)
        return Work(stream, tally.usage, lambda: tally.about)


@dataclass(frozen=True, slots=True)
class _Partial:
    """`function(*arguments)`, to be called on the worker."""

    function: Callable[..., Task]
    arguments: tuple[Any, ...]
    folders: tuple[str, ...] = field(default_factory=own.looked_in)  # of code of people's own

    def __call__(self) -> Task:
        own.look_in(self.folders)
        return self.function(*self.arguments)


def _stream(
    parts: Iterable[list[Item]],
    load: Callable[[], Task],
    sink: Sink[Row],
    workers: RaySettings,
    tally: Tally,
    check: Callable[[Sequence[Row]], None],
) -> Iterator[Finished[Item, Row]]:
    find, known = sink.finder(), KeySet(sink.key_batches())

    def complete(answer: Answer[Item, Row]) -> Finished[Item, Row]:
        check(answer.new)
        tally.add(answer)
        return with_found(answer.items, answer.keys, answer.new, find(answer.keys))

    answers = _answers(parts, load, known, workers)
    try:
        yield from overlapped(answers, complete, lambda part: sink.append(part.unsaved))
    finally:
        answers.close()  # stops the workers, whatever happened


def _answers(
    parts: Iterable[list[Any]], load: Callable[[], Task], known: KeySet, workers: RaySettings
) -> Generator[Answer[Any, Any], None, None]:
    """The workers' answers in the order of the chunks."""
    import pyarrow as pa

    with _cluster(workers) as ray:
        # Into Ray's object store at once, which spills to disk: the chunks are not kept here.
        blocks = [ray.put(pa.table({"chunk": [pickle.dumps(part)]})) for part in parts]
        if not blocks:
            return
        gpus, count = _share(workers, ray.cluster_resources().get("GPU", 0.0))
        answers = ray.data.from_arrow_refs(blocks).map_batches(
            _Worker,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=workers.cpus,
            num_gpus=gpus,
            fn_constructor_args=(load, known),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(blocks))),
        )
        answers.context.execution_options.preserve_order = True
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            for result in batch["result"].to_pylist():
                answer = pickle.loads(result)
                if isinstance(answer, RlaifError):
                    raise answer
                yield answer


def _share(workers: RaySettings, gpus: float) -> tuple[float, int]:
    """GPUs a worker, and the number of workers."""
    each = workers.gpus if workers.gpus is not None else float(gpus > 0)
    if each > gpus:
        raise ConfigError(f"a worker is to have {each:g} GPUs, but the Ray cluster has {gpus:g}")
    default = max(math.floor(gpus / each), 1) if each else 1
    return each, workers.workers or default


@contextmanager
def _cluster(workers: RaySettings) -> Iterator[Any]:
    """Ray, connected and quiet; a cluster that was started here is stopped again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning a worker
    # Ray Data's own actors make Ray's core warn of how they are made; failures come as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_extra("Ray", "ray", "executor: ray") from error
    mine = not ray.is_initialized()
    if mine:
        _start(ray, workers)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
        if mine:
            ray.shutdown()


def _start(ray: Any, workers: RaySettings) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise ConfigError(f"no Ray cluster at '{address}': {error}") from error
        return
    # Reading takes CPUs of its own: actors on all of them would wait for input for ever.
    needed = math.ceil((workers.workers or 1) * workers.cpus) + 2
    with _unheard():
        ray.init(include_dashboard=False, num_cpus=max(os.cpu_count() or 1, needed), **quiet)


@contextmanager
def _unheard() -> Iterator[None]:
    """Turns standard error away: Ray's core tells there that it has been told to be quiet."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
