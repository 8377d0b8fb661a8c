"""A rule that makes labels of opinions, over arrays: many pairs, and many sets of principles.

`judges.ensembles` says what the rules are, one pair at a time; this makes the same numbers, up to
rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.evaluation.compare import LabelRule
from rlaif.judges.ensembles import SURE

Floats = NDArray[np.float64]
MOST_EXACT = 12  # principles: 2^12 sets of them


def log_odds(p: Floats) -> Floats:
    """log p/(1 − p), of p no nearer to 0 and 1 than `SURE`; 0 where there is no label (NaN)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(p / (1 - p))
    most = math.log1p(-SURE) - math.log(SURE)
    found = np.minimum(np.maximum(found, -most, out=found), most, out=found)
    found[np.isnan(found)] = 0.0
    return np.asarray(found)


class VectorRule:
    """A `LabelRule` over the opinions of named principles.

    Opinions come as p (C, N): P(first is better) by principle and pair, NaN where the principle did
    not count. Labels are NaN where none did.
    """

    def __init__(self, principles: Sequence[str], rule: LabelRule) -> None:
        self.rule = rule
        by_tier: dict[float, list[int]] = defaultdict(list)
        for c, name in enumerate(principles):
            number = rule.tiers.get(name)
            by_tier[math.inf if number is None else number].append(c)
        self.tiers = [np.array(by_tier[t]) for t in sorted(by_tier, reverse=True)]  # lowest first
        weighted = rule.name == "weighted"
        self.weights = np.array(
            [rule.weights.get(n, 1.0) if weighted else 1.0 for n in principles]
        )[:, None]
        # All that a rule knows of some opinions is two numbers, joined one opinion at a time.
        extremes = rule.name in ("minimum", "sign_agreement")
        self._join = (np.minimum, np.maximum) if extremes else (np.add, np.add)
        self._nothing = (math.inf, -math.inf) if extremes else (0.0, 0.0)

    def labels(self, p: Floats) -> Floats:
        """The label of each pair, (N,)."""
        parts = self._parts(p)
        return self._made(
            [join.reduce(x[tier], axis=0) for join, x in zip(self._join, parts, strict=True)]
            for tier in self.tiers
        )

    def subsets(self, p: Floats) -> tuple[Floats, NDArray[np.int_]]:
        """The labels by every set of principles, (2^C, N), and which these are: bit k of a row's
        number says whether the k-th of these columns is in its set."""
        parts = self._parts(p)
        made = self._made(
            (
                [
                    _sets(x[tier], join, nothing)
                    for join, x, nothing in zip(self._join, parts, self._nothing, strict=True)
                ]
                for tier in self.tiers
            ),
            outer=True,
        )
        return made, np.concatenate(self.tiers)

    def prefixes(self, p: Floats) -> Callable[[NDArray[np.int_]], Floats]:
        """A function that gives, for an order of the columns, the labels by the first 0, 1, … C
        principles in it, (C + 1, N)."""
        parts = self._parts(p)

        def grown(order: NDArray[np.int_], tier: NDArray[np.int_]) -> list[Floats]:
            here, found = np.isin(order, tier), []
            for join, x, nothing in zip(self._join, parts, self._nothing, strict=True):
                rows = np.full((len(order) + 1, p.shape[1]), nothing)
                for k, column in enumerate(order):
                    if here[k]:
                        join(rows[k], x[column], out=rows[k + 1])
                    else:
                        rows[k + 1] = rows[k]
                found.append(rows)
            return found

        return lambda order: self._made(grown(order, tier) for tier in self.tiers)

    def _parts(self, p: Floats) -> tuple[Floats, Floats]:
        """The two numbers of each opinion, (C, N) each, that change nothing where there is none."""
        name, known = self.rule.name, ~np.isnan(p)
        if name in ("minimum", "sign_agreement"):
            return np.where(known, p, math.inf), np.where(known, p, -math.inf)
        x = p
        if name in ("log_odds", "log_odds_sum"):
            x = log_odds(p)
        elif name == "majority":
            x = (p > 0.5) + 0.5 * (p == 0.5)
        return np.where(known, self.weights * x, 0.0), np.where(known, self.weights, 0.0)

    def _of_parts(self, a: Floats, b: Floats) -> Floats:
        """What the rule makes of the opinions of a tier whose numbers were joined."""
        name = self.rule.name
        if name in ("minimum", "sign_agreement"):  # a is the least p, b the greatest
            one = np.where(a >= 0.5, a, np.where(b <= 0.5, b, 0.5))  # of one side: nearest to ½
            if name == "sign_agreement":
                first, second = b - 0.5, 0.5 - a
                equal = np.isclose(first, second, rtol=1e-9, atol=0)
                one = np.where(equal, 0.5, np.where(first > second, b, a))
            return np.where(a > b, np.nan, one)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = a / b if name != "log_odds_sum" else np.where(b > 0, a, np.nan)
        if name in ("log_odds", "log_odds_sum"):
            e = np.exp(-np.abs(found))
            found = np.where(found >= 0, 1 / (1 + e), e / (1 + e))
        return np.asarray(found)

    def _made(self, tiers: Iterable[list[Floats]], *, outer: bool = False) -> Floats:
        """The labels, tier by tier from the lowest. `outer`: each tier has rows for its own sets,
        and every set of it is put with every one of those below."""
        made: Floats | None = None
        for a, b in tiers:
            p = self._of_parts(a, b)
            if made is None:
                made = p
            elif outer:
                every = _bounded(made[None], p[:, None], self.rule.tier_margin)
                made = every.reshape(-1, p.shape[-1])
            else:
                made = _bounded(made, p, self.rule.tier_margin)
        assert made is not None
        return made


def _sets(x: Floats, join: np.ufunc, nothing: float) -> Floats:
    """The rows of x (C, N) joined by every set of them, (2^C, N)."""
    found = np.full((1, x.shape[1]), nothing)
    for row in x:
        found = np.concatenate([found, join(found, row)])
    return found


def _bounded(p: Floats, above: Floats, margin: float) -> Floats:
    """`ensembles.bounded`, over arrays; NaN is a tier that is silent."""
    lean = above - 0.5
    held = np.abs(lean) / margin * (0.5 + margin)
    bound = np.where(np.abs(lean) < margin, np.where(lean > 0, held, 1 - held), above)
    made = np.where(lean > 0, np.fmax(p, bound), np.where(lean < 0, np.fmin(p, bound), p))
    return np.where(np.isnan(p), above, made)
