"""The one loader of judges: it alone takes the class of a method by its name.

What a judge needs is imported when one is made, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlaif.engines.base import Engine
from rlaif.files.own import is_named
from rlaif.judges.methods import METHODS
from rlaif.judges.settings import JudgingSettings

if TYPE_CHECKING:
    from rlaif.judges.adaptive import AdaptiveJudge
    from rlaif.judges.base import EngineJudge
    from rlaif.judges.own import OwnJudge

    AnyJudge = EngineJudge | AdaptiveJudge | OwnJudge


def make_judge(engine: Engine, settings: JudgingSettings) -> AnyJudge:
    """The judge of a method by an engine. One of somebody's own takes its engine alone."""
    made: Any = judge_class(settings.method)
    judge: AnyJudge = made(engine) if is_named(settings.method) else made(engine, settings)
    return judge


def judge_class(name: str) -> type[AnyJudge]:
    """The class of a method's judge. ConfigError where one of somebody's own cannot be loaded or
    lacks something that a judge has."""
    if name not in METHODS:
        from rlaif.judges.own import own_judge

        return own_judge(name)
    module, _, inner = METHODS[name].judge.partition(":")
    found: type[AnyJudge] = getattr(import_module(module), inner)
    return found
