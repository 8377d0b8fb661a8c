"""What is known of a set of AI labels: their status, agreement, calibration and position bias.

It is computed from records; no model, no file. The statistics stand in `rlaif.statistics`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rlaif.records import Order, Pair, Preference, Verdict
from rlaif.statistics.calibration import brier, expected_calibration_error
from rlaif.statistics.intervals import share
from rlaif.statistics.slots import SlotCounts, leaning, picks_first_slot, same_slot

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
    """What is known about AI labels that come in parts: it keeps counts, and a few numbers a pair.

    `truth(pair)` is the true P(first is better), None where it is not known, ½ where neither is.
    Calibration counts the preferred pairs whose truth is known, agreement those of them whose truth
    favours one side. Keys without anything to count are None: an unknown number is not a zero.
    """

    def __init__(self, truth: Truth | None = None) -> None:
        self.pairs = self.verdicts = 0
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unlabelled: Counter[str] = Counter()  # pairs, by why they have no label
        self.people = self.changed = 0  # labels with people's word; of them, those it changed
        self._truth = truth or (lambda pair: pair.label)
        self._p, self._y, self._prompts = array("d"), array("d"), array("Q")
        self._mass, self._masses, self._low_masses = 0.0, 0, 0
        self._indifferent = 0
        self._slots = SlotCounts()
        self._by_principle: dict[str, SlotCounts] = defaultdict(SlotCounts)
        # Of each pair with questions: its prompt, how many, and the share on which its orders agree
        self._asked, self._questions, self._agree = array("Q"), array("L"), array("d")

    def add(
        self, pairs: Sequence[Pair], preferences: Sequence[Preference], verdicts: Iterable[Verdict]
    ) -> None:
        """Some pairs with their preferences and all of their verdicts."""
        made = list(verdicts)
        self.pairs += len(pairs)
        self.verdicts += len(made)
        self.status.update(p.status for p in preferences)
        self.unlabelled.update(p.reason for p in preferences if p.reason is not None)
        spoken = [p for p in preferences if p.people is not None]
        self.people += len(spoken)
        self.changed += sum(_side(p.status, p.p_first) != _side(*p.by_verdicts) for p in spoken)
        self.reasons.update(v.reason for v in made if v.reason is not None)
        masses = [v.mass for v in made if v.mass is not None]
        self._mass, self._masses = self._mass + math.fsum(masses), self._masses + len(masses)
        self._low_masses += sum(mass < 0.5 for mass in masses)
        for pair, p, y in _with_truth(preferences, self._truth):
            self._prompts.append(_number(pair))
            self._p.append(p)
            self._y.append(y)
        prompts = {pair.id: _number(pair) for pair in pairs}
        agree: dict[str, list[float]] = defaultdict(list)  # by pair, its questions
        for principle, both in _in_both_orders(made).items():
            orders = np.array([p for _, p in both])  # (N, 2)
            clear = leaning(*orders.T)
            self._indifferent += len(orders) - int(clear.sum())
            if not clear.any():
                continue
            for counts in (self._slots, self._by_principle[principle]):
                counts.add(*orders[clear].T)
            first, second = orders[clear, 0], orders[clear, 1]
            same = same_slot(picks_first_slot(first), picks_first_slot(1 - second))
            for i, x in zip(np.flatnonzero(clear).tolist(), same.tolist(), strict=True):
                agree[both[i][0]].append(1 - x)
        for pair_id, found in agree.items():
            self._asked.append(prompts[pair_id])
            self._questions.append(len(found))
            self._agree.append(math.fsum(found) / len(found))

    def result(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "pairs": self.pairs,
            "verdicts": self.verdicts,
            "status": dict(self.status),
            "abstained": self.reasons.total(),
            "abstained_by_reason": dict(self.reasons),
            "unlabelled_by_reason": dict(self.unlabelled),
            "label_mass": self._mass / self._masses if self._masses else None,
            "mass_under_half": self._low_masses / self._masses if self._masses else None,
            "gold_agreement": None,
            "ece": None,
            "brier": None,
            **self._position(),
        }
        if self._p:
            p, y, prompts = (np.array(column) for column in (self._p, self._y, self._prompts))
            out["ece"], out["brier"] = expected_calibration_error(p, y), brier(p, y)
            sided = y != 0.5
            if sided.any():
                right = (p[sided] > 0.5) == (y[sided] > 0.5)
                found = share(right.astype(np.float64), prompts[sided].tolist())
                out["gold_agreement"] = found.as_dict()
        return out

    def _position(self) -> dict[str, Any]:
        """Position bias, in all and by principle, over the questions on which the judge leans."""
        asked = {"questions": self._slots.n, "indifferent": self._indifferent}
        if not self._slots.n:
            names = ("same_slot_rate", "swap_consistency", "first_slot_share", "says_first")
            return {
                **asked,
                **dict.fromkeys(names),
                "swap_interval": None,
                "swap_prompts": 0,
                "by_principle": {},
            }
        table = {name: {**c.rates(), "n": c.n} for name, c in self._by_principle.items()}
        prompts = self._asked.tolist()
        found = share(self._agree, prompts, weights=self._questions)
        return {
            **asked,
            **self._slots.rates(),
            "swap_interval": found.as_dict(),
            "swap_prompts": len(set(prompts)),
            "by_principle": table,
        }


def _side(status: str, p: float | None) -> str:
    return status if status != "preferred" or p is None else f"first {p > 0.5}"


def _number(pair: Pair) -> int:
    """The prompt of a pair in eight bytes."""
    return int(pair.prompt.id[:16], 16)


def _with_truth(preferences: Sequence[Preference], truth: Truth) -> list[tuple[Pair, float, float]]:
    """(pair, p, y) of each preferred pair whose truth is known."""
    found = []
    for preference in preferences:
        if preference.status != "preferred" or preference.p_first is None:
            continue
        y = truth(preference.pair)
        if y is not None:
            found.append((preference.pair, preference.p_first, y))
    return found


def _in_both_orders(
    verdicts: Iterable[Verdict],
) -> dict[str, list[tuple[str, tuple[float, float]]]]:
    """By principle, the pair of each question that was answered in both orders, with its P(first)
    where it was shown first and where second."""
    questions: dict[tuple[str, str, str], dict[Order, float]] = defaultdict(dict)
    for v in verdicts:
        if v.p_first is not None:
            questions[v.principle, v.pair_id, v.judge][v.order] = v.p_first
    found: dict[str, list[tuple[str, tuple[float, float]]]] = defaultdict(list)
    for (principle, pair_id, _), orders in questions.items():
        if len(orders) == 2:
            both = (orders["first_second"], orders["second_first"])
            found[principle].append((pair_id, both))
    return found
