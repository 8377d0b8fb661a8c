"""Many opinions on one pair made one: pure functions over probabilities. A new rule costs no model.

Each opinion is p = P(first is better). Every rule is fair to both completions: of the exchanged
opinions 1 − p it makes 1 minus what it makes of the p.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from rlaif.errors import ConfigError, nearest

Rule = Literal[
    "mean", "weighted", "log_odds", "log_odds_sum", "majority", "minimum", "sign_agreement"
]
RULES: tuple[Rule, ...] = get_args(Rule)
OrderRule = Literal["mean", "mean_logits"]
ORDER_RULES: tuple[OrderRule, ...] = get_args(OrderRule)
SURE = 1e-6  # an opinion nearer to 0 or 1 counts as this near, or one alone would decide a pool
# The same of one question's orders. Far smaller, as a liking for a slot that is cut off no longer
# cancels; not less, as near 1 a float no longer holds 1 − p, and a pair's mirror would differ.
SURE_OF_AN_ORDER = 1e-12
TIER_MARGIN = 0.1  # from here on a tier leans, and those below it do not turn the label


def combine(
    opinions: Mapping[str, float], rule: Rule = "mean", weights: Mapping[str, float] | None = None
) -> float | None:
    """P(first is better) of named opinions; None of none.

    - `mean`, `weighted`: Σ w p / Σ w, with w = 1 or the weights.
    - `log_odds`: σ(mean of log p/(1 − p)): the logarithmic pool of opinions on the same evidence,
      in which sure ones count for more. Ten opinions of 0.6 give 0.6.
    - `log_odds_sum`: σ(sum of log p/(1 − p)): Bayes' rule for *independent* evidence before which
      both were as likely. Ten opinions of 0.6 give 0.98; of opinions that depend on one another,
      as those of one judge or of like judges do, the result is too sure.
    - `majority`: the share of opinions for the first; an exact ½ is half a vote.
    - `minimum`: what all can agree on: the opinion nearest to ½ where all are on one side, else ½.
    - `sign_agreement`: the mean where all are on one side, else ½ (SALMON, Sun et al. 2023, does so
      with the two orders of a pair).

    ConfigError for an unknown rule, or when `weighted` lacks the weight of an opinion.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown rule '{rule}'.{nearest(rule, RULES)}")
    if not opinions:
        return None
    values = list(opinions.values())
    if rule == "weighted":
        return _weighted(opinions, weights or {})
    if rule in ("log_odds", "log_odds_sum"):
        total = sum(map(_log_odds, values))
        return _sigmoid(total if rule == "log_odds_sum" else total / len(values))
    if rule == "majority":
        return sum((p > 0.5) + 0.5 * (p == 0.5) for p in values) / len(values)
    if rule == "mean":
        return sum(values) / len(values)
    if rule == "sign_agreement":
        return over_orders(values, agreeing=True)
    divided = min(values) < 0.5 < max(values)
    return 0.5 if divided else min(values, key=lambda p: abs(p - 0.5))


def over_principles(
    opinions: Mapping[str, float],
    rule: Rule = "mean",
    weights: Mapping[str, float] | None = None,
    tiers: Mapping[str, int | None] | None = None,
    tier_margin: float = TIER_MARGIN,
) -> float | None:
    """P(first is better) of the principles' opinions, tier by tier; None of none.

    `tiers` numbers them: 1 is the highest, and those without a number come last. `rule` makes one p
    of each tier (`sign_agreement`: the `strongest`). From the lowest tier that spoke upwards, each
    tier bounds what those below it made (`bounded`): so the highest tier that leans by
    `tier_margin` decides the side, and one that is silent leaves it to the next. In one tier it is
    the rule and nothing else. Continuous in every p of a tier, falls in none, and fair to both
    completions, as far as the rule is.
    """
    by_tier: dict[float, dict[str, float]] = defaultdict(dict)
    for name, p in opinions.items():
        number = (tiers or {}).get(name)
        by_tier[math.inf if number is None else number][name] = p
    made: float | None = None
    for _, own in sorted(by_tier.items(), reverse=True):
        p_tier = strongest(own) if rule == "sign_agreement" else combine(own, rule, weights)
        if made is None or p_tier is None:
            made = p_tier
        else:
            made = bounded(made, p_tier, tier_margin)
    return made


def bounded(p: float, above: float, margin: float) -> float:
    """What a tier's p becomes below a tier whose P(first is better) is `above`.

    With d = |above − ½|, a tier for the first completion holds p at or above d (½ + margin)/margin
    while d < margin, and at or above its own P from there on; one for the second holds it below the
    mirror of that; at d = 0 it holds nothing. Where both lean to one side, the surer one counts.
    """
    lean = above - 0.5
    bound = above
    if abs(lean) < margin:
        held = abs(lean) / margin * (0.5 + margin)
        bound = held if lean > 0 else 1 - held
    return p if lean == 0 else max(p, bound) if lean > 0 else min(p, bound)


def over_orders(
    values: Sequence[float], rule: OrderRule = "mean", *, agreeing: bool = False
) -> float:
    """P(first is better) of one judge's P of one question, one for each order it was shown in.

    - `mean`: Σ p / n. With the pair's mirror it sums to 1, whatever the liking for a slot.
    - `mean_logits`: σ(mean of log p/(1 − p)). A liking for a slot that adds b to the log-odds of
      the response shown first cancels: of log-odds a + b and a − b it is σ(a), while their mean of
      probabilities lies nearer to ½. An order surer than 1 − 10⁻¹² counts as that sure.

    `agreeing`: ½ where the orders lean to different sides. One order alone is itself.
    """
    if rule not in ORDER_RULES:
        raise ConfigError(f"unknown rule '{rule}' over orders.{nearest(rule, ORDER_RULES)}")
    if agreeing and min(values) < 0.5 < max(values):
        return 0.5
    if rule == "mean" or len(values) == 1:
        return sum(values) / len(values)
    return _sigmoid(sum(_log_odds(p, SURE_OF_AN_ORDER) for p in values) / len(values))


def at_temperature(p: float, temperature: float) -> float:
    """σ(log p/(1 − p) / T): a probability at another temperature (Guo et al. 2017).

    T > 1 brings it nearer to ½, T < 1 farther away; 0, ½ and 1 stay.
    """
    if p in (0.0, 0.5, 1.0):
        return p
    return _sigmoid((math.log(p) - math.log1p(-p)) / temperature)


def strongest(opinions: Mapping[str, float]) -> float | None:
    """The opinion farthest from ½: SALMON's rule over principles. Opposite equals give ½."""
    if not opinions:
        return None
    most = max(abs(p - 0.5) for p in opinions.values())
    decisive = {p > 0.5 for p in opinions.values() if math.isclose(abs(p - 0.5), most)}
    if most == 0 or len(decisive) > 1:
        return 0.5
    return max(opinions.values(), key=lambda p: abs(p - 0.5))


def _weighted(opinions: Mapping[str, float], weights: Mapping[str, float]) -> float:
    missing = [name for name in opinions if name not in weights]
    if missing:
        raise ConfigError(f"no weight for {', '.join(missing)}")
    total = sum(weights[name] for name in opinions)
    return sum(weights[name] * p for name, p in opinions.items()) / total


def _log_odds(p: float, sure: float = SURE) -> float:
    """log p/(1 − p), no farther from 0 than that of `sure`: alike on both sides, at 0 and 1 too."""
    most = math.log1p(-sure) - math.log(sure)
    found = math.log(p) - math.log1p(-p) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)
    return min(max(found, -most), most)


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))  # never overflows, and σ(−x) is 1 − σ(x)
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)
