"""Sampling and labelling by the executor that the config names: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from rlaif import executors
from rlaif.config import Config, EngineConfig, JudgeConfig
from rlaif.constitution import Principle
from rlaif.engines.base import Engine, Sampling, load_engine
from rlaif.executors import Finished, Item, Row, Sink
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.records import Completion, Order, Pair, Prompt, Verdict

if TYPE_CHECKING:
    from rlaif.executors_ray import Workers


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
    judge: Callable[[], PairwiseJudge],
    pairs: Iterable[Pair],
    principles: Sequence[Principle],
    orders: Sequence[Order],
    sink: Sink[Verdict],
) -> Work[Pair, Verdict]:
    """Labelling by the config. `judge` gives this process's own, loaded only if it is needed."""
    limit = config.judge.max_not_finite
    if config.executor == "ray":
        from rlaif import executors_ray

        tally = executors_ray.Tally()
        far = executors_ray.judge_stream(
            pairs, partial(load_judge, config.judge, config.threads), about_judge, principles, sink,
            orders=orders, chunk=config.chunk, max_not_finite=limit, workers=workers(config),
            tally=tally,
        )  # fmt: skip
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
        from rlaif import executors_ray

        tally = executors_ray.Tally()
        far = executors_ray.sample_stream(
            prompts, partial(load_policy, config.policy, config.threads), about_engine, settings,
            sink, chunk=config.chunk, workers=workers(config), tally=tally,
        )  # fmt: skip
        return Work(far, tally.usage, lambda: tally.about)
    own = policy()
    before = own.usage.snapshot()
    near = executors.sample_stream(prompts, own, settings, sink, chunk=config.chunk)
    return Work(near, partial(spent, own, before), partial(about_engine, own))


def workers(config: Config) -> Workers:
    """The `ray` section as the executor takes it."""
    from rlaif.executors_ray import Workers

    given = config.ray
    return Workers(given.workers, given.gpus, given.cpus, given.address)


def load_policy(config: EngineConfig, threads: int | None) -> Engine:
    """An engine by its section, on a worker."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    return load_engine(config.model, config.engine, **config.options())


def load_judge(config: JudgeConfig, threads: int | None) -> PairwiseJudge:
    """The judge by its section, on a worker."""
    return make_judge(config, load_policy(config, threads))


def make_judge(config: JudgeConfig, engine: Engine) -> PairwiseJudge:
    """The judge of a section, with its engine loaded."""
    return PairwiseJudge(engine, template=config.template, min_mass=config.min_mass)


def about_engine(engine: Engine) -> dict[str, Any]:
    """What the manifest tells of a model."""
    return {"fingerprint": engine.fingerprint, "device": engine.device}


def about_judge(judge: PairwiseJudge) -> dict[str, Any]:
    """What the manifest tells of a judge."""
    return {
        "fingerprint": judge.fingerprint,
        "template": judge.template_name,
        "template_hash": judge.template.hash,
        "device": judge.engine.device,
    }


def spent(engine: Engine, before: Mapping[str, float]) -> dict[str, Any]:
    """What the engine did since `before`."""
    now = engine.usage.snapshot()
    return {k: now[k] - before.get(k, 0) for k in now}
