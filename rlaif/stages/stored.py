"""What a run holds on each of its pairs, read without a model: its label and its verdicts.

Verdicts of a principle's former wording and of a former judge stay in the store, and are left out:
those that are read have the keys that the judge of the labels would give them now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlaif.config import Config, load_config
from rlaif.constitution import Constitution, Principle
from rlaif.errors import DataError
from rlaif.evaluation.attribution import Opinions
from rlaif.evaluation.cases import Case
from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.vectors import Floats
from rlaif.judges.base import Ask, Principles, expand
from rlaif.judges.draw import Draw
from rlaif.judges.load import judge_class
from rlaif.judges.preferences import Orders
from rlaif.judges.settings import JudgingSettings
from rlaif.records import ORDERS, Order, Pair, Verdict
from rlaif.stages.run import READ_PAIRS, orders_asked
from rlaif.steps.executors import judging_chunks
from rlaif.store import RunStore, lineage


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge that labelled a run: its section, its orders, and the fingerprint of its verdicts.

    `name` is that in the jury, None for a judge without one.
    """

    name: str | None
    section: JudgingSettings
    orders: tuple[Order, ...]
    fingerprint: str

    def asked(self, pairs: Sequence[Pair], principles: Principles) -> tuple[list[str], list[Ask]]:
        """The keys of its verdicts on these pairs, and what it was asked for them."""
        kind = judge_class(self.section.method)
        asks = expand(pairs, principles, self.orders, together=kind.together)
        shows = self.section.show_thoughts
        return [kind.key_by(self.fingerprint, ask, shows) for ask in asks], asks

    def named(self, verdict: Verdict) -> Verdict:
        """A verdict under its name in the jury."""
        return verdict if self.name is None else replace(verdict, judge=self.name)


def _by_principle(rows: pa.Table, names: Sequence[str]) -> Floats:
    """The opinions of preferences, (C, N); NaN where a principle did not count."""
    p = np.full((len(names), len(rows)), np.nan)
    at = {name: c for c, name in enumerate(names)}
    told = zip(rows["principles"].to_pylist(), rows["p_principles"].to_pylist(), strict=True)
    for i, (counted, values) in enumerate(told):
        for name, value in zip(counted, values, strict=True):
            if name not in at:
                raise DataError(
                    f"the label of pair {rows['pair_id'][i]} has an opinion of '{name}', which is "
                    "no principle of the labels' constitution: run `rlaif label` again"
                )
            p[at[name], i] = value
    return p


def _require_same(root: Path, rows: pa.Table, found: Opinions, *, soft: bool) -> None:
    """Labels that are known as they were before a temperature, rounding and people's word must be
    those that the rule makes."""
    judged = [pc.coalesce(rows[f"{name}_judged"], rows[at]) for name, at in _JUDGED.items()]
    status, p = judged[0].to_pylist(), judged[1] if soft else pa.nulls(len(rows), pa.float64())
    stored = np.array(pc.coalesce(rows["p_raw"], p).to_pylist(), float)
    off = np.abs(stored - found.labels) > 1e-9
    off |= (np.array(status) == "preferred") != (found.sides != 0)
    if off.any():
        first = rows["pair_id"][int(off.argmax())].as_py()
        raise DataError(
            f"{root}: {int(off.sum()):,} of {len(rows):,} labels are not what the rule recorded "
            f"for them ({found.rule.name}) makes of their opinions, first that of pair {first}: "
            "run `rlaif label` again, which asks no judge again"
        )


_JUDGED = {"status": "status", "p": "p_first"}


