"""The chain-of-thought judge: a rationale first, then the labels' log-probabilities after it.

Bai et al. 2022 (Constitutional AI, §4.1): probabilities after a rationale are near 0 or 1, so they
are clamped to [0.4, 0.6]; averaging 5 samples gains a little. Lee et al. 2023 (RLAIF, §3.1.2):
greedy, the rationale and the ending appended to the prompt, then the labels scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.engines.base import Engine, Generation, Scores
from rlaif.judges.base import Ask, EngineJudge, sigmoid
from rlaif.judges.pairwise import of_the_pair
from rlaif.judges.reasoning import Reasoning, unusable, verdict_of
from rlaif.records import Reason, Verdict
from rlaif.templates import Rendered


class CotJudge(EngineJudge):
    """Judges pairs after a rationale of its own, which is kept with the verdict.

    `template` is rendered twice: with `rationale` none, and with the rationale before the cue. It
    says by `stop` where a rationale ends. `reasoning`: how many, how long, and the clamp.
    A verdict's log-probabilities and mass are means over the rationales.
    """

    method = "cot"

    def __init__(
        self,
        engine: Engine,
        *,
        template: str | None = None,
        min_mass: float = 0.1,
        reasoning: Reasoning | None = None,
    ) -> None:
        self.reasoning = reasoning or Reasoning()
        super().__init__(engine, template, min_mass, self.reasoning.settings)
        self._needs_options(2)
        self.sampling = self.reasoning.sampling(self.template.stop)

    def render(self, ask: Ask, rationale: str | None = None) -> Rendered:
        """The prompt that asks for a rationale, or the one that is scored after it."""
        first, second = ask.shown
        return self.template.render(
            messages=ask.pair.prompt.messages, first=first, second=second,
            principle=ask.principle.compare, rationale=rationale,
        )  # fmt: skip

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        reasons = [ask.unjudgeable() for ask in asks]
        todo = [ask for ask, reason in zip(asks, reasons, strict=True) if reason is None]
        written = self.engine.generate([self.render(a) for a in todo], self.sampling)
        prompts = [
            self.render(ask, generation.text.strip())
            for ask, generations in zip(todo, written, strict=True)
            for generation in generations
            if unusable(generation) is None
        ]
        scores = iter(self.score(prompts, [self.template.options] * len(prompts)))
        found = iter(
            self._verdict(
                ask, generations, [None if unusable(g) else next(scores) for g in generations]
            )
            for ask, generations in zip(todo, written, strict=True)
        )
        return [
            self.abstain(ask, reason) if reason else next(found)
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _verdict(
        self, ask: Ask, generations: Sequence[Generation], scores: Sequence[Scores | None]
    ) -> Verdict:
        """From the rationales of an ask and the scores after them, None after an unusable one."""
        known = [s for s in scores if s is not None and s.failure is None]
        pairs = [of_the_pair(ask, s) for s in known]
        facts = {
            "rationales": tuple(g.text.strip() for g in generations),
            "tokens": sum(g.tokens for g in generations),
            "logprob_first": _mean([first for first, _ in pairs]),
            "logprob_second": _mean([second for _, second in pairs]),
            "mass": _mean([s.mass for s in known]),
        }
        p = verdict_of([self._p(ask, *x) for x in zip(generations, scores, strict=True)])
        if isinstance(p, str):
            return self.abstain(ask, p, **facts)
        return self.verdict(ask, p, **facts)

    def _p(self, ask: Ask, generation: Generation, scores: Scores | None) -> float | Reason:
        """What one rationale says."""
        if scores is None:
            return unusable(generation) or "cut"
        if scores.failure:
            return scores.failure
        if scores.mass < self.min_mass:
            return "low_mass"
        first, second = of_the_pair(ask, scores)
        return self.reasoning.clamped(sigmoid(first - second))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
