"""Two runs' labels of the same pairs: where they agree, which flipped, and what turned them.

Pure functions over preferences: no model, and no verdict is read. A label is made of the opinions
of its principles (`Preference.p_principles`), so what turned it is found by putting one opinion of
the other run at a time into the place of this run's and making the label again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlaif.constitution import Principle
from rlaif.evaluation.largest import Largest
from rlaif.judges.ensembles import TIER_MARGIN, Rule, over_principles
from rlaif.records import Pair, Preference, mirrored
from rlaif.statistics.agreement import Agreement, SideAgreement

Find = Callable[[Sequence[str]], Mapping[str, Preference]]
THE_RULE = "the rule"  # stands among principles for the rule that makes a label of them
PEOPLE = "people"  # and for their word in a label (`preferences.people`)
SIDES = ("first", "second", "tie", "abstained")


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a run makes a label of the opinions of its principles."""

    name: Rule = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)
    tiers: Mapping[str, int | None] = field(default_factory=dict)
    tier_margin: float = TIER_MARGIN

    @classmethod
    def recorded(cls, rule: Mapping[str, Any], principles: Iterable[Principle]) -> LabelRule:
        """That of a manifest's `rule`, with what its principles say of themselves."""
        known = tuple(principles)
        return cls(
            rule.get("aggregate", "mean"),
            {p.id: p.weight for p in known},
            {p.id: p.tier for p in known},
            rule.get("tier_margin", TIER_MARGIN),
        )

    def knowing(self, other: LabelRule) -> LabelRule:
        """The same rule, with the other's word on principles of which this one knows nothing."""
        return replace(
            self,
            weights={**other.weights, **self.weights},
            tiers={**other.tiers, **self.tiers},
        )

    def __call__(self, opinions: Mapping[str, float]) -> float:
        """P(first is better); ½ where no principle has an opinion."""
        weights = {name: self.weights.get(name, 1.0) for name in opinions}
        found = over_principles(opinions, self.name, weights, self.tiers, self.tier_margin)
        return 0.5 if found is None else found


@dataclass(frozen=True, slots=True)
class Flip:
    """A pair of which the two runs prefer different responses.

    `p` is P(first is better) by each, `moves` how far the label of run A moves when one opinion
    alone, or the rule alone, is that of run B. `turned_by` is the one that moves it farthest
    towards B's side, None where none does alone; `alone` says whether it takes the label there. It
    is `PEOPLE` where the verdicts alone say the same in both runs.
    """

    pair: Pair
    p: tuple[float, float]
    moves: Mapping[str, float]
    turned_by: str | None
    alone: bool

    @property
    def change(self) -> float:
        """How far apart the two labels are."""
        return abs(self.p[1] - self.p[0])


def joined(
    left: Iterable[Sequence[Preference]], find: Find
) -> Iterator[tuple[Preference, Preference | None]]:
    """Each preference of the left run with the right run's of the same pair, None without one.

    A pair whose responses stand the other way round in the right run is the same pair: its label
    is told of the left run's first response.
    """
    for batch in left:
        mirrors = [mirrored(preference.pair.id) for preference in batch]
        found = find([*(preference.pair.id for preference in batch), *mirrors])
        for preference, mirror in zip(batch, mirrors, strict=True):
            other = found.get(preference.pair.id)
            if other is None and (seen := found.get(mirror)) is not None:
                other = seen.swap()
            yield preference, other


def side(preference: Preference) -> str:
    """What a label says: `first`, `second`, `tie` or `abstained`."""
    if preference.status != "preferred":
        return preference.status
    return "first" if preference.first_is_chosen else "second"


def by_people(a: Preference, b: Preference) -> bool:
    """Whether people's word makes two labels differ: of the verdicts alone both say the same."""
    return a.people != b.people and _alone(a) == _alone(b)


def _alone(preference: Preference) -> tuple[str, bool]:
    status, p = preference.by_verdicts
    return status, status == "preferred" and p is not None and p > 0.5


def opinions(preference: Preference) -> dict[str, float]:
    """P(first is better) of each principle that counted."""
    return dict(zip(preference.principles, preference.p_principles, strict=True))


def moves(
    before: Mapping[str, float], after: Mapping[str, float], rule: LabelRule, other: LabelRule
) -> dict[str, float]:
    """How far a label moves when one principle's opinion alone is the other run's, and when the
    rule alone is (`THE_RULE`); those that move nothing are left out.

    An opinion that only one run has is added or left out. Under `mean` of the same principles the
    moves sum to the whole change.
    """
    here, there = rule.knowing(other), other
    start = here(before)
    found = {}
    for name in {**before, **after}:
        changed = {k: p for k, p in before.items() if k != name}
        if name in after:
            changed[name] = after[name]
        found[name] = here(changed) - start
    found[THE_RULE] = there(before) - start
    return {name: move for name, move in found.items() if abs(move) > 1e-12}