class Stored:
    """The labels of a run and their verdicts, as the last `rlaif label` left them."""

    def __init__(self, root: Path) -> None:
        self.store = RunStore.open_readonly(root)
        self.manifest = self.store.read_manifest()
        path = self.store.path("run.yaml")
        if not path.is_file():
            raise DataError(f"{root}: no run.yaml: nothing was run here yet. `rlaif label` labels")
        self.config: Config = load_config(str(path))

    @property
    def constitution(self) -> Mapping[str, Any]:
        """The manifest's section on the constitution, as it was when the labels were made."""
        return self.manifest.get("labelled") or self.manifest.get("constitution") or {}

    @cached_property
    def principles(self) -> tuple[Principle, ...]:
        """Those that the pairs were judged under."""
        said = self.constitution.get("principles") or ()
        return tuple(Principle.model_validate(one) for one in said)

    @property
    def made(self) -> Mapping[str, Any]:
        """What the manifest records of what the labels were made from."""
        return (self.manifest.get("made") or {}).get(lineage.LABELS) or {}

    @cached_property
    def judge_changed(self) -> bool:
        """Whether the config asks another judge, or asks it otherwise, than the one that labelled:
        then none of its verdicts is known to be stored."""
        now = (self.manifest.get("asked") or {}).get("judge")
        return not self.judges or lineage.differ(self.made.get("judge"), now)

    def to_judge(self) -> tuple[int, Counter[str]]:
        """How many verdicts `rlaif label` would want now, by the constitution as it is now, and how
        many of them are not stored, by principle. Exact unless the judge has changed."""
        constitution, judge = Constitution.load(self.config.constitution), self.config.judge
        wanted = judge.principles
        every = constitution.principles if wanted == "all" else constitution.select(wanted)
        asked: Principles = every
        if judge.draw is not None:
            asked = Draw(every, judge.draw, judge.draw_weighted, judge.draw_seed)
        find = self.store.table("verdicts").finder()
        sections: Sequence[JudgingSettings] = self.config.jury or (judge,)
        total, missing = 0, Counter[str]()
        pairs = chain.from_iterable(self.store.table("pairs").iter_batches(READ_PAIRS))
        for part in judging_chunks(pairs, READ_PAIRS, together=self._together):
            if self.judge_changed:
                asks = [a for s in sections for a in expand(part, asked, orders_asked(s))]
                total += len(asks)
                missing.update(ask.principle.id for ask in asks)
                continue
            for one in self.judges:
                by_key = dict(zip(*one.asked(part, asked), strict=True))
                known = find(list(by_key))
                total += len(by_key)
                missing.update(a.principle.id for key, a in by_key.items() if key not in known)
        return total, missing

    @cached_property
    def rule(self) -> LabelRule:
        """How the labels were made of the principles' opinions."""
        return LabelRule.recorded(self.made.get("rule") or {}, self.principles)

    @cached_property
    def judges(self) -> list[Judged]:
        """Who labelled: one, or the jurors; empty where no judge did (pairs of `contrast`)."""
        said, config = self.manifest.get("judge") or {}, self.config
        jury = said.get("jury") or {}
        found: list[tuple[str | None, JudgingSettings, Any]] = []
        if jury:
            found = [(j.name, j, jury[j.name]) for j in config.jury if j.name in jury]
        elif said:
            found = [(None, config.judge, said)]
        return [
            Judged(name, section, orders_asked(section), str(about.get("fingerprint")))
            for name, section, about in found
        ]

    @property
    def orders(self) -> Orders:
        """The orders asked, as the aggregation takes them."""
        named = {judge.name: judge.orders for judge in self.judges if judge.name is not None}
        return named or (self.judges[0].orders if self.judges else ORDERS)

    @property
    def asked(self) -> Principles:
        """Those that a pair was asked about."""
        judge = self.config.judge
        if judge.draw is None:
            return self.principles
        return Draw(self.principles, judge.draw, judge.draw_weighted, judge.draw_seed)

    @property
    def _together(self) -> bool:
        """Whether a judge saw all pairs of a prompt side by side: then they are read so."""
        return any(judge_class(judge.section.method).together for judge in self.judges)

    def opinions(self) -> Opinions:
        """What the principles say of all labelled pairs, as the labels were made of it.

        DataError where there are no labels, none made of verdicts, or other ones than the recorded
        rule makes of the opinions that are stored with them.
        """
        table = self.store.table("preferences")
        rows = table.to_arrow([n for n in table.schema.names if n not in ("label", "source")])
        root = self.store.root
        if not len(rows):
            raise DataError(f"{root} has no labels yet: run `rlaif label {root}` first")
        names = tuple(p.id for p in self.principles)
        rule = self.made.get("rule") or {}
        found = Opinions(
            names,
            _by_principle(rows, names),
            self.rule,
            float(rule.get("min_margin", 0.05)),
            rows["pair_id"].to_pylist(),
            [str(prompt) for prompt in rows["prompt"].to_pylist()],
            np.array([pc.utf8_length(rows[c]).to_pylist() for c in ("first", "second")], float),
        )
        if not found.p.size or np.isnan(found.p).all():
            raise DataError(f"{root}: its labels are made of no verdict: run `rlaif label {root}`")
        _require_same(root, rows, found, soft=bool(rule.get("soft", True)))
        return found

    def case(self, pair_id: str) -> Case:
        """The pair of an id, with its label and verdicts."""
        if self._together:
            return next(case for case in self.cases() if case.pair.id == pair_id)
        return next(self._cases(iter([self.store.table("pairs").finder()([pair_id])[pair_id]])))

    def cases(self, *, verdicts: bool = True) -> Iterator[Case]:
        """Every pair of the run in its order, with its label; `verdicts=False` leaves these out,
        which is faster."""
        pairs = chain.from_iterable(self.store.table("pairs").iter_batches(READ_PAIRS))
        return self._cases(pairs, verdicts)

    def _cases(self, pairs: Iterator[Pair], verdicts: bool = True) -> Iterator[Case]:
        preference = self.store.table("preferences").finder()
        find = self.store.table("verdicts").finder() if verdicts else None
        over_orders = (self.made.get("rule") or {}).get("orders", "mean")
        for part in judging_chunks(pairs, READ_PAIRS, together=self._together):
            labels = preference([pair.id for pair in part])
            said = self._verdicts(part, find) if find is not None else {}
            for pair in part:
                label, rows = labels.get(pair.id), said.get(pair.id, ())
                yield Case(pair, label, rows, self.rule, self.orders, over_orders)

    def _verdicts(self, pairs: Sequence[Pair], find: Any) -> dict[str, list[Verdict]]:
        found: dict[str, list[Verdict]] = {pair.id: [] for pair in pairs}
        for judge in self.judges:
            keys, _ = judge.asked(pairs, self.asked)
            rows = find(keys)
            for key in dict.fromkeys(keys):
                if key in rows:
                    found[rows[key].pair_id].append(judge.named(rows[key]))
        return found
