"""Statistics over verdicts and preferences, as arrays: a pair × a principle × an order.

Everything counts abstentions apart: they are never a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlaif.judges.ensembles import OrderRule, over_orders
from rlaif.statistics.calibration import confidence_bins, folded
from rlaif.statistics.intervals import Interval, share
from rlaif.statistics.slots import leaning, slot_intervals

Floats = NDArray[np.float64]
DECIDED = 0.1  # a principle has something to say about a pair when |p − ½| is at least this


@dataclass(frozen=True)
class Cube:
    """All current verdicts. Axes: pairs (P), principles (C), orders (2: first shown first, second).

    With a jury each principle is there once a juror, as `principle · juror`.
    `p` is P(first ≻ second), NaN where the judge abstained or was not asked; `mass` the probability
    of the offered labels together; `reason` "" where nothing was asked, "judged", or why not. The
    orders of a question are made one by `rule`, as they were for the labels.
    """

    principles: tuple[str, ...]
    p: Floats
    mass: Floats
    reason: NDArray[np.object_]
    rule: OrderRule = "mean"

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Where a verdict is stored."""
        return np.asarray(self.reason != "", dtype=bool)

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """Where the stored verdict is an abstention."""
        return np.asarray((self.reason != "") & (self.reason != "judged"), dtype=bool)

    def reasons(self, principle: int) -> Counter[str]:
        """Why the judge abstained under a principle, and how often."""
        return Counter(self.reason[:, principle][self.abstained[:, principle]].tolist())

    @cached_property
    def debiased(self) -> Floats:
        """P(first) of a pair under a principle, (P, C), made one of the orders it is asked in.

        NaN where one of them is an abstention or still to be asked, as in the aggregation.
        """
        orders = np.asarray(self.asked.any(axis=0), dtype=bool)  # (C, 2): jurors may differ
        found = np.full(self.p.shape[:2], np.nan)
        for c, asked in enumerate(orders):
            known = asked.any() & np.isfinite(self.p[:, c, asked]).all(axis=1)
            rows = self.p[known][:, c, asked].tolist()
            found[known, c] = [over_orders(row, self.rule) for row in rows]
        return found

    def slots(self, prompts: Sequence[str], principle: int | None = None) -> dict[str, Interval]:
        """Position bias of one principle or of all, with intervals over the pairs' prompts.

        A question is a pair under a principle, judged in both orders, on which the judge leans to
        one side in at least one of them. Empty where there is none.
        """
        p = self.p if principle is None else self.p[:, [principle]]
        pairs, columns = np.nonzero(np.isfinite(p).all(axis=2))
        both = p[pairs, columns]
        clear = leaning(*both.T) if len(both) else np.zeros(0, dtype=bool)
        if not clear.any():
            return {}
        names = [prompts[i] for i in pairs[clear].tolist()]
        return slot_intervals(both[clear, 0], both[clear, 1], names)


def mean(values: Floats) -> float | None:
    """The mean of the known values, or None when there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def agreement(p: Floats, truth: Floats, prompts: Sequence[str]) -> Interval | None:
    """Share of pairs on which both sides prefer the same completion, of those where both do.

    `prompts` names each pair's prompt, over which the interval is.
    """
    usable = np.isfinite(p) & np.isfinite(truth) & (p != 0.5) & (truth != 0.5)
    same = (p[usable] > 0.5) == (truth[usable] > 0.5)
    names = [prompts[i] for i in np.flatnonzero(usable).tolist()]
    return share(same.astype(np.float64), names) if same.size else None


def unseparated(
    p: Floats, truth: Floats, tied: NDArray[np.bool_], prompts: Sequence[str]
) -> Interval | None:
    """Of the pairs whose label prefers a side and whose truth is known, the share whose truth
    prefers none: such labels are noise, and no accuracy counts them.

    `tied` says of each pair that its truth is known to favour neither side; a `truth` of ½ says the
    same.
    """
    equal = tied | (truth == 0.5)
    usable = np.isfinite(p) & (p != 0.5) & (np.isfinite(truth) | equal)
    names = [prompts[i] for i in np.flatnonzero(usable).tolist()]
    return share(equal[usable].astype(np.float64), names) if names else None


@dataclass(frozen=True, slots=True)
class PrincipleRow:
    """One principle's column of verdicts, summed up; None where there is nothing to count."""

    id: str
    verdicts: int
    abstained: int
    strength: float | None  # mean |p − ½| over pairs, orders averaged
    decided: float | None  # share of pairs with |p − ½| ≥ DECIDED
    aggregate: Interval | None  # agreement with the aggregated label
    known: Interval | None  # agreement with what is known
    says_first: Interval | None  # share of verdicts for the completion shown first
    swap: Interval | None  # share of pairs on which both orders prefer one completion
    mass: float | None


