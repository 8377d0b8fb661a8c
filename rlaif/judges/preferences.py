"""Verdicts to preferences: pure functions, no model. A new rule costs no GPU.

For each pair and principle the two orders are made one (`ensembles.over_orders`), which removes
a judge's liking for a slot: if P(first | shown first) = p and P(first | shown second) = q, then
(p + q)/2 of the pair and of its mirror sum to 1. Principles the judge had nothing to say about
(|p − ½| under `principle_margin`) are left out, then the rest are averaged (Lee et al. 2023; Bai et
al. 2022), or made one by another rule of `ensembles`, tier by tier where the constitution ranks
them. Where several judges judged, theirs are made
one first, principle by principle.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rlaif.errors import ConfigError, require_finite
from rlaif.files.settings import Section
from rlaif.judges.ensembles import (
    TIER_MARGIN,
    OrderRule,
    Rule,
    at_temperature,
    combine,
    over_orders,
    over_principles,
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

Orders = Sequence[Order] | Mapping[str, Sequence[Order]]  # asked; by judge where they differ
Columns = dict[str, dict[str, dict[Order, Verdict]]]


def _above_0(said: Any) -> Any:
    if said is not None and not (isinstance(said, int | float) and 0 < said < math.inf):
        raise ValueError(f"temperature must be above 0, or None for none, got {said!r}")
    return said


class PreferenceSettings(Section):
    """How verdicts become preferences. Changing this costs no model call."""

    orders: OrderRule = "mean"
    """Over the two orders of a question: mean of the probabilities, or of their log-odds
    (`mean_logits`), in which a liking for a slot that adds to the log-odds cancels
    (`docs/ensembles.md`)."""
    aggregate: Rule = "mean"
    """Over principles: plain mean; weighted by the constitution's weights; mean of log-odds (a
    pool); their sum (independent evidence); share of votes; what all agree on; SALMON's rule
    (`docs/ensembles.md`)."""
    jury: Rule = "mean"
    """Over the jurors of a principle, before the principles are combined; `weighted` takes the
    jurors' weights. Without a jury it does nothing."""
    quorum: int = Field(default=1, ge=1)
    """A principle counts for a pair when so many jurors could tell. Where none counts, the pair's
    label is an abstention (`quorum`)."""
    soft: bool = True
    """Keep probabilities as labels; false rounds them to 0 or 1."""
    principle_margin: float = Field(default=0.0, ge=0, lt=0.5)
    """Leave out principles with |p − ½| under this: they had nothing to say about the pair."""
    tier_margin: float = Field(default=TIER_MARGIN, gt=0, lt=0.5)
    """A tier of the constitution whose P lies this far from ½ decides the label's side; one that
    lies nearer binds those below it less, at ½ not at all (`docs/constitutions.md`)."""
    min_margin: float = Field(default=0.05, ge=0, lt=0.5)
    """A pair with aggregated |p − ½| under this is a tie and trains nothing."""
    temperature: Annotated[float | None, BeforeValidator(_above_0)] = None
    """T puts σ(logit(p)/T) in the place of each label p, ties and sides staying as they are; null
    leaves labels as they are."""

    @model_validator(mode="after")
    def _nothing_to_cool(self) -> Self:
        if self.temperature is not None and not self.soft:
            raise ValueError(
                "temperature and soft: false: a label rounded to 0 or 1 has no temperature. Leave "
                "one of them out (temperature: null, or soft: true)"
            )
        return self


def aggregate(
    pairs: Iterable[Pair],
    verdicts: Iterable[Verdict],
    settings: PreferenceSettings | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    tiers: Mapping[str, int | None] | None = None,
    judge_weights: Mapping[str, float] | None = None,
    orders: Orders = ORDERS,
) -> list[Preference]:
    """One preference a pair, in the pairs' order, by the rules of `settings`.

    A judge's word on a principle counts only when it judged every asked order: half a pair of
    orders would keep the slot's bias. Under `aggregate: sign_agreement` (SALMON, Sun et al. 2023) a
    judge whose orders lean to different sides says ½ of that principle, and the principle farthest
    from ½ decides.

    `weights` and `tiers` are the principles', `judge_weights` the judges'; `orders` those asked, by
    the name of the judge where judges differ (one that marks each completion by itself has but
    one). An abstention has a `reason`: `quorum` where too few judges could tell; where none could,
    the one that most of its verdicts have (`low_mass`, say). An aggregate of exactly ½ is a tie
    whatever the margin.
    """
    settings = settings or PreferenceSettings()
    for name, weight in {**(weights or {}), **(judge_weights or {})}.items():
        require_finite(**{f"the weight of {name}": weight})
    by_pair: dict[str, Columns] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))  # principle, judge, order
    )
    for verdict in verdicts:
        by_pair[verdict.pair_id][verdict.principle][verdict.judge][verdict.order] = verdict
    out = []
    for pair in pairs:
        columns = by_pair.get(pair.id, {})
        values, told = _by_principle(columns, settings, judge_weights, orders)
        kept = {n: p for n, p in values.items() if abs(p - 0.5) >= settings.principle_margin}
        raw = over_principles(kept, settings.aggregate, weights, tiers, settings.tier_margin)
        status, p = labelled(raw, bool(values), settings)
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
                p_raw=None if settings.temperature is None else raw,
            )
        )
    return out


def _by_principle(
    columns: Columns,
    settings: PreferenceSettings,
    judge_weights: Mapping[str, float] | None,
    orders: Orders,
) -> tuple[dict[str, float], bool]:
    """P(first) under each principle of which enough judges could tell, and whether any could."""
    values, told = {}, False
    agreeing = settings.aggregate == "sign_agreement"
    for principle, judges in columns.items():
        opinions = debias(judges, orders, settings.orders, agreeing=agreeing)
        told = told or bool(opinions)
        opinion = combine(opinions, settings.jury, judge_weights)
        if opinion is not None and len(opinions) >= settings.quorum:
            values[principle] = opinion
    return values, told


def labelled(
    raw: float | None, judged: bool, settings: PreferenceSettings
) -> tuple[PreferenceStatus, float | None]:
    """What an aggregated P(first) is as a label: its status, and it at the temperature, rounded
    where labels are hard."""
    status, p = _status(raw, judged, settings.min_margin), raw
    if settings.temperature is not None and p is not None:
        p = at_temperature(p, settings.temperature)
        if p == 0.5 and status == "preferred":  # so hot that a float no longer holds the side
            status = "tie"
    if status == "preferred" and not settings.soft and p is not None:
        p = float(p > 0.5)
    return status, p


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
