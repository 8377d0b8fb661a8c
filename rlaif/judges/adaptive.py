"""The adaptive judge: labels by prefill, and a chain of thought only where those cannot tell.

A pair under a principle is escalated when the two orders lean to different sides, when their mean
is within `band` of ½, or when the labels got too little probability to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlaif.constitution import Principle
from rlaif.engines.base import Engine
from rlaif.judges.base import Ask, EngineJudge
from rlaif.judges.cot import CotJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.protocols import require_engine
from rlaif.judges.settings import AdaptiveSettings
from rlaif.records import ORDERS, Verdict, content_id

_Question = tuple[str, str, str]  # pair, principle, its text
_UNTOLD = ("low_mass", "missing_label")


class AdaptiveJudge:
    """Judges pairs as `PairwiseJudge`, and those it cannot tell as `CotJudge`.

    It looks at both orders of each pair whichever are asked, so that no verdict depends on what
    else is asked. A verdict by chain of thought has rationales and decoded tokens, others none.
    `template` is the pairwise one, `rationale.template` the other; worked examples are of the
    pairwise one. A model that thinks does so only before a rationale.
    """

    method = "adaptive"
    together = False
    both_orders = True

    def __init__(self, engine: Engine, settings: AdaptiveSettings | None = None) -> None:
        require_engine(engine)
        settings = settings or AdaptiveSettings()
        self.engine, self.name, self.band = engine, engine.name, settings.band
        self.fast = PairwiseJudge(
            engine, settings.but(thinking=False) if settings.thinking else settings
        )
        self.slow = CotJudge(engine, settings.but(template=settings.rationale.template))
        self.fingerprint = content_id(
            "adaptive", self.fast.fingerprint, self.slow.fingerprint, self.band
        )

    key_by = staticmethod(EngineJudge.key_by)

    def key(self, ask: Ask) -> str:
        return self.key_by(self.fingerprint, ask, self.fast.shows_thoughts)

    def about(self) -> dict[str, Any]:
        """What the manifest tells of a judge."""
        fast, slow = self.fast.about(), self.slow.about()
        both = {k: f"{fast[k]} + {slow[k]}" for k in ("template", "template_hash")}
        same = {k: fast[k] for k in ("weights", "device")}
        if "examples" in fast:
            same["examples"] = fast["examples"]
        return {"fingerprint": self.fingerprint, **same, **both}

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        questions = {_question(ask): ask for ask in asks}
        quick = [
            Ask(a.pair, p, order)
            for same in _side_by_side(questions.values())
            for order in ORDERS
            for a, p in same
        ]
        seen: dict[_Question, dict[str, Verdict]] = {}
        for ask, verdict in zip(quick, self.fast.judge(quick), strict=True):
            seen.setdefault(_question(ask), {})[ask.order] = verdict
        hard = [ask for ask in asks if self.is_hard(list(seen[_question(ask)].values()))]
        slow = dict(zip(map(self.key, hard), self.slow.judge(hard) if hard else [], strict=True))
        out = []
        for ask in asks:
            key = self.key(ask)
            verdict = slow.get(key) or seen[_question(ask)][ask.order]
            out.append(replace(verdict, key=key))
        return out

    def is_hard(self, orders: Sequence[Verdict]) -> bool:
        """Whether the verdicts of both orders by prefill leave a question open."""
        known = [v.p_first for v in orders if v.p_first is not None]
        if len(known) < len(orders):
            return all(v.reason in _UNTOLD for v in orders if v.abstained)
        low, high = min(known) - 0.5, max(known) - 0.5
        return low * high < 0 or abs(low + high) / 2 < self.band


def _question(ask: Ask) -> _Question:
    return ask.pair.id, ask.principle.id, ask.principle.compare


def _side_by_side(asks: Any) -> list[list[tuple[Ask, Principle]]]:
    """The asks' principles by pair, so that what a pair's questions share is computed once."""
    by_pair: dict[str, list[tuple[Ask, Principle]]] = {}
    for ask in asks:
        by_pair.setdefault(ask.pair.id, []).append((ask, ask.principle))
    return list(by_pair.values())
