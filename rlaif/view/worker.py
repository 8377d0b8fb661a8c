"""The process with the judge: reads requests as lines of JSON, answers with one line each.

`python -m rlaif.view.worker RUN`. Whatever libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.errors import DataError
from rlaif.judges.base import Ask
from rlaif.judges.ensembles import combine
from rlaif.judges.preferences import debias
from rlaif.records import Order, Pair, Preference, Verdict
from rlaif.stages.labelling import decided, prefer
from rlaif.stages.run import Run
from rlaif.stages.stored import Judged, Stored
from rlaif.steps.executors import Progress
from rlaif.store import RunStore

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

Json = dict[str, Any]


class Quiet:
    """Tells nobody what a stage does, but for warnings."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr)

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Progress]:
        del title, total
        yield lambda *_: None


@dataclass
class Again:
    """A run whose judges are loaded, to be asked about some of its pairs."""

    run: Run
    stored: Stored

    @cached_property
    def judges(self) -> list[tuple[Judged, AnyJudge]]:
        """The judge or the jurors that labelled the run, loaded."""
        return [(told, self.run.judge(told.section)) for told in self.stored.judges]

    def answer(self, asked: Json) -> Json:
        """The labels of the pairs as they are and as they would be, by the pair's id."""
        found = self.stored.store.table("pairs").finder()(asked["pairs"])
        pairs = [found[name] for name in asked["pairs"] if name in found]
        old = next((p for p in self.stored.principles if p.id == asked["principle"]), None)
        if old is None:
            raise DataError(f"no principle '{asked['principle']}' in the run's labels")
        new = old.model_copy(update={"compare": asked["compare"]})
        before, after = [], []
        for told, judge in self.judges:
            keys, asks = told.asked(pairs, self.stored.asked)
            known = [told.named(verdict) for verdict in self._known(judge, keys, asks)]
            before += known
            after += [verdict for verdict in known if verdict.principle != old.id]
            again = [replace(ask, principle=new) for ask in asks if ask.principle.id == old.id]
            after += [told.named(verdict) for verdict in judge.judge(again)]
        return {
            "judged": sum(v.principle == old.id for v in after),
            "pairs": [
                {
                    "id": pair.id,
                    "before": self._told(b, old.id, before),
                    "after": self._told(a, old.id, after),
                }
                for pair, b, a in zip(
                    pairs, self._labels(pairs, before), self._labels(pairs, after), strict=True
                )
            ],
        }

    def _known(self, judge: AnyJudge, keys: list[str], asks: list[Ask]) -> list[Verdict]:
        """The stored verdicts; those that are missing are asked for."""
        stored = self.stored.store.table("verdicts").finder()(keys)
        missing = [ask for ask, key in zip(asks, keys, strict=True) if key not in stored]
        return [*stored.values(), *(judge.judge(missing) if missing else [])]

    def _labels(self, pairs: list[Pair], verdicts: list[Verdict]) -> list[Preference]:
        label = (self.stored.manifest.get("stages") or {}).get("label") or {}
        return prefer(
            self.run.config,
            pairs,
            verdicts,
            self.stored.principles,
            self.stored.orders,
            label.get("temperature"),
            decided(self.run),
        )

    def _told(self, label: Preference, principle: str, verdicts: list[Verdict]) -> Json:
        columns: dict[str, dict[Order, Verdict]] = {}
        for v in verdicts:
            if (v.pair_id, v.principle) == (label.pair.id, principle):
                columns.setdefault(v.judge, {})[v.order] = v
        rule = self.run.config.preferences
        agreeing = rule.aggregate == "sign_agreement"
        said = debias(columns, self.stored.orders, rule.orders, agreeing=agreeing)
        weights = {juror.name: juror.weight for juror in self.run.config.jury}
        opinion = combine(said, rule.jury if weights else "mean", weights)
        return {"status": label.status, "p": label.p_first, "opinion": opinion}


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    again: Again | None = None
    root = Path(sys.argv[1])
    for line in sys.stdin:
        try:
            if again is None:
                stored = Stored(root)
                store = RunStore.open_readonly(root)
                again = Again(Run(stored.config, store, Quiet()), stored)
            told = again.answer(json.loads(line))
        except Exception as error:  # of whatever kind: the page tells it
            told = {"error": f"{error}" or type(error).__name__}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
