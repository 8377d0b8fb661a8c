"""The judges of a run: its one judge, or the jurors of a jury.

Each juror goes over all pairs by itself, and what it says is stored, so that one model is in memory
at a time. The last one's chunks are joined with the stored words of the others, so that memory does
not grow with the number of pairs. Verdicts are stored under keys that do not know the jurors'
names: another name, weight or rule asks nothing again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

from rlaif.errors import ConfigError
from rlaif.judges.base import expand
from rlaif.judges.load import judge_class
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.preferences import Orders
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Order, Pair, Verdict
from rlaif.stages.run import Run
from rlaif.stages.running import Work, judging
from rlaif.steps.executors import Done, Judged, Progress, counted

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

READ_PAIRS = 1_024  # pairs read at a time


@dataclass
class Juror:
    """One judge of a run, and what it did. `name` is None for a judge without a jury."""

    name: str | None
    section: JudgingSettings
    orders: tuple[Order, ...]
    done: Done = field(default_factory=Done)
    about: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, Any] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)  # to abstain

    @property
    def together(self) -> bool:
        """Whether it wants all pairs of a prompt in one chunk."""
        return judge_class(self.section.method).together

    def title(self, what: str) -> str:
        """Of a progress bar."""
        return what if self.name is None else f"{what}: {self.name}"

    def named(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Its verdicts under its name in the jury."""
        if self.name is None:
            return list(verdicts)
        return [replace(v, judge=self.name) for v in verdicts]


def require_unlike(asked: Iterable[tuple[Juror, str]]) -> None:
    """ConfigError where two jurors, each with its fingerprint, are one judge: their settings differ
    in what changes no verdict, or their folders are copies."""
    for (one, its), (other, others) in combinations(asked, 2):
        if its == others and one.orders == other.orders:
            raise ConfigError(
                f"jury: '{one.name}' and '{other.name}' are the same model, asked in the same way, "
                "and would always agree: leave one out, and give it a weight"
            )


def jurors(run: Run) -> list[Juror]:
    """The run's judges. One that wants a prompt's pairs together comes last, as the chunks that
    all are joined in are the last one's."""
    if not run.config.jury:
        return [Juror(None, run.config.judge, run.orders())]
    found = [Juror(j.name, j, run.orders(j)) for j in run.config.jury]
    return sorted(found, key=lambda juror: juror.together)


def orders_of(asked: Iterable[Juror]) -> Orders:
    """The orders of the run's judges, as the aggregation takes them."""
    return {j.name: j.orders for j in asked if j.name is not None} or next(iter(asked)).orders


