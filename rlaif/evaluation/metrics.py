"""Numbers with their uncertainty: intervals, calibration, agreement, position bias.

Pure functions over arrays and records; no model, no file. N is the number of items.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.errors import DataError
from rlaif.records import Order, Pair, Preference, Verdict
from rlaif.training.calibration import (
    Floats,
    Temperature,
    as_floats,
    brier,
    expected_calibration_error,
    fit_temperature,
    same_length,
)

__all__ = [
    "Interval",
    "LabelQuality",
    "Temperature",
    "accuracy",
    "bootstrap",
    "bootstrap_of",
    "brier",
    "cohen_kappa",
    "expected_calibration_error",
    "fit_temperature",
    "kappa_of_table",
    "label_quality",
    "leaning",
    "position_bias",
    "slot_intervals",
    "wilson",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, the ends of its confidence interval, and the number of items it rests on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean with a percentile bootstrap interval (Efron 1979).

    `clusters` names each value's cluster, e.g. its prompt: whole clusters are then drawn, as
    samples of one prompt are not independent. The interval of a single cluster is its value.
    """
    array = as_floats(values, "values")
    names: Sequence[Hashable] = range(len(array)) if clusters is None else clusters
    if len(names) != len(array):
        raise DataError(f"{len(array)} values, but {len(names)} cluster names")
    sums, counts = _by_cluster(array, names)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one at a time: all at once would need resamples x clusters memory
        drawn = random.integers(0, len(sums), len(sums))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def bootstrap_of(
    statistic: Callable[[Floats], float],
    n: int,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """As `bootstrap`, for what is no mean: `statistic(weights)` of n items, each counted so often.

    Resamples without a value (not finite) are left out; where n items have none, the ends are NaN.
    """
    names: Sequence[Hashable] = range(n) if clusters is None else clusters
    if len(names) != n:
        raise DataError(f"{n} items, but {len(names)} cluster names")
    position: dict[Hashable, int] = {}
    index = np.array([position.setdefault(name, len(position)) for name in names], dtype=np.int64)
    random, k = np.random.default_rng(seed), len(position)
    found = np.empty(resamples)
    for i in range(resamples):
        times = np.bincount(random.integers(0, k, k), minlength=k)
        found[i] = statistic(times[index].astype(np.float64))
    found = found[np.isfinite(found)]
    low, high = (
        np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) if found.size else [math.nan] * 2
    )
    return Interval(statistic(np.ones(n)), float(low), float(high), n)


