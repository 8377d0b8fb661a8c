"""Whether a judge says the same when the same is asked otherwise, principle by principle.

A question is a pair under a principle that the judge has answered clearly. It is asked again in
other words (`paraphrase`), as its opposite, whose answer must be the other response (`opposite`),
with other names for the options (`options`) and in another layout (`format`); and the two orders of
each question are compared (`position`). A flip is a question on which the other response now leads.

Pure functions: no model, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlaif.constitution import Principle
from rlaif.constitution.wordings import turned, wordings
from rlaif.evaluation.attacks import Question, Trial, report
from rlaif.judges.base import Ask
from rlaif.judges.ensembles import OrderRule
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Order, Pair, Verdict
from rlaif.statistics.slots import leaning, slot_intervals

Kind = Literal["paraphrase", "opposite", "options", "format"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A principle asked otherwise. `layout` names the template, None for the judge's own."""

    kind: Kind
    name: str
    principle: Principle
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """A question asked by a variant: an ask for each order."""

    question: Question
    variant: Variant
    asks: tuple[Ask, ...]


def variants(principle: Principle, layouts: Mapping[str, Kind]) -> list[Variant]:
    """All ways to ask a principle otherwise: its wordings, and those of the judge's layouts."""
    found = [
        Variant("paraphrase", text, principle.model_copy(update={"compare": text}))
        for text in wordings(principle)
    ]
    other = turned(principle)
    if other is not None:
        found.append(Variant("opposite", other, principle.model_copy(update={"compare": other})))
    return found + [Variant(kind, name, principle, name) for name, kind in layouts.items()]


def asks_of(pair: Pair, principle: Principle, orders: Sequence[Order]) -> tuple[Ask, ...]:
    """An ask for each order, of a pair by itself."""
    group = tuple(sorted({pair.first, pair.second}))
    return tuple(Ask(pair, principle, order, group) for order in orders)


def asked_again(
    questions: Iterable[Question], found: Iterable[Variant], orders: Sequence[Order]
) -> list[Again]:
    """Each question by each variant of its principle."""
    by_id: dict[str, list[Variant]] = {}
    for variant in found:
        by_id.setdefault(variant.principle.id, []).append(variant)
    return [
        Again(question, variant, asks_of(question.pair, variant.principle, orders))
        for question in questions
        for variant in by_id.get(question.principle.id, ())
    ]


def card(
    principle: Principle,
    base: Sequence[tuple[Pair, Sequence[Verdict]]],
    answered: Sequence[tuple[Again, Sequence[Verdict]]],
    rule: OrderRule = "mean",
) -> dict[str, Any]:
    """What is known of one principle: {"compare", "questions", "position", "variants"}.

    `base` are its verdicts on each pair as it is asked. A variant has its `kind` beside what
    `evaluation.attacks.report` tells: asked, abstained, flipped (with an interval over prompts),
    shift (of P of the response that was the worse one).
    """
    kinds = {again.variant.name: again.variant.kind for again, _ in answered}
    told = report([_trial(row, row[0].variant.name) for row in answered], rule)
    return {
        "compare": principle.compare,
        "questions": len({again.question.pair.id for again, _ in answered}),
        "position": position(base),
        "variants": {name: {"kind": kinds[name], **row} for name, row in told.items()},
    }


def by_kind(
    answered: Iterable[tuple[Again, Sequence[Verdict]]], rule: OrderRule = "mean"
) -> dict[str, Any]:
    """The same over all principles, by kind of variant."""
    return report([_trial(row, row[0].variant.kind) for row in answered], rule)


def _trial(row: tuple[Again, Sequence[Verdict]], family: str) -> tuple[Trial, Sequence[Verdict]]:
    """A row as attacks count it; what is said of the opposite speaks for the other response."""
    again, verdicts = row
    if again.variant.kind == "opposite":
        verdicts = [v if v.p_first is None else replace(v, p_first=1 - v.p_first) for v in verdicts]
    return Trial(again.question, family, again.asks), verdicts


def position(base: Iterable[tuple[Pair, Sequence[Verdict]]]) -> dict[str, float] | None:
    """How often the same place wins in both orders, with an interval over prompts, of the questions
    on which the judge leans in one of them. None where it was asked in one order, or leans on
    none."""
    shown: list[tuple[float, float]] = []
    prompts: list[str] = []
    for pair, verdicts in base:
        said = {v.order: v.p_first for v in verdicts}
        first, second = (said.get(order) for order in ORDERS)
        if first is not None and second is not None and leaning([first], [second]).any():
            shown.append((first, second))
            prompts.append(pair.prompt.id)
    if not shown:
        return None
    one, two = zip(*shown, strict=True)
    return slot_intervals(one, two, prompts)["same_slot_rate"].as_dict()


# ---------------------------------------------------------------------------- tests of principles

Outcome = Literal["pass", "fail", "tie", "abstained"]


def outcome(
    pair: Pair, verdicts: Sequence[Verdict], orders: Sequence[Order], rule: PreferenceSettings
) -> tuple[Outcome, float | None, str | None]:
    """What came of a test, whose better response is the pair's first: the outcome, P(it is better)
    over the orders, and why the judge abstained. Ties are those of labels (`min_margin`)."""
    plain = PreferenceSettings(
        orders=rule.orders, principle_margin=rule.principle_margin, min_margin=rule.min_margin
    )
    (label,) = aggregate([pair], verdicts, plain, orders=orders)
    if label.status != "preferred":
        return label.status, label.p_first, label.reason
    return ("pass" if label.first_is_chosen else "fail"), label.p_first, None