def principle_rows(
    cube: Cube, preferred: Floats, known: Sequence[Floats], prompts: Sequence[str]
) -> list[PrincipleRow]:
    """One row a principle. `preferred` is P(first) by pair, `known` the same of each principle,
    `prompts` the name of each pair's prompt."""
    debiased = cube.debiased
    rows = []
    for c, name in enumerate(cube.principles):
        p = debiased[:, c]
        distance = np.abs(p - 0.5)
        slots = cube.slots(prompts, c)
        rows.append(
            PrincipleRow(
                id=name,
                verdicts=int(cube.asked[:, c].sum()),
                abstained=int(cube.abstained[:, c].sum()),
                strength=mean(distance),
                # 0.5 − 0.4 is a hair under 0.1 as a float
                decided=mean(np.where(np.isfinite(p), distance >= DECIDED - 1e-9, np.nan)),
                aggregate=agreement(p, preferred, prompts),
                known=agreement(p, known[c], prompts),
                says_first=slots.get("says_first"),
                swap=slots.get("swap_consistency"),
                mass=mean(cube.mass[:, c]),
            )
        )
    return rows


def principle_agreement(cube: Cube) -> list[list[tuple[float | None, int]]]:
    """For each two principles the share of pairs on which both lean to one side of those on which
    both lean by DECIDED or more, and how many these are; None where there is none."""
    lean = cube.debiased - 0.5
    side = np.where(np.abs(lean) >= DECIDED - 1e-9, np.sign(lean), 0.0)
    side = np.where(np.isfinite(lean), side, 0.0)  # (P, C): −1, 0, 1
    both = (np.abs(side).T @ np.abs(side)).astype(int)
    same = (both + side.T @ side) / 2
    return [
        [(float(s) / n if n else None, int(n)) for s, n in zip(row, counts, strict=True)]
        for row, counts in zip(same, both, strict=True)
    ]


def bins(values: Floats, n: int = 20) -> list[int]:
    """Counts of the known values in n equal bins over [0, 1]."""
    return [int(c) for c in np.histogram(values[np.isfinite(values)], bins=n, range=(0, 1))[0]]


def order_grid(cube: Cube, n: int = 20) -> list[list[int]]:
    """Counts of (pair, principle) by p(first) when shown first (column) and second (row)."""
    both = cube.p[np.isfinite(cube.p).all(axis=2)]
    grid = np.histogram2d(both[:, 1], both[:, 0], bins=n, range=((0, 1), (0, 1)))[0]
    return [[int(c) for c in row] for row in grid]


def reliability_points(
    p: Floats, truth: Floats, prompts: Sequence[str], n: int = 10
) -> list[tuple[float, Interval]]:
    """(mean confidence, what is known of the side preferred) of each filled bin.

    `truth` is P(first is better), ½ of a tie. Folded, as which completion stands first may say
    something (in hh-rlhf it is the chosen one). The bins are those of the expected calibration
    error.
    """
    usable = np.flatnonzero(np.isfinite(p) & np.isfinite(truth))
    if not usable.size:
        return []
    confidence, outcome = folded(p[usable], truth[usable])
    index = confidence_bins(confidence, n)
    found = []
    for b in np.unique(index).tolist():
        here = np.flatnonzero(index == b)
        names = [prompts[i] for i in usable[here].tolist()]
        found.append((float(confidence[here].mean()), share(outcome[here], names)))
    return found


def telling_pairs(
    cube: Cube, preference: Floats, known: Floats, each: int = 3
) -> list[tuple[str, list[int]]]:
    """Pairs worth reading, by kind: indices into the cube, no pair twice."""
    # A pair whose principles were all masked has no label, but it has verdicts.
    lean = np.where(np.isfinite(preference), preference, _row_means(cube.debiased))
    distance = np.abs(lean - 0.5)
    gaps = _row_means(np.abs(cube.p[:, :, 0] - cube.p[:, :, 1]))
    opposed = (preference - 0.5) * (known - 0.5) < 0
    kinds: list[tuple[str, Floats]] = [
        ("Most decided", distance),
        ("Least decided", -distance),
        ("The orders disagree", np.where(gaps > DECIDED, gaps, np.nan)),
        ("Against what is known", np.where(opposed, distance, np.nan)),
    ]
    taken: set[int] = set()
    out = []
    for name, score in kinds:
        best = np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
        chosen = [int(i) for i in best[: each + len(taken)] if np.isfinite(score[i])]
        chosen = [i for i in chosen if i not in taken][:each]
        taken.update(chosen)
        if chosen:
            out.append((name, chosen))
    return out


def _row_means(values: Floats) -> Floats:
    """The mean of each row's known values, NaN where it has none."""
    known = np.isfinite(values).sum(axis=1)
    return np.where(known, np.nansum(values, axis=1) / np.maximum(known, 1), np.nan)
