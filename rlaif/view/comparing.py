"""Two runs side by side: which labels changed, and what turned them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from rlaif.evaluation.compare import SIDES, Comparison, LabelRule, joined
from rlaif.records import mirrored
from rlaif.stages.stored import Stored
from rlaif.view.index import Index, Made

KEEP = 200  # flips that are shown: those whose labels are farthest apart


class Compared:
    """The comparison of two runs, reckoned again only when one of them has changed."""

    def __init__(self, a: Index, b: Index) -> None:
        self.a, self.b = a, b
        self._lock = threading.Lock()
        self._found: tuple[Made, Made, Comparison] | None = None

    def __call__(self) -> Comparison:
        made = self.a.made, self.b.made
        with self._lock:
            if self._found is None or self._found[:2] != made:
                found = Comparison((_rule(self.a), _rule(self.b)), keep=KEEP)
                left = self.a.store.table("preferences").iter_batches(1_024)
                for mine, other in joined(left, self.b.store.table("preferences").finder()):
                    found.add(mine, other)
                self._found = (*made, found)
            return self._found[2]

    def page(self) -> dict[str, Any]:
        """What the page shows, with both runs' opinions on each flipped pair."""
        found = self()
        ids = [flip.pair.id for flip in found.flips]
        here, there = self._opinions(self.a, ids), self._opinions(self.b, ids)
        rows = []
        for flip in found.flips:
            mine, other = here.get(flip.pair.id, {}), there.get(flip.pair.id, {})
            names = [*mine, *(name for name in other if name not in mine)]
            rows.append({"flip": flip, "opinions": [(n, mine.get(n), other.get(n)) for n in names]})
        both = [(a, b, found.sides[a, b]) for a in SIDES for b in SIDES if found.sides[a, b]]
        return {
            "found": found,
            "agreed": found.agreement(),
            "by_principle": found.by_principle(),
            "both": both,
            "rows": rows,
            "wording": [
                {p["id"]: p.get("compare") or "" for p in index.made.asked.principles}
                for index in (self.a, self.b)
            ],
        }

    def _opinions(self, index: Index, ids: Sequence[str]) -> dict[str, dict[str, float]]:
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
