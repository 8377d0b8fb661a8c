"""Many opinions on one pair made one: pure functions over probabilities. A new rule costs no model.

Each opinion is p = P(first is better). Every rule is fair to both completions: of the exchanged
opinions 1 − p it makes 1 minus what it makes of the p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from rlaif.errors import ConfigError, nearest

Rule = Literal[
    "mean", "weighted", "log_odds", "log_odds_sum", "majority", "minimum", "sign_agreement"
]
RULES: tuple[Rule, ...] = get_args(Rule)
SURE = 1e-6  # an opinion nearer to 0 or 1 counts as this near, or one alone would decide a pool


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
        return agree(values)
    divided = min(values) < 0.5 < max(values)
    return 0.5 if divided else min(values, key=lambda p: abs(p - 0.5))


def strongest(opinions: Mapping[str, float]) -> float | None:
    """The opinion farthest from ½: SALMON's rule over principles. Opposite equals give ½."""
    if not opinions:
        return None
    most = max(abs(p - 0.5) for p in opinions.values())
    decisive = {p > 0.5 for p in opinions.values() if math.isclose(abs(p - 0.5), most)}
    if most == 0 or len(decisive) > 1:
        return 0.5
    return max(opinions.values(), key=lambda p: abs(p - 0.5))


def agree(values: Sequence[float]) -> float:
    """One question asked again: the mean where the answers lean to one side, else ½."""
    return 0.5 if min(values) < 0.5 < max(values) else sum(values) / len(values)


def _weighted(opinions: Mapping[str, float], weights: Mapping[str, float]) -> float:
    missing = [name for name in opinions if name not in weights]
    if missing:
        raise ConfigError(f"no weight for {', '.join(missing)}")
    total = sum(weights[name] for name in opinions)
    return sum(weights[name] * p for name, p in opinions.items()) / total


def _log_odds(p: float) -> float:
    p = min(max(p, SURE), 1 - SURE)
    return math.log(p) - math.log1p(-p)


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))  # never overflows, and σ(−x) is 1 − σ(x)
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)
