"""How the jurors of a jury agree with one another, and where too few of them could tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlaif.evaluation.metrics import kappa_of_table, wilson
from rlaif.executors import Judged
from rlaif.preferences import debias
from rlaif.records import Order, Verdict


class JuryAgreement:
    """Counts over a jury's verdicts, which come in parts; a part has all verdicts of its pairs.

    A question is a pair under a principle. A juror's opinion of it is its P(first is better), the
    mean over the `orders` it is asked in; one that abstained in any of them has none. It leans
    where |p − ½| is at least `margin`, and p is not ½. A question is short of quorum when fewer
    than `quorum` jurors have an opinion.
    """

    def __init__(
        self, orders: Mapping[str, Sequence[Order]], *, quorum: int = 1, margin: float = 0.0
    ) -> None:
        self.orders, self.quorum, self.margin = orders, quorum, margin
        self.questions = self.short = 0
        self.opinions: Counter[str] = Counter()
        self._both: Counter[tuple[str, str]] = Counter()  # questions of which two had an opinion
        self._tables = {two: np.zeros((2, 2), dtype=int) for two in combinations(sorted(orders), 2)}

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Some pairs' verdicts, with the jurors' names as judges."""
        asked: dict[tuple[str, str], dict[str, dict[Order, Verdict]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for v in verdicts:
            asked[v.pair_id, v.principle][v.judge][v.order] = v
        self.questions += len(asked)
        for columns in asked.values():
            opinions = debias(columns, self.orders)
            self.opinions.update(opinions.keys())
            self.short += len(opinions) < self.quorum
            for two, table in self._tables.items():
                if all(name in opinions for name in two):
                    self._both[two] += 1
                    p, q = (opinions[name] for name in two)
                    if self._leans(p) and self._leans(q):
                        table[int(p < 0.5), int(q < 0.5)] += 1

    def counted(self, stream: Iterable[Judged]) -> Iterator[Judged]:
        """The same chunks, counted as they pass."""
        for part in stream:
            self.add(part.rows)
            yield part

    def _leans(self, p: float) -> bool:
        return p != 0.5 and abs(p - 0.5) >= self.margin

    def agreement(self) -> list[dict[str, Any]]:
        """By two jurors: `questions` on which both have an opinion, and of those on which both lean
        the share to the `same_side`, with Wilson's interval, and Cohen's `kappa`; None where there
        is no such question."""
        return [
            {"jurors": list(two), "questions": self._both[two], **_agreement(table)}
            for two, table in self._tables.items()
        ]

    def result(self) -> dict[str, Any]:
        """What `labels.json` tells of a jury."""
        return {
            "questions": self.questions,
            "quorum": self.quorum,
            "short_of_quorum": self.short,
            "opinions": {name: self.opinions[name] for name in sorted(self.orders)},
            "agreement": self.agreement(),
        }


def _agreement(table: Any) -> dict[str, Any]:
    n = int(table.sum())
    if not n:
        return {"same_side": None, "kappa": None}
    same = wilson(int(table.trace()), n).as_dict()
    return {"same_side": same, "kappa": kappa_of_table(table)}
