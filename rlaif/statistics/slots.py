"""How much a judge likes the place in which a completion is shown.

Pure functions over N questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.statistics.intervals import Clusters, Floats, Interval, as_floats, same_length, share


def slot_intervals(
    shown_first: ArrayLike, shown_second: ArrayLike, clusters: Clusters | None = None
) -> dict[str, Interval]:
    """The rates of `position_bias` with intervals over clusters; `first_slot_share` only where a
    slot won in both orders, with their number as n."""
    one = picks_first_slot(as_floats(shown_first, "shown_first"))
    two = picks_first_slot(1 - as_floats(shown_second, "shown_second"))
    same = same_slot(one, two)
    found = {
        "same_slot_rate": share(same, clusters),
        "swap_consistency": share(1 - same, clusters),
        "says_first": share((one + two) / 2, clusters),
    }
    stuck = np.flatnonzero(same)
    if stuck.size:
        names = stuck.tolist() if clusters is None else [clusters[i] for i in stuck.tolist()]
        first = (one * two)[stuck] / same[stuck]
        found["first_slot_share"] = share(first, names, weights=same[stuck])
    return found


def same_slot(one: Floats, two: Floats) -> Floats:
    """How surely the same slot won in both orders: 1, 0, or ½ where an order picked both."""
    return one * two + (1 - one) * (1 - two)


LEANS = 0.1  # |p − ½| from which a judge has an opinion


def leaning(
    shown_first: ArrayLike, shown_second: ArrayLike, margin: float = LEANS
) -> NDArray[np.bool_]:
    """The questions, (N,) of bool, on which a judge leans by `margin` in one order or the other.

    Of the rest nothing can be said about a slot: a principle that does not apply comes out near ½,
    and which side of ½ is noise. A judge that only likes a slot leans in both orders, and counts.
    """
    one, two = as_floats(shown_first, "shown_first"), as_floats(shown_second, "shown_second")
    return np.asarray(np.maximum(np.abs(one - 0.5), np.abs(two - 0.5)) >= margin, dtype=bool)


def picks_first_slot(p: Floats) -> Floats:
    """1 where P(slot one) is above ½, 0 below, ½ at it."""
    return np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))


def position_bias(shown_first: ArrayLike, shown_second: ArrayLike) -> dict[str, float]:
    """How much a judge likes a slot, from both orders of N questions.

    `shown_first`: P(the pair's first | it stood first); `shown_second`: the same P where it stood
    second. The judge picked slot one in the first order if shown_first > ½, in the second if
    shown_second < ½.

    - same_slot_rate: share of questions on which the same *slot* won in both orders
    - swap_consistency: 1 − same_slot_rate, the share on which the same *completion* won
    - first_slot_share: slot one's share among the same-slot questions (½ if there are none)
    - says_first: slot one's share of all picks

    A probability of exactly ½ picks both slots by half.
    """
    counts = SlotCounts()
    counts.add(shown_first, shown_second)
    return counts.rates()


@dataclass(slots=True)
class SlotCounts:
    """Questions by the slots that won, a probability of ½ being half a win of each."""

    n: int = 0
    both_first: float = 0.0
    both_second: float = 0.0
    first: float = 0.0

    def add(self, shown_first: ArrayLike, shown_second: ArrayLike) -> None:
        one = picks_first_slot(as_floats(shown_first, "shown_first"))
        two = picks_first_slot(1 - as_floats(shown_second, "shown_second"))
        same_length(one, two)
        self.n += len(one)
        self.both_first += float((one * two).sum())
        self.both_second += float(((1 - one) * (1 - two)).sum())
        self.first += float(one.sum() + two.sum())

    def rates(self) -> dict[str, float]:
        same = self.both_first / self.n + self.both_second / self.n
        return {
            "same_slot_rate": same,
            "swap_consistency": 1 - same,
            "first_slot_share": self.both_first / self.n / same if same else 0.5,
            "says_first": self.first / (2 * self.n),
        }
