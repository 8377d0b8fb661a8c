"""The pairwise judge: P(first ≻ second) from the log-probabilities of two option labels.

Bai et al. 2022 (Constitutional AI, §4.1): show the conversation, both responses and a principle,
and take the softmax over the log-probabilities of the two labels. Nothing is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from rlaif.engines.base import Engine, Scores
from rlaif.files.readers.examples import Example
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, EngineJudge, sigmoid
from rlaif.judges.reasoning import Sample, facts_of, verdict_of
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Reason, Verdict


class PairwiseJudge(EngineJudge):
    """Judges pairs with an engine's `score`.

    Where the model thinks, it writes nothing else before it decides: the verdict is the mean over
    its thoughts, as after rationales.
    """

    method = "pairwise"

    def __init__(self, engine: Engine, settings: PairwiseSettings | None = None) -> None:
        settings = settings or PairwiseSettings()
        super().__init__(engine, settings, settings.min_mass)
        self._needs_options(2)
        self.shows_thoughts = settings.show_thoughts
        self.show_examples(settings)

    def render(self, ask: Ask) -> Rendered:
        """The exact prompt of an ask."""
        return self.after_examples(self._asked(ask.pair, self.shown(ask), ask.principle.compare))

    def _asked(self, pair: Pair, shown: tuple[str, str], principle: str) -> Rendered:
        first, second = shown
        return self.template.render(
            messages=pair.prompt.messages, first=first, second=second, principle=principle
        )

    def worked(self, example: Example) -> tuple[Rendered, str]:
        pair = example.pair
        asked = self._asked(pair, (pair.first, pair.second), example.compare)
        return asked, self.template.options[0 if example.first_is_better else 1]

    def _render_all(self, asks: Sequence[Ask]) -> list[Rendered]:
        """`render` of each ask; neighbours that show the same pair are rendered together."""
        out: list[Rendered] = []
        for _, group in groupby(asks, key=lambda ask: (id(ask.pair), ask.order)):
            same = list(group)
            first, second = self.shown(same[0])
            out += self.template.render_each(
                "principle",
                [ask.principle.compare for ask in same],
                messages=same[0].pair.prompt.messages,
                first=first,
                second=second,
            )
        return [self.after_examples(asked) for asked in out]

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        reasons = [ask.unjudgeable() for ask in asks]
        open_asks = [a for a, reason in zip(asks, reasons, strict=True) if reason is None]
        options = [self.template.options] * len(open_asks)
        samples = self.prepared(self._render_all(open_asks))
        scores = self.score_samples(samples, options)
        rows = zip(open_asks, samples, scores, strict=True)
        found = iter(
            [
                after_writing(self, ask, row, after) if self.thinks else self._verdict(ask, *after)
                for ask, row, after in rows
            ]
        )
        return [
            self.abstain(ask, reason) if reason else next(found)
            for ask, reason in zip(asks, reasons, strict=True)
        ]

    def _verdict(self, ask: Ask, scores: Scores | None) -> Verdict:
        assert scores is not None  # of the prompt as it is
        if scores.failure:
            return self.abstain(ask, scores.failure)
        return self._read(ask, *of_the_pair(ask, scores), scores.mass)

    def _read(self, ask: Ask, first: float, second: float, mass: float) -> Verdict:
        facts = {"logprob_first": first, "logprob_second": second, "mass": mass}
        if mass < self.min_mass:
            return self.abstain(ask, "low_mass", **facts)
        # softmax over two log-probabilities is the logistic function of their difference
        return self.verdict(ask, sigmoid(first - second), **facts)

    def reread(self, ask: Ask, said: Verdict) -> Verdict:
        """The verdict of this judge, from one of a judge that differs in `min_mass` alone: the
        log-probabilities are in it, so no model is asked."""
        first, second, mass = said.logprob_first, said.logprob_second, said.mass
        if first is None or second is None or mass is None:  # it abstained for another reason
            return replace(said, key=self.key(ask))
        return self._read(ask, first, second, mass)


def after_writing(
    judge: EngineJudge, ask: Ask, samples: Sequence[Sample], scores: Sequence[Scores | None]
) -> Verdict:
    """The verdict of a judge that wrote first: the mean over its samples, each clamped.

    Log-probabilities and mass are means over those that could be scored.
    """
    known = [s for s in scores if s is not None and s.failure is None]
    pairs = [of_the_pair(ask, s) for s in known]
    facts = {
        **facts_of(samples),
        "logprob_first": mean([first for first, _ in pairs]),
        "logprob_second": mean([second for _, second in pairs]),
        "mass": mean([s.mass for s in known]),
    }
    p = verdict_of([_after_one(judge, ask, *x) for x in zip(samples, scores, strict=True)])
    if isinstance(p, str):
        return judge.abstain(ask, p, **facts)
    return judge.verdict(ask, p, **facts)


def _after_one(
    judge: EngineJudge, ask: Ask, sample: Sample, scores: Scores | None
) -> float | Reason:
    """What the labels say after one sample."""
    if scores is None:
        return sample.fault or "cut"
    if scores.failure:
        return scores.failure
    if scores.mass < judge.min_mass:
        return "low_mass"
    first, second = of_the_pair(ask, scores)
    return judge.reasoning.clamped(sigmoid(first - second))


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def of_the_pair(ask: Ask, scores: Scores) -> tuple[float, float]:
    """Log-probabilities of the pair's first and second completion, whichever was shown first."""
    shown_first, shown_second = scores.logprobs
    if ask.order == "first_second":
        return shown_first, shown_second
    return shown_second, shown_first
