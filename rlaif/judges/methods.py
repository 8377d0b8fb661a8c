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
    before the labels of a pair. `labels`: it reads the probabilities of labels. `lists`: it shows
    all completions of a prompt at once. `of_pairs`: its `template` asks as the pairwise one does.
    """

    judge: str
    examples: bool = False
    thoughts: bool = False
    reasons: bool = False
    labels: bool = True
    lists: bool = False
    of_pairs: bool = False


METHODS = {
    "pairwise": Method(
        "rlaif.judges.pairwise:PairwiseJudge", examples=True, thoughts=True, of_pairs=True
    ),
    "cot": Method("rlaif.judges.cot:CotJudge", thoughts=True, reasons=True),
    "adaptive": Method(
        "rlaif.judges.adaptive:AdaptiveJudge",
        examples=True,
        thoughts=True,
        reasons=True,
        of_pairs=True,
    ),
    "pointwise": Method("rlaif.judges.scores:PointwiseJudge", examples=True),
    "rubric": Method("rlaif.judges.scores:RubricJudge", examples=True),
    "listwise": Method("rlaif.judges.listwise:ListwiseJudge", lists=True),
    "text": Method("rlaif.judges.text:TextJudge", thoughts=True, labels=False),
}


def unknown_method(name: str) -> str | None:
    """What is wrong with the name of a method; None for a listed one and `module:Class`."""
    judge = "A judge of your own is named `module:Class`"
    return own.unknown(name, METHODS, "unknown method", judge)


def method_of(name: str) -> Method:
    """What is known of a method without loading its judge."""
    return METHODS.get(name) or Method(name)


def those_that(trait: str) -> str:
    """The methods that have a trait of `Method`, by name, for what is told to people."""
    *most, last = (name for name, method in METHODS.items() if getattr(method, trait))
    return f"{', '.join(most)} or {last}"
