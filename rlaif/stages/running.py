"""Sampling and labelling by the executor that the config names: in this process, or on Ray."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from rlaif.config import Config
from rlaif.engines.base import Engine, Sampling, weights_of
from rlaif.engines.load import load_engine
from rlaif.engines.settings import ModelSettings
from rlaif.engines.tokens import fix_date
from rlaif.judges.base import Principles
from rlaif.judges.load import judge_class, make_judge
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Completion, Order, Pair, Prompt, Verdict
from rlaif.steps import executors
from rlaif.steps.executors import Finished, Item, Judged, Row, Sink

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge


@dataclass(slots=True)
class Reasoned:
    """Verdicts before which the judge wrote something, and what that cost."""

    verdicts: int = 0
    tokens: int = 0  # decoded
    thoughts: int = 0
    thoughts_cut: int = 0  # closed at their budget

    def counted(self, stream: Iterable[Judged]) -> Iterator[Judged]:
        """The same chunks, counted as they pass."""
        for part in stream:
            wrote = [v.tokens for v in part.rows if v.rationales or v.thoughts]
            self.verdicts += len(wrote)
            self.tokens += sum(wrote)
            self.thoughts += sum(len(v.thoughts) for v in part.rows)
            self.thoughts_cut += sum(v.thoughts_cut for v in part.rows)
            yield part

    def facts(self) -> dict[str, int]:
        """For the manifest: of all the stage's verdicts, those from before included."""
        if not self.verdicts:
            return {}
        found = {"reasoned_verdicts": self.verdicts, "reasoning_tokens": self.tokens}
        if self.thoughts:
            found |= {"thoughts": self.thoughts, "thoughts_cut": self.thoughts_cut}
        return found


@dataclass(frozen=True, slots=True)
class Work(Generic[Item, Row]):
    """A stage's chunks, and what the model that does them says: `spent` and `about` at their end.

    `about` tells `fingerprint` and `device`; a judge adds `template` and `template_hash`.
    """

    stream: Iterator[Finished[Item, Row]]
    spent: Callable[[], dict[str, Any]]
    about: Callable[[], dict[str, Any]]


def judging(
    config: Config,
    section: JudgingSettings,
    judge: Callable[[], AnyJudge],
    pairs: Iterable[Pair],
    principles: Principles,
    orders: Sequence[Order],
    sink: Sink[Verdict],
) -> Work[Pair, Verdict]:
    """Labelling by the judge of a section, or a juror. `judge` gives this process's own, loaded
    only if it is needed."""
    limit = section.max_not_finite
    if config.executor == "ray":
        from rlaif.steps import executors_ray

        tally = executors_ray.Tally()
        far = executors_ray.judge_stream(
            pairs,
            partial(load_judge, section, config.threads, config.date),
            about_judge,
            principles,
            sink,
            orders=orders,
            chunk=config.chunk,
            max_not_finite=limit,
            workers=config.ray,
            tally=tally,
            together=judge_class(section.method).together,
        )
        return Work(far, tally.usage, lambda: tally.about)
    own = judge()
    before = own.engine.usage.snapshot()
    near = executors.judge_stream(
        pairs, own, principles, sink, orders=orders, chunk=config.chunk, max_not_finite=limit
    )
    return Work(near, partial(spent, own.engine, before), partial(about_judge, own))


def sampling(
    config: Config,
    policy: Callable[[], Engine],
    prompts: Iterable[Prompt],
    settings: Sampling,
    sink: Sink[Completion],
) -> Work[Prompt, Completion]:
    """Sampling by the config. `policy` gives this process's own, loaded only if it is needed."""
    if config.executor == "ray":
        from rlaif.steps import executors_ray

        tally = executors_ray.Tally()
        far = executors_ray.sample_stream(
            prompts,
            partial(load_policy, config.policy, config.threads, config.date),
            about_engine,
            settings,
            sink,
            chunk=config.chunk,
            workers=config.ray,
            tally=tally,
        )
        return Work(far, tally.usage, lambda: tally.about)
    own = policy()
    before = own.usage.snapshot()
    near = executors.sample_stream(prompts, own, settings, sink, chunk=config.chunk)
    return Work(near, partial(spent, own, before), partial(about_engine, own))


def load_policy(
    config: ModelSettings, threads: int | None, date: datetime.date | None = None
) -> Engine:
    """An engine by its section, on a worker; `date` is the run's, for chat templates that ask."""
    if date is not None:
        fix_date(date)
    if threads and config.engine != "http":
        import torch

        torch.set_num_threads(threads)
    return load_engine(config.model, config)


def load_judge(
    config: JudgingSettings, threads: int | None, date: datetime.date | None = None
) -> AnyJudge:
    """The judge by its section, on a worker."""
    return make_judge(load_policy(config, threads, date), config)


def about_engine(engine: Engine) -> dict[str, Any]:
    """What the manifest tells of a model."""
    return {
        "fingerprint": engine.fingerprint,
        "weights": weights_of(engine),
        "device": engine.device,
    }


def about_judge(judge: AnyJudge) -> dict[str, Any]:
    """What the manifest tells of a judge."""
    return judge.about()


def spent(engine: Engine, before: Mapping[str, float]) -> dict[str, Any]:
    """What the engine did since `before`."""
    now = engine.usage.snapshot()
    return {k: now[k] - before.get(k, 0) for k in now}
