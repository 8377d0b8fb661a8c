"""A constitution tested: its own tests, and whether a judge says the same when asked otherwise.

Verdicts lie in `evaluation/constitution/` of the run; those that the run has are found there. What
is measured is written beside it, and no product of the run changes.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.constitution import Principle
from rlaif.constitution.cases import PrincipleTest
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.attacks import clear_questions
from rlaif.evaluation.invariance import (
    Again,
    Kind,
    Variant,
    asked_again,
    asks_of,
    by_kind,
    card,
    outcome,
    variants,
)
from rlaif.files.readers import read_pairs
from rlaif.files.resources import find
from rlaif.files.small import read_text, write_text
from rlaif.judges.base import Ask
from rlaif.judges.layouts import layouts
from rlaif.judges.load import make_judge
from rlaif.judges.settings import JudgingSettings
from rlaif.records import Pair, Verdict, content_id
from rlaif.stages.asking import answered
from rlaif.stages.run import Run, orders_asked
from rlaif.steps.executors import Sink
from rlaif.store import RunStore, write_json

if TYPE_CHECKING:
    from rlaif.judges.load import AnyJudge

FOLDER, FILE = "constitution", "invariance.json"  # in evaluation/
_TWO_OPTIONS = ("pairwise", "cot")  # methods whose one template offers two labels


@dataclass(frozen=True, slots=True)
class _Beside(Sink[Verdict]):
    """A table whose rows are also looked for in another one, which is only read."""

    own: Sink[Verdict]
    other: Sink[Verdict]

    def finder(self) -> Callable[[Sequence[str]], Mapping[str, Verdict]]:
        finders = [self.other.finder(), self.own.finder()]
        return lambda keys: {k: v for find in finders for k, v in find(keys).items()}

    def key_batches(self) -> Iterable[Sequence[str]]:
        yield from self.other.key_batches()
        yield from self.own.key_batches()

    def append(self, records: Sequence[Verdict]) -> None:
        self.own.append(records)


@dataclass(frozen=True, slots=True)
class _Question:
    """A pair under a principle as it is asked; `test` is what it tests."""

    principle: Principle
    pair: Pair
    asks: tuple[Ask, ...]
    test: PrincipleTest | None = None


def _section(run: Run) -> JudgingSettings:
    """The run's judge asked in both orders: in one, a liking for a place would count as a word."""
    section: JudgingSettings = run.config.judge
    return section.model_copy(update={"orders": "both"})


def run_tests(run: Run) -> list[dict[str, Any]]:
    """What came of each test in the constitution's file, in its order.

    A row has the principle's id, the test's number in it (from 1) and prompt, the `outcome` (pass,
    fail, tie or abstained), P(better) over the orders and the reason of an abstention.
    """
    section = _section(run)
    orders, judge = orders_asked(section), run.judge(section)
    todo = [
        _Question(p, test.pair, asks_of(test.pair, p, orders), test)
        for p in run.principles()
        for test in p.tests
    ]
    with _store(run) as store:
        rows, _ = answered(run, _sink(run, store), judge, todo, "tests")
    found, numbers = list[dict[str, Any]](), dict[str, int]()
    for item, verdicts in rows:
        name, rule = item.principle.id, run.config.preferences
        numbers[name] = numbers.get(name, 0) + 1
        result, p, reason = outcome(item.pair, verdicts, orders, rule)
        said = item.pair.prompt.messages[-1].content
        row = {"principle": name, "test": numbers[name], "prompt": said, "outcome": result}
        found.append({**row, "p_better": p, "reason": reason})
    return found


