"""Numbers with their uncertainty: intervals, calibration, agreement, position bias.

Pure functions over arrays and records; no model, no file. N is the number of items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlaif.errors import DataError
from rlaif.records import Order, Pair, Preference, Verdict
from rlaif.training.calibration import (
    Floats,
    as_floats,
    brier,
    expected_calibration_error,
    same_length,
)

__all__ = [
    "Interval",
    "accuracy",
    "bootstrap",
    "brier",
    "cohen_kappa",
    "expected_calibration_error",
    "label_quality",
    "position_bias",
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
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    first, second = Counter(a), Counter(b)
    expected = sum(first[label] * second[label] for label in first) / (n * n)
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
    one = _picks_first_slot(as_floats(shown_first, "shown_first"))
    two = _picks_first_slot(1 - as_floats(shown_second, "shown_second"))
    same_length(one, two)
    both_first, both_second = float(np.mean(one * two)), float(np.mean((1 - one) * (1 - two)))
    same = both_first + both_second
    return {
        "same_slot_rate": same,
        "swap_consistency": 1 - same,
        "first_slot_share": both_first / same if same else 0.5,
        "says_first": float(np.mean(np.concatenate([one, two]))),
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
    """What is known about a set of AI labels.

    `truth(pair)` is the true P(first is better), None or ½ where neither is. Agreement and
    calibration count the preferred pairs whose truth differs. Keys without anything to count are
    None: an unknown number is not a zero.
    """
    made = list(verdicts)
    known = _with_truth(preferences, truth or (lambda pair: pair.label))
    out: dict[str, Any] = {
        "pairs": len(pairs),
        "verdicts": len(made),
        "status": dict(Counter(p.status for p in preferences)),
        "abstained": sum(v.abstained for v in made),
        "abstained_by_reason": dict(Counter(v.reason for v in made if v.reason is not None)),
        "label_mass": _mean(v.mass for v in made if v.mass is not None),
        "gold_agreement": None,
        "ece": None,
        "brier": None,
        **_slots(made),
    }
    if known:
        p, y = np.array(known).T
        hits = int(((p > 0.5) == (y > 0.5)).sum())
        out["gold_agreement"] = wilson(hits, len(known)).as_dict()
        out["ece"], out["brier"] = expected_calibration_error(p, y), brier(p, y)
    return out


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


def _slots(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Position bias over the questions judged in both orders, in all and by principle."""
    names = ("same_slot_rate", "swap_consistency", "first_slot_share", "says_first")
    questions: dict[tuple[str, str], dict[Order, float]] = defaultdict(dict)
    for v in verdicts:
        if v.p_first is not None:
            questions[v.principle, v.pair_id][v.order] = v.p_first
    by_principle: Mapping[str, list[tuple[float, float]]] = defaultdict(list)
    for (principle, _), orders in questions.items():
        if len(orders) == 2:
            by_principle[principle].append((orders["first_second"], orders["second_first"]))
    every = [both for column in by_principle.values() for both in column]
    if not every:
        return {**dict.fromkeys(names), "by_principle": {}}
    table = {
        name: {**position_bias(*np.array(column).T), "n": len(column)}
        for name, column in by_principle.items()
    }
    return {**position_bias(*np.array(every).T), "by_principle": table}


def _mean(values: Iterable[float]) -> float | None:
    array = np.fromiter(values, dtype=np.float64)
    return float(array.mean()) if array.size else None
