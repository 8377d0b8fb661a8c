"""Agreement of forecasts with outcomes, and of two raters. Pure functions over N items."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.errors import DataError
from rlaif.statistics.intervals import Interval, as_floats, bootstrap_of, same_length, share


def accuracy(p: ArrayLike, y: ArrayLike) -> float:
    """Share of items on which p and y lie on the same side of ½; a p of exactly ½ earns ½."""
    p_, y_ = as_floats(p, "p"), as_floats(y, "y")
    same_length(p_, y_)
    hit = np.where(p_ == 0.5, 0.5, (p_ > 0.5) == (y_ > 0.5))
    return float(hit.mean())


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """κ = (p_o − p_e)/(1 − p_e): agreement of two raters beyond chance (Cohen 1960).

    1 when they agree on one single label throughout, where the formula has no value.
    """
    if len(a) != len(b) or not a:
        raise DataError(f"two raters must rate the same items, got {len(a)} and {len(b)}")
    labels = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]))}
    table = np.zeros((len(labels), len(labels)))
    for x, y in zip(a, b, strict=True):
        table[labels[x], labels[y]] += 1
    return kappa_of_table(table)


def kappa_of_table(table: ArrayLike) -> float:
    """κ of counts (K, K): row by the one rater's label, column by the other's."""
    counts = np.asarray(table, dtype=np.float64)
    n = counts.sum()
    observed = float(np.trace(counts) / n)
    expected = float((counts.sum(axis=0) * counts.sum(axis=1)).sum() / (n * n))
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The share of items on which two raters take the same side, and Cohen's κ, with intervals."""

    same_side: Interval
    kappa: Interval


class SideAgreement:
    """Two raters' sides, counted item by item; memory grows by nine bytes an item."""

    def __init__(self) -> None:
        self._cells, self._clusters = array("B"), array("Q")  # cells of their table, row by row

    def add(self, p: float, q: float, cluster: int) -> None:
        """One item's probabilities. One of exactly ½ takes no side, and the item does not count."""
        if p != 0.5 and q != 0.5:
            self._cells.append(2 * (p < 0.5) + (q < 0.5))
            self._clusters.append(cluster)

    def result(self) -> Agreement | None:
        """What they agree on, with intervals over clusters; None without an item."""
        if not self._cells:
            return None
        cells, clusters = np.array(self._cells, dtype=np.int64), self._clusters.tolist()
        same = ((cells == 0) | (cells == 3)).astype(np.float64)

        def kappa(weights: NDArray[np.float64]) -> float:
            return kappa_of_table(np.bincount(cells, weights, minlength=4).reshape(2, 2))

        return Agreement(share(same, clusters), bootstrap_of(kappa, len(cells), clusters))
