"""The methods of judging: the one list of them.

Everything that speaks of methods (the check of a config, the commands' help, what makes judges)
reads `METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.files import own


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