def measure_invariance(
    run: Run, pairs: Sequence[Pair], templates: Sequence[str] = ()
) -> dict[str, Any]:
    """How often a judge's clear answers on these pairs flip when the same is asked otherwise.

    `templates` are further ones to ask by, beside the layouts that a rule makes of the judge's own.
    Returns {"judge", "method", "pairs", "principles": a card by id, "kinds", "new_verdicts"}, and
    writes it to evaluation/invariance.json. DataError where no answer is clear.
    """
    section, rule = _section(run), run.config.preferences.orders
    orders, judge, every = orders_asked(section), run.judge(section), run.principles()
    todo = [_Question(p, pair, asks_of(pair, p, orders)) for pair in pairs for p in every]
    with _store(run) as store:
        sink = _sink(run, store)
        base, new = answered(run, sink, judge, todo, "as it is")
        verdicts = [v for _, said in base for v in said]
        questions = clear_questions(pairs, every, verdicts, orders, rule=rule)
        if not questions:
            raise DataError(
                f"none of {len(todo):,} answers of the judge is clear enough to be turned round: "
                "take a stronger judge, or pairs that differ in what the principles ask"
            )
        others = _layouts(run, store.root, section, judge, templates)
        kinds = {name: kind for name, (kind, _) in others.items()}
        ways = [v for p in every for v in variants(p, kinds)]
        judges: dict[str | None, AnyJudge] = {None: judge}
        judges |= {name: other for name, (_, other) in others.items()}
        rows: list[tuple[Again, list[Verdict]]] = []
        for name, one in judges.items():
            mine: list[Variant] = [v for v in ways if v.layout == name]
            again = asked_again(questions, mine, orders)
            more, made = answered(run, sink, one, again, name or "other words")
            rows, new = rows + more, new + made
    found = {
        "judge": judge.fingerprint,
        "method": section.method,
        "pairs": len(pairs),
        "principles": {
            p.id: card(
                p,
                [(item.pair, said) for item, said in base if item.principle.id == p.id],
                [row for row in rows if row[0].question.principle.id == p.id],
                rule,
            )
            for p in every
        },
        "kinds": by_kind(rows, rule),
        "new_verdicts": new,
    }
    write_json(run.store.path("evaluation", FILE), found)
    return found


def pairs_of(run: Run, limit: int) -> list[Pair]:
    """At most `limit` pairs, the same ones every time: of the file that the config names, unless
    the run has read it; else of the run, or of the constitution's tests where it has none."""
    file, have = run.config.pairs, (run.store.read_manifest().get("read") or {}).get("source")
    if file is not None and file.path != have:
        pairs: Iterable[Pair] = read_pairs(file.path, file)
    elif len(run.store.table("pairs")):
        pairs = run.pairs()
    else:
        pairs = (test.pair for p in run.principles() for test in p.tests)
    once = {pair.id: pair for pair in _drawn(pairs, limit)}
    if not once:
        raise DataError(
            "no pairs to ask about: give --pairs FILE, a run that has some by --out RUN, or tests "
            "in the constitution"
        )
    return list(once.values())


def _drawn(pairs: Iterable[Pair], limit: int) -> list[Pair]:
    return heapq.nsmallest(limit, pairs, key=lambda pair: content_id("invariance", pair.id))


def _store(run: Run) -> RunStore:
    return RunStore(run.store.path("evaluation", FOLDER), command="constitution test")


def _sink(run: Run, store: RunStore) -> _Beside:
    return _Beside(store.table("verdicts"), run.store.table("verdicts"))


def _layouts(
    run: Run, root: Path, section: JudgingSettings, judge: AnyJudge, templates: Sequence[str]
) -> dict[str, tuple[Kind, AnyJudge]]:
    """The same judge by other templates: by name, what kind of change each is. Templates that a
    rule makes are kept in the run, to be looked at."""
    if section.method not in _TWO_OPTIONS:
        if templates:
            known = ", ".join(_TWO_OPTIONS)
            raise ConfigError(f"--template is of the methods {known}, and this is {section.method}")
        return {}
    found: dict[str, tuple[Kind, str]] = {name: ("format", name) for name in templates}
    source = read_text(find("prompts", judge.about()["template"], ".j2"), ConfigError)
    for name, (kind, text) in layouts(source).items():
        path = root / "templates" / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.j2"
        write_text(path, text)
        found[name] = ("options" if kind == "options" else "format"), str(path)
    engine = run.engine(section)
    return {
        name: (kind, make_judge(engine, section.model_copy(update={"template": template})))
        for name, (kind, template) in found.items()
    }
