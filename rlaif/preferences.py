"""Verdicts to preferences: pure functions, no model. A new rule costs no GPU.

For each pair and principle the two orders are averaged, which removes a judge's liking for a slot:
if P(first | shown first) = p and P(first | shown second) = q, then (p + q)/2 of the pair and of its
mirror sum to 1. Principles the judge had nothing to say about (|p − ½| under `principle_margin`)
are left out, then the rest are averaged (Lee et al. 2023; Bai et al. 2022).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rlaif.errors import ConfigError
from rlaif.records import ORDERS, Order, Pair, Preference, PreferenceStatus, Verdict

Aggregate = Literal["mean", "weighted"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "weighted")


def aggregate(
    pairs: Iterable[Pair],
    verdicts: Iterable[Verdict],
    *,
    rule: Aggregate = "mean",
    weights: Mapping[str, float] | None = None,
    orders: Sequence[Order] = ORDERS,
    principle_margin: float = 0.0,
    min_margin: float = 0.0,
    soft: bool = True,
) -> list[Preference]:
    """One preference a pair, in the pairs' order.

    A principle counts only when every asked order was judged: half a pair of orders would keep the
    slot's bias. `min_margin`: an aggregate with |p − ½| under it, or exactly ½, is a tie.
    `soft=False` rounds the label of a preferred pair to 0 or 1.
    """
    if rule not in AGGREGATES:
        raise ConfigError(f"aggregate must be one of {', '.join(AGGREGATES)}, got '{rule}'")
    by_pair: dict[str, dict[str, dict[Order, Verdict]]] = defaultdict(lambda: defaultdict(dict))
    for verdict in verdicts:
        by_pair[verdict.pair_id][verdict.principle][verdict.order] = verdict
    out = []
    for pair in pairs:
        columns = by_pair.get(pair.id, {})
        values = debias(columns, orders)
        kept = {name: p for name, p in values.items() if abs(p - 0.5) >= principle_margin}
        p = _combine(kept, weights if rule == "weighted" else None)
        status = _status(p, bool(values), min_margin)
        if status == "preferred" and not soft and p is not None:
            p = float(p > 0.5)
        made = [v for column in columns.values() for v in column.values()]
        out.append(
            Preference(
                pair=pair,
                status=status,
                p_first=p,
                principles=tuple(kept),
                p_principles=tuple(kept.values()),
                verdicts=len(made),
                abstained=sum(v.abstained for v in made),
            )
        )
    return out


def debias(
    columns: Mapping[str, Mapping[Order, Verdict]], orders: Sequence[Order] = ORDERS
) -> dict[str, float]:
    """P(first) of each fully judged principle: the mean over the orders."""
    out = {}
    for principle, column in columns.items():
        found = [column[o].p_first for o in orders if o in column]
        known = [p for p in found if p is not None]
        if len(known) == len(orders):
            out[principle] = sum(known) / len(known)
    return out


def _combine(values: Mapping[str, float], weights: Mapping[str, float] | None) -> float | None:
    if not values:
        return None
    if weights is None:
        return sum(values.values()) / len(values)
    missing = [name for name in values if name not in weights]
    if missing:
        raise ConfigError(f"no weight for the principles {', '.join(missing)}")
    total = sum(weights[name] for name in values)
    return sum(weights[name] * p for name, p in values.items()) / total


def _status(p: float | None, judged: bool, min_margin: float) -> PreferenceStatus:
    if p is None:  # all principles masked: they were judged, and had nothing to say
        return "tie" if judged else "abstained"
    return "tie" if p == 0.5 or abs(p - 0.5) < min_margin else "preferred"