def flipped(a: Preference, b: Preference, rules: tuple[LabelRule, LabelRule]) -> Flip | None:
    """The flip of a pair from run A to run B; None unless they prefer different sides."""
    if {side(a), side(b)} != {"first", "second"}:
        return None
    before, after = opinions(a), opinions(b)
    found = moves(before, after, *rules)
    towards = 1.0 if b.first_is_chosen else -1.0
    able = {name: move for name, move in found.items() if move * towards > 0}
    p = (float(a.p_first or 0), float(b.p_first or 0))
    if by_people(a, b):
        return Flip(a.pair, p, found, PEOPLE, True)
    best = max(able, key=lambda name: abs(able[name]), default=None)
    start = rules[0].knowing(rules[1])(before)
    alone = best is not None and (start + able[best] - 0.5) * towards > 0
    return Flip(a.pair, p, found, best, alone)


class Comparison:
    """Counts over the preferences of two runs, A and B, which come pair by pair.

    `rules` are those that make their labels. `keep` of the flips are kept whole: those whose labels
    are farthest apart. Memory grows by some bytes a pair.
    """

    def __init__(
        self, rules: tuple[LabelRule, LabelRule] = (LabelRule(), LabelRule()), *, keep: int = 20
    ) -> None:
        self.rules = rules
        self.only_a = self.both = 0
        self.sides: Counter[tuple[str, str]] = Counter()  # what A and B say of a pair
        self.turned_by: Counter[str | None] = Counter()
        self.alone: Counter[str | None] = Counter()  # of these, those that turn the label alone
        self._labels = SideAgreement()
        self._principles: dict[str, SideAgreement] = {}
        self._change = 0.0
        self._changes = 0
        self._flips = Largest[Flip](keep)

    def add(self, a: Preference, b: Preference | None) -> Flip | None:
        """One pair's labels, of which B may have none; returns the flip, if it is one."""
        if b is None:
            self.only_a += 1
            return None
        self.both += 1
        self.sides[side(a), side(b)] += 1
        prompt = int(a.pair.prompt.id[:16], 16)
        if a.p_first is not None and b.p_first is not None:
            self._change += abs(a.p_first - b.p_first)
            self._changes += 1
        if a.status == b.status == "preferred":
            self._labels.add(float(a.p_first or 0), float(b.p_first or 0), prompt)
        before, after = opinions(a), opinions(b)
        for name in before.keys() & after.keys():
            self._principles.setdefault(name, SideAgreement()).add(
                before[name], after[name], prompt
            )
        flip = flipped(a, b, self.rules)
        if flip is not None:
            self.turned_by[flip.turned_by] += 1
            self.alone[flip.turned_by] += flip.alone
            self._flips.add(flip.change, flip)
        return flip

    @property
    def flips(self) -> list[Flip]:
        """Those kept, the labels farthest apart first."""
        return [flip for _, flip in self._flips.found()]

    @property
    def flip_count(self) -> int:
        """How many pairs are flipped in all."""
        return self.sides["first", "second"] + self.sides["second", "first"]

    @property
    def change(self) -> float | None:
        """Mean distance of the two labels; None where no pair has both."""
        return self._change / self._changes if self._changes else None

    def agreement(self) -> Agreement | None:
        """Of the pairs of which both runs prefer a side; None where there is none."""
        return self._labels.result()

    def by_principle(self) -> dict[str, Agreement]:
        """The same of each principle in both runs: of the pairs on which it leans in both."""
        found = {name: cells.result() for name, cells in self._principles.items()}
        return {name: agreed for name, agreed in sorted(found.items()) if agreed is not None}

    def result(self) -> dict[str, Any]:
        """All numbers, to be written as JSON; the flips by the ids of their pairs."""
        agreed, rows = self.agreement(), self.by_principle()
        return {
            "pairs": self.both,
            "only_in_a": self.only_a,
            "labels": [
                {"a": a, "b": b, "pairs": self.sides[a, b]}
                for a in SIDES
                for b in SIDES
                if self.sides[a, b]
            ],
            "agreement": None if agreed is None else _as_dict(agreed),
            "mean_change": self.change,
            "flipped": self.flip_count,
            "turned_by": [
                {"by": name, "pairs": n, "alone": self.alone[name]}
                for name, n in self.turned_by.most_common()
            ],
            "by_principle": {name: _as_dict(agreed) for name, agreed in rows.items()},
            "flips": [
                {
                    "pair": flip.pair.id,
                    "p": list(flip.p),
                    "turned_by": flip.turned_by,
                    "alone": flip.alone,
                    "moves": dict(flip.moves),
                }
                for flip in self.flips
            ],
        }


def _as_dict(agreed: Agreement) -> dict[str, Any]:
    return {"same_side": agreed.same_side.as_dict(), "kappa": agreed.kappa.as_dict()}
