"""How the jurors of a jury agree with one another, and where too few of them could tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from rlaif.judges.ensembles import OrderRule
from rlaif.judges.preferences import debias
from rlaif.records import Order, Pair, Verdict
from rlaif.statistics.agreement import SideAgreement
from rlaif.steps.executors import Judged


class JuryAgreement:
    """Counts over a jury's verdicts, which come in parts; a part has all verdicts of its pairs.

    A question is a pair under a principle. A juror's opinion of it is its P(first is better), the
    `orders` it is asked in made one by `rule`; one that abstained in any of them has none. It leans
    where |p − ½| is at least `margin`, and p is not ½. A question is short of quorum when fewer
    than `quorum` jurors have an opinion.
    """

    def __init__(
        self,
        orders: Mapping[str, Sequence[Order]],
        *,
        rule: OrderRule = "mean",
        quorum: int = 1,
        margin: float = 0.0,
    ) -> None:
        self.orders, self.rule, self.quorum, self.margin = orders, rule, quorum, margin
        self.questions = self.short = 0
        self.opinions: Counter[str] = Counter()
        self._both: Counter[tuple[str, str]] = Counter()  # questions of which two had an opinion
        # Of each question on which two lean
        self._sides = {two: SideAgreement() for two in combinations(sorted(orders), 2)}

    def add(self, pairs: Iterable[Pair], verdicts: Iterable[Verdict]) -> None:
        """Some pairs and all their verdicts, with the jurors' names as judges."""
        prompts = {pair.id: int(pair.prompt.id[:16], 16) for pair in pairs}
        asked: dict[tuple[str, str], dict[str, dict[Order, Verdict]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for v in verdicts:
            asked[v.pair_id, v.principle][v.judge][v.order] = v
        self.questions += len(asked)
        for (pair_id, _), columns in asked.items():
            opinions = debias(columns, self.orders, self.rule)
            self.opinions.update(opinions.keys())
            self.short += len(opinions) < self.quorum
            for two, sides in self._sides.items():
                if all(name in opinions for name in two):
                    self._both[two] += 1
                    p, q = (opinions[name] for name in two)
                    if self._leans(p) and self._leans(q):
                        sides.add(p, q, prompts[pair_id])

    def counted(self, stream: Iterable[Judged]) -> Iterator[Judged]:
        """The same chunks, counted as they pass."""
        for part in stream:
            self.add(part.items, part.rows)
            yield part

    def _leans(self, p: float) -> bool:
        return p != 0.5 and abs(p - 0.5) >= self.margin

    def agreement(self) -> list[dict[str, Any]]:
        """By two jurors: `questions` on which both have an opinion, and of those on which both lean
        the share to the `same_side`, with its interval over prompts, and Cohen's `kappa` with its
        `kappa_interval`; None where there is no such question."""
        return [
            {
                "jurors": list(two),
                "questions": self._both[two],
                **_agreement(sides),
            }
            for two, sides in self._sides.items()
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


def _agreement(sides: SideAgreement) -> dict[str, Any]:
    found = sides.result()
    if found is None:
        return {"same_side": None, "kappa": None, "kappa_interval": None}
    return {
        "same_side": found.same_side.as_dict(),
        "kappa": found.kappa.value,
        "kappa_interval": [found.kappa.low, found.kappa.high],
    }
