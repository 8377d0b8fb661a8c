"""A pair with its label and every verdict that the label was made of: what people look at.

Pure functions over records. How far opinions are apart is a distance of probabilities, 0 to 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rlaif.evaluation.compare import LabelRule, opinions
from rlaif.judges.ensembles import OrderRule
from rlaif.judges.preferences import Orders, debias
from rlaif.records import ORDERS, Order, Pair, Preference, Verdict


@dataclass(frozen=True)
class Case:
    """A pair, its label, and its verdicts; a jury's have the jurors' names as judges.

    `preference` is None where the pair was not labelled yet. `rule`, `orders` and `order_rule` say
    how the label was made of the verdicts.
    """

    pair: Pair
    preference: Preference | None = None
    verdicts: Sequence[Verdict] = ()
    rule: LabelRule = field(default_factory=LabelRule)
    orders: Orders = ORDERS
    order_rule: OrderRule = "mean"

    @property
    def label(self) -> float | None:
        """P(first is better); None of a pair that has no label."""
        return None if self.preference is None else self.preference.p_first

    @property
    def margin(self) -> float | None:
        """How far the label lies from ½."""
        return None if self.label is None else abs(self.label - 0.5)

    @property
    def status(self) -> str:
        """`preferred`, `tie`, `abstained`, or `unlabelled`."""
        return "unlabelled" if self.preference is None else self.preference.status

    @property
    def abstained(self) -> int:
        """How many of the verdicts abstained."""
        return 0 if self.preference is None else self.preference.abstained

    @property
    def length(self) -> int:
        """Words of the longer response."""
        return max(len(text.split()) for text in (self.pair.first, self.pair.second))

    @property
    def opinions(self) -> dict[str, float]:
        """P(first is better) of each principle that counted."""
        return {} if self.preference is None else opinions(self.preference)

    @property
    def principle(self) -> str | None:
        """The principle that decided, if any did."""
        return None if self.preference is None else decisive(self.preference, self.rule)

    @cached_property
    def columns(self) -> dict[str, dict[str, dict[Order, Verdict]]]:
        """The verdicts by principle, judge and order, as they were given."""
        found: dict[str, dict[str, dict[Order, Verdict]]] = defaultdict(lambda: defaultdict(dict))
        for verdict in self.verdicts:
            found[verdict.principle][verdict.judge][verdict.order] = verdict
        return found

    def jurors(self, principle: str) -> dict[str, float]:
        """What each judge makes of a principle, its orders made one."""
        return debias(self.columns.get(principle, {}), self.orders, self.order_rule)

    def apart(self, what: str) -> float | None:
        """How far the `principles` are apart, or the `orders` or the `jurors` under one principle,
        at most; None where there are no two of them."""
        if what == "principles":
            return _range(list(self.opinions.values()))
        if what == "jurors":
            return _most(_range(list(self.jurors(name).values())) for name in self.columns)
        return _most(
            _range([v.p_first for v in asked.values() if v.p_first is not None])
            for judges in self.columns.values()
            for asked in judges.values()
        )


def _range(values: Sequence[float]) -> float | None:
    return max(values) - min(values) if len(values) > 1 else None


def _most(values: object) -> float | None:
    return max((v for v in values if v is not None), default=None)  # type: ignore[attr-defined]


def decisive(preference: Preference, rule: LabelRule) -> str | None:
    """The principle that decided a preferred pair: were its opinion ½, the label would lie farthest
    from the side that it took. None of a tie or an abstention, or where people's word turned the
    label; of equals the first one."""
    if preference.status != "preferred":
        return None
    status, p = preference.by_verdicts
    if status != "preferred" or p is None or (p > 0.5) != preference.first_is_chosen:
        return None
    given = opinions(preference)
    side = 1.0 if preference.first_is_chosen else -1.0
    whole = rule(given)

    def pull(name: str) -> float:
        return (whole - rule({**given, name: 0.5})) * side

    return max(given, key=lambda name: (pull(name), (given[name] - 0.5) * side), default=None)
