"""Verdicts to preferences: pure functions, no model. A new rule costs no GPU.

For each pair and principle the two orders are made one (`ensembles.over_orders`), which removes
a judge's liking for a slot: if P(first | shown first) = p and P(first | shown second) = q, then
(p + q)/2 of the pair and of its mirror sum to 1. Principles the judge had nothing to say about
(|p − ½| under `principle_margin`) are left out, then the rest are averaged (Lee et al. 2023; Bai et
al. 2022), or made one by another rule of `ensembles`. Where several judges judged, theirs are made
one first, principle by principle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rlaif.errors import ConfigError, require_finite
from rlaif.judges.ensembles import (
    RULES,
    OrderRule,
    Rule,
    at_temperature,
    combine,
    over_orders,
    strongest,
)
from rlaif.records import (
    ORDERS,
    Order,
    Pair,
    Preference,
    PreferenceReason,
    PreferenceStatus,
    Verdict,
)

MIN_MARGIN = 0.05  # |p − ½| under which a label is a tie
Orders = Sequence[Order] | Mapping[str, Sequence[Order]]  # asked; by judge where they differ
Columns = dict[str, dict[str, dict[Order, Verdict]]]


def aggregate(
    pairs: Iterable[Pair],
    verdicts: Iterable[Verdict],
    *,
    rule: Rule = "mean",
    weights: Mapping[str, float] | None = None,
    jury: Rule = "mean",
    judge_weights: Mapping[str, float] | None = None,
    quorum: int = 1,
    orders: Orders = ORDERS,
    order_rule: OrderRule = "mean",
    principle_margin: float = 0.0,
    min_margin: float = MIN_MARGIN,
    soft: bool = True,
    temperature: float | None = None,
) -> list[Preference]:
    """One preference a pair, in the pairs' order.

    A judge's word on a principle counts only when it judged every asked order: half a pair of
    orders would keep the slot's bias. `jury` combines the judges of a principle, which counts when
    `quorum` of them could tell; `rule` combines the principles. Under `rule="sign_agreement"`
    (SALMON, Sun et al. 2023) a judge whose orders lean to different sides says ½ of that principle,
    and the principle farthest from ½ decides.

    `weights` are the principles', `judge_weights` the judges'; `orders` those asked, by the name
    of the judge where judges differ (one that marks each completion by itself has but one), which
    `order_rule` makes one. An abstention has a `reason`: `quorum` where too few judges could tell;
    where none could, the one that most of its verdicts have (`low_mass`, say). `min_margin`: an
    aggregate with |p − ½| under it, or exactly ½, is a tie. `soft=False` rounds the label of a
    preferred pair to 0 or 1. `temperature` T puts σ(logit(p)/T) in the place of each label p: it
    changes how sure labels are, and never which pairs are ties or which side they prefer.
    """
    require_finite(principle_margin=principle_margin, min_margin=min_margin)
    if temperature is not None:
        require_finite(temperature=temperature)
        if temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
    for name, weight in {**(weights or {}), **(judge_weights or {})}.items():
        require_finite(**{f"the weight of {name}": weight})
    for name, given in (("aggregate", rule), ("jury", jury)):
        if given not in RULES:
            raise ConfigError(f"{name} must be one of {', '.join(RULES)}, got '{given}'")
    by_pair: dict[str, Columns] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))  # principle, judge, order
    )
    for verdict in verdicts:
        by_pair[verdict.pair_id][verdict.principle][verdict.judge][verdict.order] = verdict
    out = []
    for pair in pairs:
        columns = by_pair.get(pair.id, {})
        values, told = {}, False
        for principle, judges in columns.items():
            opinions = debias(judges, orders, order_rule, agreeing=rule == "sign_agreement")
            told = told or bool(opinions)
            opinion = combine(opinions, jury, judge_weights)
            if opinion is not None and len(opinions) >= quorum:
                values[principle] = opinion
        kept = {name: p for name, p in values.items() if abs(p - 0.5) >= principle_margin}
        p = strongest(kept) if rule == "sign_agreement" else combine(kept, rule, weights)
        status, raw = _status(p, bool(values), min_margin), p
        if temperature is not None and p is not None:
            p = at_temperature(p, temperature)
            if p == 0.5 and status == "preferred":  # so hot that a float no longer holds the side
                status = "tie"
        if status == "preferred" and not soft and p is not None:
            p = float(p > 0.5)
        made = [v for judges in columns.values() for row in judges.values() for v in row.values()]
        out.append(
            Preference(
                pair=pair,
                status=status,
                p_first=p,
                principles=tuple(kept),
                p_principles=tuple(kept.values()),
                verdicts=len(made),
                abstained=sum(v.abstained for v in made),
                reason=None if status != "abstained" else "quorum" if told else _reason(made),
                p_raw=None if temperature is None else raw,
            )
        )
    return out


def debias(
    columns: Mapping[str, Mapping[Order, Verdict]],
    orders: Orders = ORDERS,
    rule: OrderRule = "mean",
    *,
    agreeing: bool = False,
) -> dict[str, float]:
    """P(first) of each column (a judge's) with every order judged: its orders made one by `rule`.

    `agreeing`: ½ where the orders lean to different sides.
    """
    out = {}
    for name, column in columns.items():
        asked = orders.get(name, ()) if isinstance(orders, Mapping) else orders
        if not asked:
            raise ConfigError(f"no orders for the judge '{name}'")
        found = [column[o].p_first for o in asked if o in column]
        known = [p for p in found if p is not None]
        if len(known) == len(asked):
            out[name] = over_orders(known, rule, agreeing=agreeing)
    return out


def _reason(verdicts: Sequence[Verdict]) -> PreferenceReason:
    """Why no judge could tell; the first of those that are equally frequent."""
    found = Counter(v.reason for v in verdicts if v.reason is not None).most_common(1)
    return found[0][0] if found else "unjudged"


def _status(p: float | None, judged: bool, min_margin: float) -> PreferenceStatus:
    if p is None:  # all principles masked: they were judged, and had nothing to say
        return "tie" if judged else "abstained"
    return "tie" if p == 0.5 or abs(p - 0.5) < min_margin else "preferred"
