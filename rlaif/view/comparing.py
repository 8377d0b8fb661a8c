"""Two runs side by side: which labels changed, and what turned them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.evaluation.compare import (
    PEOPLE,
    SIDES,
    Comparison,
    LabelRule,
    by_people,
    joined,
    moves,
    opinions,
    side,
)
from rlaif.evaluation.largest import Largest
from rlaif.records import Pair, Preference, mirrored
from rlaif.stages.stored import Stored
from rlaif.view.index import Index, Made

KEEP = 100  # changed labels that are shown: those that are farthest apart


@dataclass(frozen=True, slots=True)
class Change:
    """A pair whose label says something else in the other run: `sides` are what both say, `p`
    P(first is better) by each, ½ where there is none. `by` is the principle's opinion, or the rule,
    that alone moves the first label farthest towards the second, or people's word; None where none
    does."""

    pair: Pair
    sides: tuple[str, str]
    p: tuple[float, float]
    moves: Mapping[str, float]
    by: str | None

    @property
    def flipped(self) -> bool:
        """Whether the two prefer different responses."""
        return set(self.sides) == {"first", "second"}

    @property
    def distance(self) -> float:
        return abs(self.p[1] - self.p[0])


def change(a: Preference, b: Preference, rules: tuple[LabelRule, LabelRule]) -> Change | None:
    """How a pair's label changed from one run to the other; None where it says the same."""
    said = side(a), side(b)
    if said[0] == said[1]:
        return None
    p = tuple(0.5 if one.p_first is None else float(one.p_first) for one in (a, b))
    moved = moves(opinions(a), opinions(b), *rules)
    towards = p[1] - p[0]
    able = {name: move for name, move in moved.items() if move * towards > 0}
    by = max(able, key=lambda name: abs(able[name]), default=None)
    return Change(a.pair, said, (p[0], p[1]), moved, PEOPLE if by_people(a, b) else by)


class Changes:
    """All changed labels of two runs counted, and those farthest apart kept."""

    def __init__(self, rules: tuple[LabelRule, LabelRule]) -> None:
        self.rules = rules
        self.counts = Comparison(rules, keep=0)
        self.by: Counter[str | None] = Counter()
        self.flipped_by: Counter[str | None] = Counter()
        self._kept = Largest[Change](KEEP)

    def add(self, a: Preference, b: Preference | None) -> None:
        """One pair's labels, of which the second run may have none."""
        self.counts.add(a, b)
        found = None if b is None else change(a, b, self.rules)
        if found is None:
            return
        self.by[found.by] += 1
        self.flipped_by[found.by] += found.flipped
        self._kept.add(found.distance, found)

    @property
    def kept(self) -> list[Change]:
        """Those that are shown, the labels farthest apart first."""
        return [change for _, change in self._kept.found()]


class Compared:
    """The comparison of two runs, reckoned again only when one of them has changed."""

    def __init__(self, a: Index, b: Index) -> None:
        self.a, self.b = a, b
        self._lock = threading.Lock()
        self._found: tuple[Made, Made, Changes] | None = None

    def __call__(self) -> Changes:
        made = self.a.made, self.b.made
        with self._lock:
            if self._found is None or self._found[:2] != made:
                found = Changes((_rule(self.a), _rule(self.b)))
                left = self.a.store.table("preferences").iter_batches(1_024)
                for mine, other in joined(left, self.b.store.table("preferences").finder()):
                    found.add(mine, other)
                self._found = (*made, found)
            return self._found[2]

    def page(self) -> dict[str, Any]:
        """What the page shows, with both runs' opinions on each changed pair."""
        found = self()
        shown = found.kept
        ids = [one.pair.id for one in shown]
        here, there = _opinions(self.a, ids), _opinions(self.b, ids)
        rows = []
        for one in shown:
            mine, other = here.get(one.pair.id, {}), there.get(one.pair.id, {})
            names = [*mine, *(name for name in other if name not in mine)]
            told = [(name, mine.get(name), other.get(name)) for name in names]
            rows.append({"change": one, "opinions": told})
        sides = found.counts.sides
        return {
            "found": found,
            "counts": found.counts,
            "agreed": found.counts.agreement(),
            "by_principle": found.counts.by_principle(),
            "both": [(a, b, sides[a, b]) for a in SIDES for b in SIDES if sides[a, b]],
            "rows": rows,
            "wording": [
                {p["id"]: p.get("compare") or "" for p in index.made.asked.principles}
                for index in (self.a, self.b)
            ],
        }


def _opinions(index: Index, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """P(first is better) by pair and principle, told of the mirror where a run has that."""
    found: dict[str, dict[str, float]] = {}
    mirrors = {mirrored(name): name for name in ids}
    for row in index.made.rows("preferences", "pair_id", [*mirrors, *ids]):
        told = dict(zip(row["principles"], row["p_principles"], strict=True))
        name = row["pair_id"]
        if name in mirrors:
            found.setdefault(mirrors[name], {n: 1 - p for n, p in told.items()})
        else:
            found[name] = told
    return found


def _rule(index: Index) -> LabelRule:
    """How a run makes its labels; a plain mean where it has no config to say so."""
    return Stored(index.root).rule if index.store.path("run.yaml").is_file() else LabelRule()
