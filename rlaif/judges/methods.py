"""The methods of judging: the one list of them, and a judge of somebody's own beside it.

Everything that speaks of methods (the check of a config, the commands' help, what makes judges)
reads `METHODS`. Nothing here loads a judge before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from rlaif.files import own

if TYPE_CHECKING:
    from rlaif.judges.adaptive import AdaptiveJudge
    from rlaif.judges.base import EngineJudge
    from rlaif.judges.own import OwnJudge

    AnyJudge = EngineJudge | AdaptiveJudge | OwnJudge


@dataclass(frozen=True, slots=True)
class Method:
    """A method of judging.

    `judge` names its class, `module:Class`. `examples`: it takes worked examples. `thoughts`: it
    can read what a policy thought before the answers of a pair. `reasons`: it writes a rationale
    before the labels of a pair.
    """

    judge: str
    examples: bool = False
    thoughts: bool = False
    reasons: bool = False


METHODS = {
    "pairwise": Method("rlaif.judges.pairwise:PairwiseJudge", examples=True, thoughts=True),
    "cot": Method("rlaif.judges.cot:CotJudge", thoughts=True, reasons=True),
    "adaptive": Method(
        "rlaif.judges.adaptive:AdaptiveJudge", examples=True, thoughts=True, reasons=True
    ),
    "pointwise": Method("rlaif.judges.scores:PointwiseJudge", examples=True),
    "rubric": Method("rlaif.judges.scores:RubricJudge", examples=True),
    "listwise": Method("rlaif.judges.listwise:ListwiseJudge"),
    "text": Method("rlaif.judges.text:TextJudge", thoughts=True),
}


def unknown_method(name: str) -> str | None:
    """What is wrong with the name of a method; None for a listed one and `module:Class`."""
    judge = "A judge of your own is named `module:Class`"
    return own.unknown(name, METHODS, "unknown method", judge)


def method_of(name: str) -> Method:
    """What is known of a method without loading its judge."""
    return METHODS.get(name) or Method(name)


def judge_class(name: str) -> type[AnyJudge]:
    """The class of a method's judge. ConfigError where one of somebody's own cannot be loaded or
    lacks something that a judge has."""
    if name not in METHODS:
        from rlaif.judges.own import own_judge

        return own_judge(name)
    module, _, inner = METHODS[name].judge.partition(":")
    found: type[AnyJudge] = getattr(import_module(module), inner)
    return found
