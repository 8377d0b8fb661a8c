"""Sampling and labelling by the executor that the config names: in this process, or on Ray."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rlaif.config import Config
from rlaif.engines.base import Engine, weights_of
from rlaif.engines.load import load_engine
from rlaif.engines.settings import ModelSettings
from rlaif.engines.tokens import fix_date
from rlaif.judges.load import make_judge
from rlaif.judges.settings import JudgingSettings
from rlaif.steps.executors import Executor, Judged, Local, Model

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


def executor_of(config: Config) -> Executor:
    """The executor that the config names. Ray is loaded only where it is asked for."""
    if config.executor == "ray":
        from rlaif.steps.executors_ray import OnRay

        return OnRay(config.chunk, config.ray)
    return Local(config.chunk)


def policy_of(config: Config, here: Callable[[], Engine]) -> Model[Engine]:
    """The config's policy as executors take it; `here` gives this process's own."""
    there = partial(load_policy, config.policy, config.threads, config.date, config.cpu_kernels)
    return Model(here, there, about_engine)


def judge_of(
    config: Config, section: JudgingSettings, here: Callable[[], AnyJudge]
) -> Model[AnyJudge]:
    """The judge of a section as executors take it; `here` gives this process's own."""
    there = partial(load_judge, section, config.threads, config.date, config.cpu_kernels)
    return Model(here, there, about_judge)


def load_policy(
    config: ModelSettings,
    threads: int | None,
    date: datetime.date | None = None,
    cpu_kernels: bool = True,
) -> Engine:
    """An engine by its section, on a worker; `date` is the run's, for chat templates that ask."""
    if date is not None:
        fix_date(date)
    if config.engine != "http":
        import torch

        from rlaif.engines.faster import apply

        apply.switch(cpu_kernels)
        if threads:
            torch.set_num_threads(threads)
    return load_engine(config.model, config)


def load_judge(
    config: JudgingSettings,
    threads: int | None,
    date: datetime.date | None = None,
    cpu_kernels: bool = True,
) -> AnyJudge:
    """The judge by its section, on a worker."""
    return make_judge(load_policy(config, threads, date, cpu_kernels), config)


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
