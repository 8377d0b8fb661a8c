"""A judge of somebody's own in a run, `judge.method: module:Class`.

The class has what `rlaif.judges.base.Judge` has, and is called with the engine of its section, or
with nothing if its constructor takes no argument. Its verdicts are stored under keys of its source,
of all that it holds, by content, and of the engine: an edited judge judges anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from sys import stderr
from typing import Any, ClassVar, Protocol

from rlaif.constitution import Principle
from rlaif.engines.base import Engine, weights_of
from rlaif.errors import ConfigError
from rlaif.files import own
from rlaif.judges.base import Ask, EngineJudge, Judge
from rlaif.judges.protocols import JUDGE_MEMBERS, require_engine
from rlaif.records import Pair, Prompt, Verdict, content_id

# What a judge keys this ask by is part of the keys of all of its verdicts: so a `key` that tells
# more of it (the version of a service, the hash of a file) is heard.
_PROBE = Ask(
    Pair(Prompt.user("Hello?"), "Yes?", "Hello."),
    Principle(id="probe", compare="Which is better?"),
    "first_second",
)


class JudgeClass(Protocol):
    """What `judge.method: module:Class` names: called with an engine, it makes a `Judge`.

    `together` is the class's own attribute: it is needed before there is a judge.
    """

    together: bool

    def __call__(self, engine: Engine, /) -> Judge: ...


class OwnJudge:
    """A judge of somebody's own, its verdicts checked and under keys that its code is part of."""

    method: ClassVar[str]
    made_by: ClassVar[Any]
    together: bool = False
    both_orders: ClassVar[bool] = True

    def __init__(self, engine: Engine) -> None:
        require_engine(engine)
        self.engine = engine
        try:
            with redirect_stdout(stderr):
                judge = self.made_by() if own.takes_nothing(self.made_by) else self.made_by(engine)
        except (Exception, SystemExit) as error:
            raise own.raised(error, self.method, "judge") from error
        own.require(judge, JUDGE_MEMBERS, self.method, "a Judge")
        self._judge: Judge = judge
        self.name = str(judge.name)
        # Reading an object leaves a mark in its class (`__slotnames__`, by copyreg), which is read
        # too: the second reading is like all later ones, also in a process that makes one judge.
        for _ in range(2):
            code = own.key_of([type(judge), judge.judge, judge.key], self.method)
        self.fingerprint = content_id(
            "own", code, engine.fingerprint, str(self._call(judge.key, _PROBE))
        )

    key_by = staticmethod(EngineJudge.key_by)

    def key(self, ask: Ask) -> str:
        return self.key_by(self.fingerprint, ask)

    def about(self) -> dict[str, Any]:
        """What the manifest tells of a judge."""
        return {
            "fingerprint": self.fingerprint,
            "weights": weights_of(self.engine),
            "template": None,
            "template_hash": None,
            "device": self.engine.device,
        }

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        """One verdict an ask, in their order. What nobody could answer is not asked."""
        reasons = [ask.unjudgeable() for ask in asks]
        todo = [ask for ask, reason in zip(asks, reasons, strict=True) if reason is None]
        said = iter(self._said(todo) if todo else [])
        return [
            next(said)
            if reason is None
            else Verdict(
                self.key(ask),
                ask.pair.id,
                ask.principle.id,
                ask.order,
                self.name,
                None,
                reason=reason,
            )
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _said(self, asks: Sequence[Ask]) -> list[Verdict]:
        found = self._call(self._judge.judge, list(asks))
        if not isinstance(found, list | tuple) or len(found) != len(asks):
            count = f"{len(found)} of them" if isinstance(found, list | tuple) else own.shown(found)
            raise self._wrong(f"expected a list of {len(asks)} verdicts, one an ask, got {count}")
        return [
            self._checked(ask, v, i) for i, (ask, v) in enumerate(zip(asks, found, strict=True))
        ]

    def _checked(self, ask: Ask, verdict: Any, i: int) -> Verdict:
        """A verdict under the run's own key, if it is one and of its ask."""
        if not isinstance(verdict, Verdict):
            raise self._wrong(f"verdict {i + 1} is {own.shown(verdict)}, and no Verdict")
        its = (verdict.pair_id, verdict.principle, verdict.order)
        if its != (ask.pair.id, ask.principle.id, ask.order):
            raise self._wrong(
                f"verdict {i + 1} is of {its}, and was asked for "
                f"{(ask.pair.id, ask.principle.id, ask.order)}: verdicts come in the order of asks"
            )
        p = verdict.p_first
        if p is not None and not (isinstance(p, int | float) and math.isfinite(p) and 0 <= p <= 1):
            raise self._wrong(
                f"verdict {i + 1} has p_first={own.shown(p)}: expected a probability from 0 to 1 "
                "that the pair's first completion is better, or None with a reason"
            )
        p = None if p is None else float(p)
        return replace(verdict, key=self.key(ask), judge=self.name, p_first=p)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            with redirect_stdout(stderr):  # what it prints is not what a command says
                return function(*arguments)
        except (Exception, SystemExit) as error:
            raise own.raised(error, self.method, "judge") from error

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"the judge {self.method}: {what}")


@cache
def _class_of(name: str, made_by: Any) -> type[OwnJudge]:
    together = bool(made_by.together)
    return type("OwnJudge", (OwnJudge,), {"method": name, "made_by": made_by, "together": together})


def own_judge(name: str) -> type[OwnJudge]:
    """The class of the judge that `module:Class` names; ConfigError where there is none, or where
    it lacks a method of `Judge`."""
    made_by = own.load(name, "judge")
    own.require(made_by, [m for m in JUDGE_MEMBERS if m != "name"], name, "a Judge")
    return _class_of(name, made_by)
