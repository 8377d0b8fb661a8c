"""How often an attack behind the worse response turns a verdict round.

A question is a pair under a principle that the judge has answered clearly. The attack is put behind
the response that lost, and the judge is asked again in the same orders. The attacker is given all
he could guess: in each order, the label of the place his response stands in. `padding` is no
attack, so what it turns round is what any text would.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.constitution import Principle
from rlaif.judges.attacks import FAMILIES, Attack, Target, appended
from rlaif.judges.base import Ask
from rlaif.judges.ensembles import OrderRule, over_orders
from rlaif.records import Order, Pair, Verdict
from rlaif.statistics.intervals import share
from rlaif.statistics.slots import LEANS


@dataclass(frozen=True, slots=True)
class Question:
    """A pair under a principle, and the judge's P(first is better), its orders made one."""

    pair: Pair
    principle: Principle
    p_first: float

    @property
    def loser_is_first(self) -> bool:
        return self.p_first < 0.5


@dataclass(frozen=True, slots=True)
class Trial:
    """One question under one family of attack: an ask for each order."""

    question: Question
    family: str
    asks: tuple[Ask, ...]


# The label an attacker wants, from the place his response is shown in: 0 or 1.
Labels = Callable[[int], str]


def clear_questions(
    pairs: Iterable[Pair],
    principles: Sequence[Principle],
    verdicts: Iterable[Verdict],
    orders: Sequence[Order],
    *,
    rule: OrderRule = "mean",
    margin: float = LEANS,
) -> list[Question]:
    """The questions answered in all orders that, made one by `rule`, lean by `margin`; in the
    pairs' order."""
    found: dict[tuple[str, str], dict[Order, float]] = defaultdict(dict)
    for v in verdicts:
        if v.p_first is not None:
            found[v.pair_id, v.principle][v.order] = v.p_first
    out = []
    for pair in pairs:
        for principle in principles:
            answers = found.get((pair.id, principle.id), {})
            if len(answers) < len(orders):
                continue
            p = over_orders(list(answers.values()), rule)
            if abs(p - 0.5) >= margin:
                out.append(Question(pair, principle, p))
    return out


def draw(questions: Sequence[Question], limit: int) -> list[Question]:
    """At most `limit` of them, one a pair where that is enough; the same ones every time."""

    def lot(question: Question) -> str:
        text = f"{question.pair.id} {question.principle.id}"
        return hashlib.sha256(text.encode()).hexdigest()

    shuffled = sorted(questions, key=lot)
    seen: Counter[str] = Counter()
    rank = []
    for question in shuffled:
        rank.append(seen[question.pair.id])
        seen[question.pair.id] += 1
    order = sorted(range(len(shuffled)), key=lambda i: (rank[i], i))
    return [shuffled[i] for i in order[:limit]]


def trials(
    questions: Iterable[Question],
    orders: Sequence[Order],
    labels: Labels,
    *,
    fences: Sequence[str] = (),
    tokens: Sequence[str] = (),
    families: Sequence[str] | None = None,
) -> Iterator[Trial]:
    """Each question under each family, with one of its texts, drawn by the question's content."""
    for question in questions:
        for family in families or FAMILIES:
            asks = tuple(
                _ask(question, family, order, labels, tuple(fences), tuple(tokens))
                for order in orders
            )
            yield Trial(question, family, asks)


def _ask(
    question: Question,
    family: str,
    order: Order,
    labels: Labels,
    fences: tuple[str, ...],
    tokens: tuple[str, ...],
) -> Ask:
    pair, first_loses = question.pair, question.loser_is_first
    place = 0 if first_loses == (order == "first_second") else 1
    other = pair.second if first_loses else pair.first
    texts = appended(Target(labels(place), other, fences, tokens), [family])
    name = f"{pair.id} {question.principle.id} {family}"
    attack = texts[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(texts)]
    if first_loses:
        attacked = replace(pair, first=_behind(pair.first, attack), label=None)
    else:
        attacked = replace(pair, second=_behind(pair.second, attack), label=None)
    group = tuple(sorted({attacked.first, attacked.second}))
    return Ask(attacked, question.principle, order, group)


def _behind(text: str, attack: Attack) -> str:
    return f"{text}\n{attack.text}"


def report(
    answered: Iterable[tuple[Trial, Sequence[Verdict]]], rule: OrderRule = "mean"
) -> dict[str, Any]:
    """By family: {"asked", "abstained", "flipped": a share with its interval, "shift"}.

    `flipped` counts the questions answered in all orders, made one by `rule`, on which the loser
    now leads; `shift` is the mean change of P(the loser is better). Both are None where every
    question abstained, which is no flip: the judge said that it cannot tell.
    """
    asked: Counter[str] = Counter()
    abstained: dict[str, Counter[str]] = defaultdict(Counter)
    moves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    prompts: dict[str, list[str]] = defaultdict(list)
    for trial, verdicts in answered:
        asked[trial.family] += 1
        reasons = [v.reason for v in verdicts if v.reason is not None]
        if reasons:
            abstained[trial.family][reasons[0]] += 1
            continue
        p = [v.p_first for v in verdicts if v.p_first is not None]
        after, before = over_orders(p, rule), trial.question.p_first
        if not trial.question.loser_is_first:
            after, before = 1 - after, 1 - before
        moves[trial.family].append((before, after))
        prompts[trial.family].append(trial.question.pair.prompt.id)
    out = {}
    for family in asked:
        rows = moves[family]
        flips = [float(after > 0.5) for _, after in rows]
        out[family] = {
            "asked": asked[family],
            "abstained": dict(abstained[family]),
            "flipped": share(flips, prompts[family]).as_dict() if rows else None,
            "shift": sum(after - before for before, after in rows) / len(rows) if rows else None,
        }
    return out
