"""The judges of a run: its one judge, or the jurors of a jury, which a stage asks as one.

Each juror goes over all pairs by itself, and what it says is stored, so that one model is in memory
at a time. The last one's chunks are joined with the stored words of the others, so that memory does
not grow with the number of pairs. Verdicts are stored under keys that do not know the jurors'
names: another name, weight or rule asks nothing again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rlaif.errors import ConfigError
from rlaif.judges.base import Principles, expand
from rlaif.judges.load import judge_class
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.preferences import Orders
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Order, Pair, Verdict
from rlaif.stages.run import Run
from rlaif.stages.running import executor_of, judge_of
from rlaif.steps.executors import (
    Asking,
    Done,
    Executor,
    Judged,
    Local,
    Sink,
    Work,
    counted,
)
from rlaif.steps.rereading import reread

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

Pairs = Callable[[], Iterable[Pair]]  # from the first again, each time


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


class Judges:
    """Those who judge for a stage: the run's one judge, the jurors of its jury, or another judge.

    To the stage they are one: `verdicts` goes over pairs and `now` answers at once, and both give
    what all of them say, under their names.
    """

    def __init__(
        self,
        run: Run,
        jurors: Sequence[Juror],
        executor: Executor,
        *,
        keep: bool = False,
        principles: Principles | None = None,
    ) -> None:
        """`keep` leaves all models loaded; `principles` are asked about in the run's place."""
        self.run, self.jurors, self.executor, self.keep = run, jurors, executor, keep
        self.asked = run.asked() if principles is None else principles
        named = {j.name: j.orders for j in jurors if j.name is not None}
        self.orders: Orders = named or jurors[0].orders  # as the aggregation takes them

    @cached_property
    def seats(self) -> tuple[tuple[Juror, AnyJudge], ...]:
        """All of them in this process, loaded together."""
        seats = tuple((juror, self.run.judge(juror.section)) for juror in self.jurors)
        require_unlike((juror, judge.fingerprint) for juror, judge in seats)
        return seats

    @property
    def fingerprint(self) -> str | list[tuple[str | None, str]]:
        """Of all that can change a verdict: the judge's, or the jurors' with their names."""
        each = [(juror.name, judge.fingerprint) for juror, judge in self.seats]
        return each[0][1] if each[0][0] is None else each

    def now(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """What all say of some pairs, nothing stored: for pairs that come as they are made."""
        return [
            verdict
            for juror, judge in self.seats
            for verdict in juror.named(
                judge.judge(expand(pairs, self.asked, juror.orders, together=judge.together))
            )
        ]

    def verdicts(
        self, pairs: Pairs, total: int, sink: Sink[Verdict], title: str
    ) -> Generator[Judged, None, None]:
        """What all say of the pairs, chunk by chunk; what the sink has is not asked again.

        All but the last go over all pairs first, each letting go of its model unless it is to be
        kept. The last one's chunks are joined with what the sink has of the others. Progress is
        told under the title; close the iterator, and the last one's ends.
        """
        self.before(pairs, total, sink, title)
        *others, juror = self.jurors
        find = sink.finder() if others else None
        with self.run.reporter.progress(juror.title(title), total) as progress:
            work = self._work(juror, pairs, sink)
            for part in counted(work.stream, juror.done, total, progress):
                heard = [(juror, part.rows)]
                if find is not None:
                    told = [(other, self._stored(other, part.items, find)) for other in others]
                    heard = told + heard
                for one, rows in heard:
                    one.reasons.update(v.reason for v in rows if v.reason is not None)
                yield replace(part, rows=[v for one, rows in heard for v in one.named(rows)])
            self._finish(juror, work)

    def before(self, pairs: Pairs, total: int, sink: Sink[Verdict], title: str) -> None:
        """All but the last judge what they have not judged."""
        for i, juror in enumerate(self.jurors[:-1]):
            with self.run.reporter.progress(juror.title(title), total) as progress:
                work = self._work(juror, pairs, sink)
                for _ in counted(work.stream, juror.done, total, progress):
                    pass
            self._finish(juror, work)
            del work
            if not self.keep:
                later = [other.section for other in self.jurors[i + 1 :]]
                self.run.release(juror.section, keep=[*later, self.run.config.policy])

    def _work(self, juror: Juror, pairs: Pairs, sink: Sink[Verdict]) -> Work[Pair, Verdict]:
        run, asked = self.run, self.asked
        model = judge_of(run.config, juror.section, lambda: run.judge(juror.section))
        juror.done, juror.reasons = Done(), Counter()
        before = _threshold_before(run, juror)
        own = None if before is None else self.executor.own(model)
        if before is not None and isinstance(own, PairwiseJudge):  # those on workers ask again
            reread(pairs(), own, before, asked, juror.orders, sink)
        asking = Asking(asked, juror.orders, juror.together, juror.section.max_not_finite)
        work = self.executor.judge(pairs(), model, asking, sink)
        self._alone(juror, work.about())
        return work

    def _alone(self, juror: Juror, about: Mapping[str, Any]) -> None:
        """ConfigError where another juror is the same judge, as soon as it is known."""
        if about:
            known = [(j, str(j.about["fingerprint"])) for j in self.jurors if j.about]
            others = [(j, its) for j, its in known if j is not juror]
            require_unlike([*others, (juror, str(about["fingerprint"]))])

    def _finish(self, juror: Juror, work: Work[Pair, Verdict]) -> None:
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
        asks = expand(pairs, self.asked, juror.orders, together=juror.together)
        shows = juror.section.show_thoughts
        keys = list(dict.fromkeys(key_by(fingerprint, ask, shows) for ask in asks))
        found = find(keys)
        return [found[key] for key in keys]

    # what it came to

    @property
    def new_rows(self) -> int:
        return sum(juror.done.new_rows for juror in self.jurors)

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


def judges_of(run: Run) -> Judges:
    """The run's own, by the executor that the config names."""
    return Judges(run, jurors(run), executor_of(run.config))


def judges_at_hand(
    run: Run, section: JudgingSettings | None = None, principles: Principles | None = None
) -> Judges:
    """The run's own in this process, all loaded and kept; or the one of a section instead. They ask
    about the run's principles, or others."""
    asked = jurors(run) if section is None else [Juror(None, section, run.orders(section))]
    found = Judges(run, asked, Local(run.config.chunk), keep=True, principles=principles)
    _ = found.seats  # loads them
    return found


def _threshold_before(run: Run, juror: Juror) -> float | None:
    """The `min_mass` of the last time, where only that is another now: stored verdicts can be read
    anew. None where they cannot, or need not."""
    said = run.store.read_manifest().get("judge") or {}
    if juror.name is not None:
        said = (said.get("jury") or {}).get(juror.name) or {}
    before, section = said.get("min_mass"), juror.section
    if section.method != "pairwise" or before is None or before == section.min_mass:
        return None
    # with thoughts a verdict is a mean, which cannot be taken apart again
    thinks = section.show_thoughts or section.thought_tokens
    return None if thinks or not isinstance(before, float | int) else before


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
