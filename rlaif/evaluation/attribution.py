"""Which principles turned a label: Shapley values, labels without one, labels by another rule.

Pure functions over the opinions of principles, as labels were made of them: no model, and no
verdict is read. What is said of a pair is said of the label that its verdicts make, before a
temperature, before rounding and before people's word.

The game of a label: its players are the principles that counted for the pair, a set of them is
worth the log-odds of the label that the rule makes of their opinions alone, and the empty set 0. A
label nearer to 0 or 1 than `SURE` counts as that near. A principle's Shapley value (Shapley 1953)
is what it adds to the sets of others, averaged over all orders in which they may come; the values
of a pair sum to the log-odds of its label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import factorial

import numpy as np
from numpy.typing import NDArray

from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.vectors import MOST_EXACT, Floats, VectorRule, log_odds

Sides = NDArray[np.int8]  # 1: the first, −1: the second, 0: neither, a tie or no label
ORDERS_DRAWN = 64  # of more than MOST_EXACT principles, half of them the reverse of the others


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the principles of a run say of its pairs, and how labels are made of it.

    `p` (C, N) is P(first is better) by principle and pair, NaN where a principle did not count.
    `pairs` are the pairs' ids, `prompts` the names of their prompts; `lengths` (2, N) are
    characters of the first and the second response. A label within `min_margin` of ½ is a tie.
    """

    principles: tuple[str, ...]
    p: Floats
    rule: LabelRule
    min_margin: float
    pairs: list[str]
    prompts: list[str]
    lengths: Floats

    @cached_property
    def vector(self) -> VectorRule:
        """The rule over arrays."""
        return VectorRule(self.principles, self.rule)

    @cached_property
    def labels(self) -> Floats:
        """The label of each pair, (N,); NaN where no principle counted."""
        return self.vector.labels(self.p)

    @cached_property
    def sides(self) -> Sides:
        """Which response each label prefers."""
        return self.side(self.labels)

    def side(self, labels: Floats) -> Sides:
        """Which response labels prefer, ties and abstentions neither."""
        lean = np.where(np.isnan(labels), 0.0, labels - 0.5)
        return np.where(np.abs(lean) < self.min_margin, 0, np.sign(lean)).astype(np.int8)

    def by(self, rule: LabelRule) -> Opinions:
        """The same opinions under another rule."""
        return replace(self, rule=rule)

    @cached_property
    def without(self) -> Floats:
        """The labels with one principle left out, (C, N): its opinion is taken away, and the label
        made again of the others."""
        found = np.empty_like(self.p)
        for c in range(len(self.p)):
            left = self.p.copy()
            left[c] = np.nan
            found[c] = self.vector.labels(left)
        return found

    @cached_property
    def decided(self) -> NDArray[np.int_]:
        """The column of the principle that decided each label, (N,), −1 where none did: as
        `cases.decisive`, the one whose opinion at ½ would move the label farthest back."""
        pull = np.full(self.p.shape, -np.inf)
        for c in range(len(self.p)):
            counted = ~np.isnan(self.p[c])
            at_half = self.p.copy()
            at_half[c, counted] = 0.5
            moved = (self.labels - self.vector.labels(at_half)) * self.sides
            pull[c, counted] = moved[counted]
        best = pull >= pull.max(axis=0) - 1e-12
        lean = np.where(best, np.nan_to_num(self.p - 0.5) * self.sides, -np.inf)
        return np.where(self.sides == 0, -1, lean.argmax(axis=0))

    @cached_property
    def shapley(self) -> tuple[Floats, Floats]:
        """The Shapley values of the labels' log-odds in nats, (C, N), and their standard errors,
        which are 0 where they are exact: up to `MOST_EXACT` principles.

        Of more, they are means over `ORDERS_DRAWN` random orders, of which each comes with its
        reverse (Mitchell et al. 2022); their sum is exact all the same. A principle that did not
        count has 0.
        """
        values, errors = np.zeros(self.p.shape), np.zeros(self.p.shape)
        exact = len(self.p) <= MOST_EXACT
        for part in _blocks(self.p.shape[1], 1 << 18 >> len(self.p) if exact else 2_048):
            p = self.p[:, part]
            if exact:
                values[:, part] = _exact(self.vector, p)
            else:
                values[:, part], errors[:, part] = _sampled(self.vector, p)
        silent = np.isnan(self.p)
        values[silent] = errors[silent] = 0.0
        return values, errors


def _exact(vector: VectorRule, p: Floats) -> Floats:
    labels, columns = vector.subsets(p)
    values = np.empty_like(p)
    values[columns] = _weights(len(p)) @ log_odds(labels)
    return values


def _weights(n: int) -> Floats:
    """How the worths of the sets of n players, numbered by their bits, make their values, (n, 2^n).

    φᵢ = Σ over sets S with i of (|S| − 1)! (n − |S|)!/n! · (v(S) − v(S without i)).
    """
    inside = (np.arange(1 << n)[None] >> np.arange(n)[:, None]) & 1 == 1
    size = inside.sum(axis=0)
    share = [factorial(k - 1) * factorial(n - k) / factorial(n) for k in range(1, n + 1)]
    gains = np.array([0.0, *share])[size]
    losses = np.array([*share, 0.0])[size]
    return np.asarray(np.where(inside, gains, -losses))


def _sampled(vector: VectorRule, p: Floats) -> tuple[Floats, Floats]:
    """Means over random orders and their reverses, and the standard errors of these means."""
    rng, half = np.random.default_rng(0), ORDERS_DRAWN // 2
    total, squares = np.zeros_like(p), np.zeros_like(p)
    labels_by = vector.prefixes(p)
    for _ in range(half):
        order, added = rng.permutation(len(p)), np.zeros_like(p)
        for one in (order, order[::-1]):
            added[one] += np.diff(log_odds(labels_by(one)), axis=0) / 2
        total += added
        squares += added**2
    mean = total / half
    variance = np.maximum(squares / half - mean**2, 0.0) * half / (half - 1)
    return mean, np.sqrt(variance / half)


def _blocks(n: int, size: int) -> Iterator[slice]:
    size = max(size, 16)
    return (slice(i, i + size) for i in range(0, n, size))