def _by_cluster(values: Floats, names: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sum and number of the values of each cluster, in order of appearance."""
    position: dict[Hashable, int] = {}
    index = np.array([position.setdefault(name, len(position)) for name in names])
    sums: Floats = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A share k/n with Wilson's score interval (1927): honest at 0 %, at 100 % and for small n.

    centre (p̂ + z²/2n) / (1 + z²/n), half-width z √(p̂(1−p̂)/n + z²/4n²) / (1 + z²/n).
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share needs 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / scale
    # Exactly 0 and 1 at the ends: rounding would otherwise leave 1e-17 outside the value.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n)


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
    counts = _SlotCounts()
    counts.add(shown_first, shown_second)
    return counts.rates()


def slot_intervals(
    shown_first: ArrayLike, shown_second: ArrayLike, clusters: Sequence[Hashable] | None = None
) -> dict[str, Interval]:
    """The rates of `position_bias` with bootstrap intervals; `first_slot_share` only where a slot
    won in both orders, with their number as n."""
    one = _picks_first_slot(as_floats(shown_first, "shown_first"))
    two = _picks_first_slot(1 - as_floats(shown_second, "shown_second"))
    both_first = one * two
    same = both_first + (1 - one) * (1 - two)
    found = {
        "same_slot_rate": bootstrap(same, clusters, resamples=1000),
        "swap_consistency": bootstrap(1 - same, clusters, resamples=1000),
        "says_first": bootstrap((one + two) / 2, clusters, resamples=1000),
    }
    stuck = np.flatnonzero(same)
    if stuck.size:
        names = stuck.tolist() if clusters is None else [clusters[i] for i in stuck.tolist()]
        first, total = both_first[stuck], same[stuck]
        found["first_slot_share"] = bootstrap_of(
            lambda w: float((w * first).sum() / (w * total).sum()), stuck.size, names
        )
    return found


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


@dataclass(slots=True)
class _SlotCounts:
    """Questions by the slots that won, a probability of ½ being half a win of each."""

    n: int = 0
    both_first: float = 0.0
    both_second: float = 0.0
    first: float = 0.0

    def add(self, shown_first: ArrayLike, shown_second: ArrayLike) -> None:
        one = _picks_first_slot(as_floats(shown_first, "shown_first"))
        two = _picks_first_slot(1 - as_floats(shown_second, "shown_second"))
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


def _picks_first_slot(p: Floats) -> Floats:
    return np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))


Truth = Callable[[Pair], float | None]


def label_quality(
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    verdicts: Iterable[Verdict],
    truth: Truth | None = None,
) -> dict[str, Any]:
    """What is known about a set of AI labels: `LabelQuality` of all of them at once."""
    quality = LabelQuality(truth)
    quality.add(pairs, preferences, verdicts)
    return quality.result()


class LabelQuality:
    """What is known about AI labels that come in parts: it keeps counts, and two numbers a pair.

    `truth(pair)` is the true P(first is better), None or ½ where neither is. Agreement and
    calibration count the preferred pairs whose truth differs. Keys without anything to count are
    None: an unknown number is not a zero.
    """

    def __init__(self, truth: Truth | None = None) -> None:
        self.pairs = self.verdicts = 0
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unlabelled: Counter[str] = Counter()  # pairs, by why they have no label
        self._truth = truth or (lambda pair: pair.label)
        self._p, self._y = array("d"), array("d")
        self._mass, self._masses = 0.0, 0
        self._indifferent = 0
        self._slots = _SlotCounts()
        self._by_principle: dict[str, _SlotCounts] = defaultdict(_SlotCounts)

    def add(
        self, pairs: Sequence[Pair], preferences: Sequence[Preference], verdicts: Iterable[Verdict]
    ) -> None:
        """Some pairs with their preferences and all of their verdicts."""
        made = list(verdicts)
        self.pairs += len(pairs)
        self.verdicts += len(made)
        self.status.update(p.status for p in preferences)
        self.unlabelled.update(p.reason for p in preferences if p.reason is not None)
        self.reasons.update(v.reason for v in made if v.reason is not None)
        masses = [v.mass for v in made if v.mass is not None]
        self._mass, self._masses = self._mass + math.fsum(masses), self._masses + len(masses)
        for p, y in _with_truth(preferences, self._truth):
            self._p.append(p)
            self._y.append(y)
        for principle, both in _in_both_orders(made).items():
            orders = np.array(both)  # (N, 2)
            clear = orders[leaning(*orders.T)]
            self._indifferent += len(orders) - len(clear)
            if len(clear):
                for counts in (self._slots, self._by_principle[principle]):
                    counts.add(*clear.T)

    def result(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "pairs": self.pairs,
            "verdicts": self.verdicts,
            "status": dict(self.status),
            "abstained": self.reasons.total(),
            "abstained_by_reason": dict(self.reasons),
            "unlabelled_by_reason": dict(self.unlabelled),
            "label_mass": self._mass / self._masses if self._masses else None,
            "gold_agreement": None,
            "ece": None,
            "brier": None,
            **self._position(),
        }
        if self._p:
            p, y = np.array(self._p), np.array(self._y)
            hits = int(((p > 0.5) == (y > 0.5)).sum())
            out["gold_agreement"] = wilson(hits, len(p)).as_dict()
            out["ece"], out["brier"] = expected_calibration_error(p, y), brier(p, y)
        return out

    def _position(self) -> dict[str, Any]:
        """Position bias, in all and by principle, over the questions on which the judge leans."""
        asked = {"questions": self._slots.n, "indifferent": self._indifferent}
        if not self._slots.n:
            names = ("same_slot_rate", "swap_consistency", "first_slot_share", "says_first")
            return {**asked, **dict.fromkeys(names), "by_principle": {}}
        table = {name: {**c.rates(), "n": c.n} for name, c in self._by_principle.items()}
        return {**asked, **self._slots.rates(), "by_principle": table}


def _with_truth(preferences: Sequence[Preference], truth: Truth) -> list[tuple[float, float]]:
    """(p, y) of each preferred pair whose truth favours one side."""
    found = []
    for preference in preferences:
        if preference.status != "preferred" or preference.p_first is None:
            continue
        y = truth(preference.pair)
        if y is not None and y != 0.5:
            found.append((preference.p_first, float(y > 0.5)))
    return found


def _in_both_orders(verdicts: Iterable[Verdict]) -> dict[str, list[tuple[float, float]]]:
    """P(first) where it was shown first and where second, of each question, by principle."""
    questions: dict[tuple[str, str, str], dict[Order, float]] = defaultdict(dict)
    for v in verdicts:
        if v.p_first is not None:
            questions[v.principle, v.pair_id, v.judge][v.order] = v.p_first
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (principle, *_), orders in questions.items():
        if len(orders) == 2:
            found[principle].append((orders["first_second"], orders["second_first"]))
    return found
