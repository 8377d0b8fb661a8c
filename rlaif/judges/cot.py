"""The chain-of-thought judge: a rationale first, then the labels' log-probabilities after it.

Bai et al. 2022 (Constitutional AI, §4.1): probabilities after a rationale are near 0 or 1, so they
are clamped to [0.4, 0.6]; averaging 5 samples gains a little. Lee et al. 2023 (RLAIF, §3.1.2):
greedy, the rationale and the ending appended to the prompt, then the labels scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlaif.engines.base import Engine, Generation
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, EngineJudge
from rlaif.judges.pairwise import after_writing
from rlaif.judges.reasoning import Sample, unusable
from rlaif.judges.settings import CotSettings
from rlaif.records import Verdict


class CotJudge(EngineJudge):
    """Judges pairs after a rationale of its own, which is kept with the verdict.

    The template is rendered twice: with `rationale` none, and with the rationale before the cue. It
    says by `stop` where a rationale ends. A verdict's log-probabilities and mass are means over the
    rationales.
    """

    method = "cot"

    def __init__(self, engine: Engine, settings: CotSettings | None = None) -> None:
        settings = settings or CotSettings()
        super().__init__(engine, settings, settings.min_mass)
        self._needs_options(2)
        self.shows_thoughts = settings.show_thoughts
        self.sampling = self.reasoning.sampling(self.template.stop)

    def _identity(self) -> tuple[Any, ...]:
        return (self.reasoning.settings,)

    def render(self, ask: Ask, rationale: str | None = None) -> Rendered:
        """The prompt that asks for a rationale, or the one that is scored after it."""
        first, second = self.shown(ask)
        return self.template.render(
            messages=ask.pair.prompt.messages,
            first=first,
            second=second,
            principle=ask.principle.compare,
            rationale=rationale,
        )

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        reasons = [ask.unjudgeable() for ask in asks]
        todo = [ask for ask, reason in zip(asks, reasons, strict=True) if reason is None]
        samples = self._written(todo)
        scores = self.score_samples(samples, [self.template.options] * len(todo))
        found = iter([after_writing(self, *x) for x in zip(todo, samples, scores, strict=True)])
        return [
            self.abstain(ask, reason) if reason else next(found)
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _written(self, asks: Sequence[Ask]) -> list[list[Sample]]:
        """The rationales of each ask, each after a thought of its own where the model thinks."""
        samples = self.prepared([self.render(ask) for ask in asks])
        if not self.thinks:
            prompts = [sample.prompt for (sample,) in samples]
            rows = self.engine.generate([p for p in prompts if p is not None], self.sampling)
            before = Sample(None)
            return [
                [self._sample(ask, before, generation) for generation in row]
                for ask, row in zip(asks, rows, strict=True)
            ]
        usable = [s.prompt for row in samples for s in row if s.prompt is not None]
        once = self.sampling.but(n=1, thinking=None)
        written = iter(self.engine.generate(usable, once))
        return [
            [s if s.prompt is None else self._sample(ask, s, next(written)[0]) for s in row]
            for ask, row in zip(asks, samples, strict=True)
        ]

    def _sample(self, ask: Ask, before: Sample, generation: Generation) -> Sample:
        """The sample that a rationale makes, after the thought that was before it."""
        rationale = generation.text.strip()
        fault, tokens = unusable(generation), before.tokens + generation.tokens
        prompt = None
        if fault is None:
            prompt = self.render(ask, rationale)
            if before.prompt is not None and before.prompt.thought is not None:
                prompt = prompt.after(before.prompt.thought)
            elif self.reasoning.thinking is not None:
                prompt = replace(prompt, thinking="off")
        return replace(before, prompt=prompt, fault=fault, rationale=rationale, tokens=tokens)