class Panel:
    """A run's judges over its pairs, one after the other."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.jurors = jurors(run)
        self.orders = orders_of(self.jurors)
        self.total = len(run.store.table("pairs"))

    def first_ones(self) -> None:
        """All but the last judge what they have not judged; each lets go of its model."""
        for i, juror in enumerate(self.jurors[:-1]):
            with self.run.reporter.progress(juror.title("label"), self.total) as progress:
                work = self._work(juror)
                for _ in counted(work.stream, juror.done, self.total, progress):
                    pass
            self._finish(juror, work)
            del work
            later = [other.section for other in self.jurors[i + 1 :]]
            self.run.release(juror.section, keep=[*later, self.run.config.policy])

    def last_one(self, progress: Progress) -> Iterator[Judged]:
        """The last judge's chunks, each with what all said of its pairs."""
        *others, juror = self.jurors
        find = self.run.store.table("verdicts").finder() if others else None
        work = self._work(juror)
        for part in counted(work.stream, juror.done, self.total, progress):
            heard = [(juror, part.rows)]
            if find is not None:
                heard = [(other, self._stored(other, part.items, find)) for other in others] + heard
            for one, rows in heard:
                one.reasons.update(v.reason for v in rows if v.reason is not None)
            named = [v for one, rows in heard for v in one.named(rows)]
            yield replace(part, rows=named)
        self._finish(juror, work)

    def _work(self, juror: Juror) -> Work[Pair, Verdict]:
        run, table = self.run, self.run.store.table("pairs")
        if run.config.executor == "local":  # on Ray this process has no model, and so no keys
            self._reread(juror)
        work = judging(
            run.config,
            juror.section,
            lambda: run.judge(juror.section),
            chain.from_iterable(table.iter_batches(READ_PAIRS)),
            run.asked(),
            juror.orders,
            run.store.table("verdicts"),
        )
        if run.config.executor == "local":  # before it is asked
            self._alone(juror, work.about())
        return work

    def _reread(self, juror: Juror) -> None:
        """Where only `min_mass` is another than the last time, reads the stored verdicts anew."""
        said = self.run.store.read_manifest().get("judge") or {}
        if juror.name is not None:
            said = (said.get("jury") or {}).get(juror.name) or {}
        before, method = said.get("min_mass"), juror.section.method
        if method != "pairwise" or before is None or before == juror.section.min_mass:
            return
        if juror.section.show_thoughts:
            return
        if juror.section.thought_tokens:  # a verdict is a mean, which cannot be taken apart again
            return
        judge, table = self.run.judge(juror.section), self.run.store.table("verdicts")
        assert isinstance(judge, PairwiseJudge)
        find, fingerprint = table.finder(), judge.fingerprint_at(before)
        for pairs in self.run.store.table("pairs").iter_batches(READ_PAIRS):
            asks = {judge.key(a): a for a in expand(pairs, self.run.asked(), juror.orders)}
            known = find(list(asks))
            then = {k: judge.key_by(fingerprint, a) for k, a in asks.items() if k not in known}
            found = find(list(then.values()))
            rows = [judge.reread(asks[k], found[old]) for k, old in then.items() if old in found]
            if rows:
                table.append(rows)

    def _alone(self, juror: Juror, about: Mapping[str, Any]) -> None:
        known = [(j, str(j.about["fingerprint"])) for j in self.jurors if j.about]
        require_unlike([*known, (juror, str(about["fingerprint"]))])

    def _finish(self, juror: Juror, work: Work[Pair, Verdict]) -> None:
        if self.run.config.executor != "local":  # on Ray it is known when the work is done
            self._alone(juror, work.about())
        juror.about, juror.spent = work.about(), work.spent()

    def _stored(
        self,
        juror: Juror,
        pairs: Sequence[Pair],
        find: Callable[[Sequence[str]], Mapping[str, Verdict]],
    ) -> list[Verdict]:
        """What a juror that has finished said of some pairs."""
        key_by, fingerprint = judge_class(juror.section.method).key_by, juror.about["fingerprint"]
        asks = expand(pairs, self.run.asked(), juror.orders, together=juror.together)
        shows = juror.section.show_thoughts
        keys = list(dict.fromkeys(key_by(fingerprint, ask, shows) for ask in asks))
        found = find(keys)
        return [found[key] for key in keys]

    # what it came to

    @property
    def new_rows(self) -> int:
        return sum(juror.done.new_rows for juror in self.jurors)

    @property
    def title(self) -> str:
        """Of the last one's progress."""
        return self.jurors[-1].title("label")

    def facts(self) -> dict[str, Any]:
        """What all engines did, and what each juror of a jury did."""
        names = {name: None for juror in self.jurors for name in juror.spent}
        spent = {n: sum(j.spent.get(n, 0) for j in self.jurors) for n in names}
        devices = dict.fromkeys(str(j.about["device"]) for j in self.jurors)
        each = {j.name: _did(j) for j in self.jurors if j.name is not None}
        return {**spent, "device": ", ".join(devices), **({"jurors": each} if each else {})}

    def about(self) -> dict[str, Any]:
        """The manifest's `judge`: the one, or `jury`: all of them by name."""
        each = {juror.name: _about(juror) for juror in self.jurors}
        if None in each:
            return each[None]
        rule = self.run.config.preferences
        jury = {j.name: {"weight": j.weight, **each[j.name]} for j in self.run.config.jury}
        return {"jury": jury, "rule": rule.jury, "quorum": rule.quorum}


def _did(juror: Juror) -> dict[str, Any]:
    done = juror.done
    return {
        "rows": done.new_rows + done.old_rows,
        "new_rows": done.new_rows,
        "abstained": dict(juror.reasons),
        "device": juror.about["device"],
        **juror.spent,
    }


def _about(juror: Juror) -> dict[str, Any]:
    facts = {k: v for k, v in juror.about.items() if k != "device"}
    return {"model": juror.section.model, "method": juror.section.method, **facts}


@dataclass(frozen=True, slots=True)
class Bench:
    """A run's judges in this process, all loaded: for pairs that come as they are made."""

    seats: tuple[tuple[Juror, AnyJudge], ...]
    orders: Orders

    def judge(self, run: Run, pairs: Sequence[Pair]) -> list[Verdict]:
        """What all say of some pairs, under their names."""
        return [
            verdict
            for juror, judge in self.seats
            for verdict in juror.named(
                judge.judge(expand(pairs, run.asked(), juror.orders, together=judge.together))
            )
        ]

    @property
    def fingerprint(self) -> str | list[tuple[str | None, str]]:
        """Of all that can change a verdict: the judge's, or the jurors' with their names."""
        each = [(juror.name, judge.fingerprint) for juror, judge in self.seats]
        return each[0][1] if each[0][0] is None else each


def of_one(run: Run, section: JudgingSettings) -> Bench:
    """Loads one judge that is not among the run's."""
    orders = run.orders(section)
    return Bench(((Juror(None, section, orders), run.judge(section)),), orders)


def bench(run: Run) -> Bench:
    """Loads all of a run's judges."""
    asked = jurors(run)
    seats = tuple((j, run.judge(j.section)) for j in asked)
    require_unlike((juror, judge.fingerprint) for juror, judge in seats)
    return Bench(seats, orders_of(asked))
