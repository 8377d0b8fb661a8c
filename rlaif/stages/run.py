"""One run at work, and where a stage tells people what it does."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlaif.config import Config
from rlaif.constitution import Constitution, Principle, require
from rlaif.engines.base import Engine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import ModelSettings
from rlaif.engines.tokens import fix_date
from rlaif.errors import DataError
from rlaif.judges.base import Principles
from rlaif.judges.draw import Draw
from rlaif.judges.load import judge_class, make_judge
from rlaif.judges.settings import JudgingSettings
from rlaif.records import ORDERS, Order, Pair, content_id
from rlaif.steps.executors import Progress
from rlaif.store import RunStore

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

READ_PAIRS = 1_024  # pairs read at a time


class Reporter(Protocol):
    """Where a stage tells people what it does."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, title: str, total: int | None) -> AbstractContextManager[Progress]: ...


def is_finished(folder: Path) -> bool:
    """Whether a model of the run is whole: its training writes the metrics last."""
    return (folder / "config.json").is_file() and (folder / "metrics.json").is_file()


def began(store: RunStore) -> datetime.date | None:
    """The day that the run's chat templates were told before; None where it is not yet said."""
    kept = (store.read_manifest().get("run") or {}).get("date")
    try:
        return None if kept is None else datetime.date.fromisoformat(kept)
    except (TypeError, ValueError):
        raise DataError(
            f"{store.path('manifest.json')}: run.date: expected a day such as 2026-01-31, got "
            f"{kept!r}"
        ) from None


def _engine_id(config: ModelSettings) -> str:
    return content_id(config.model, config.engine, config.options())


def _set_up_torch(config: Config) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours tells the rate and the time left
    from rlaif.engines.faster import apply

    apply.switch(config.cpu_kernels)
    if config.threads:
        torch.set_num_threads(config.threads)


def orders_asked(section: JudgingSettings) -> tuple[Order, ...]:
    """The orders in which the judge of a section is asked."""
    if not judge_class(section.method).both_orders:
        return ("first_second",)  # the other would be the same verdict again
    return ORDERS if section.orders == "both" else ("first_second",)


@dataclass
class Run:
    """One run at work: its config, its directory, and the engines that are loaded."""

    config: Config
    store: RunStore
    reporter: Reporter
    local_models: bool = True
    """Whether PyTorch is set up at once. Without it, the first engine that is no server does so:
    only for stages that have all their models from `engine`."""
    _engines: dict[str, Engine] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        """Whether this process writes. Others of `accelerate launch` only look at the store."""
        return not self.store.read_only

    def __post_init__(self) -> None:
        if self.local_models:
            _set_up_torch(self.config)
        date = self.config.date or began(self.store) or datetime.date.today()
        self.config = self.config.model_copy(update={"date": date})
        fix_date(date)
        self.constitution = Constitution.load(self.config.constitution)

    def engine(self, config: ModelSettings) -> Engine:
        """The engine of a section, loaded once."""
        name = _engine_id(config)
        if name not in self._engines:
            if not (self.local_models or config.engine == "http"):
                _set_up_torch(self.config)
            self._engines[name] = load_engine(config.model, config)
        return self._engines[name]

    def release(self, config: ModelSettings, keep: Iterable[ModelSettings] = ()) -> None:
        """Closes the engine of a section, unless one of `keep` has the same."""
        if _engine_id(config) in map(_engine_id, keep):
            return
        engine = self._engines.pop(_engine_id(config), None)
        if engine is not None:
            engine.close()

    def judge(self, section: JudgingSettings | None = None) -> AnyJudge:
        """The run's judge, or the juror of a section."""
        require(self.principles(), "label")
        section = section or self.config.judge
        return make_judge(self.engine(section), section)

    def principles(self) -> tuple[Principle, ...]:
        """All that may be asked about."""
        wanted = self.config.judge.principles
        return self.constitution.principles if wanted == "all" else self.constitution.select(wanted)

    def asked(self) -> Principles:
        """Those that a pair is asked about."""
        judge, every = self.config.judge, self.principles()
        if judge.draw is None:
            return every
        return Draw(every, judge.draw, judge.draw_weighted, judge.draw_seed)

    def under(self, principles: Sequence[Principle]) -> Run:
        """The same run with the same engines, whose judges are asked about all of these principles
        of every pair in the place of its own."""
        judge = self.config.judge.model_copy(update={"principles": "all", "draw": None})
        other = copy(self)
        other.config = self.config.model_copy(update={"judge": judge})
        other.constitution = Constitution(name="candidates", principles=tuple(principles))
        return other

    def pairs(self) -> Iterator[Pair]:
        """The run's pairs, read some at a time."""
        return chain.from_iterable(self.store.table("pairs").iter_batches(READ_PAIRS))

    def orders(self, section: JudgingSettings | None = None) -> tuple[Order, ...]:
        """Those in which the run's judge, or the juror of a section, is asked."""
        return orders_asked(section or self.config.judge)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
