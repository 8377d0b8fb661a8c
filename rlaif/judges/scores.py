"""Judges that score completions one by one; a pair's label follows from its two scores.

`pointwise` asks for a mark, "1" to "10", and takes the expectation over the marks' probabilities:
direct RLAIF (Lee et al. 2023, §3.3). `rubric` asks yes or no, so that the score is P(yes).

A pair's label is P(S₁ > S₂) + ½ P(S₁ = S₂), S₁ and S₂ being drawn independently from the two
normalised distributions. It needs no temperature, it is ½ for equal distributions, and the label of
the mirrored pair is its complement. For yes and no it is ½ + (P₁(yes) − P₂(yes)) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.constitution import Principle
from rlaif.engines.base import Engine, Scores
from rlaif.errors import ConfigError
from rlaif.files.readers.examples import Example
from rlaif.files.templates import Rendered
from rlaif.judges.base import Ask, EngineJudge
from rlaif.judges.ensembles import TIER_MARGIN
from rlaif.judges.reasoning import Sample, facts_of, verdict_of
from rlaif.judges.settings import ScoreSettings
from rlaif.records import Prompt, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Marks:
    """What the judge says of one completion: probabilities of the levels from worst to best.

    `levels` are normalised; `mass` is what they had together before that. Of a judge that thinks
    they are means over its thoughts.
    """

    levels: tuple[float, ...]
    mass: float

    @property
    def mean(self) -> float:
        """The expected score; the score of level k (from 1) is k."""
        return math.fsum(k * p for k, p in enumerate(self.levels, 1))

    @property
    def scaled(self) -> float:
        """The expected score as a reward: −1 for the worst level, 1 for the best."""
        return 2 * (self.mean - 1) / (len(self.levels) - 1) - 1


_Found = tuple[Marks | Reason, Sequence[Sample]]  # and what was written before


def _weights(principles: Sequence[Principle], weighted: bool, tier_margin: float) -> list[float]:
    """Of each principle, such that each tier's sum to `tier_margin` times those of the one above;
    in one tier, they are the principles' own or 1."""
    own = [p.weight if weighted else 1.0 for p in principles]
    places = [math.inf if p.tier is None else p.tier for p in principles]
    tiers = sorted(set(places))
    if len(tiers) < 2:
        return own
    sums = {t: math.fsum(w for w, at in zip(own, places, strict=True) if at == t) for t in tiers}
    return [
        w / sums[at] * tier_margin ** tiers.index(at) for w, at in zip(own, places, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Item:
    """A completion to score under a principle."""

    prompt: Prompt
    text: str
    principle: str

    @property
    def name(self) -> tuple[str, str, str]:
        return (self.prompt.id, self.text, self.principle)

    def unjudgeable(self) -> Reason | None:
        if not self.text.strip():
            return "empty_response"
        if not any(m.content.strip() for m in self.prompt.messages):
            return "empty_prompt"
        return None


class ScoreJudge(EngineJudge):
    """Scores completions by the probabilities of its template's options, from worst to best.

    In one call each completion is asked about once under a principle, however many pairs it is in.
    A worked example shows one of its responses, with the best level or the worst.
    """

    together = True
    both_orders = False

    def __init__(self, engine: Engine, settings: ScoreSettings | None = None) -> None:
        settings = settings or ScoreSettings()
        super().__init__(engine, settings, settings.min_mass)
        if len(self.template.options) < 2:
            raise ConfigError(
                f"{self.template_name}: a {self.method} template needs options from worst to best "
                f"in its front matter; it has {list(self.template.options)}"
            )
        self.show_examples(settings)

    def judge(self, asks: Sequence[Ask]) -> list[Verdict]:
        sides = [
            [
                _Item(a.pair.prompt, text, a.principle.compare)
                for text in (a.pair.first, a.pair.second)
            ]
            for a in asks
        ]
        found = self._marks([item for both in sides for item in both])
        return [
            self._verdict(ask, *(found[item.name] for item in both))
            for ask, both in zip(asks, sides, strict=True)
        ]

    def marks(
        self, prompts: Sequence[Prompt], texts: Sequence[str], principles: Sequence[Principle]
    ) -> list[list[Marks | Reason]]:
        """What the judge says of each completion under each principle, or why it abstains."""
        items = [
            [_Item(prompt, text, principle.compare) for principle in principles]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found = self._marks([item for row in items for item in row])
        return [[found[item.name][0] for item in row] for row in items]

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        principles: Sequence[Principle],
        *,
        weighted: bool = False,
        tier_margin: float = TIER_MARGIN,
    ) -> list[float | None]:
        """A live reward a completion, from −1 to 1: the mean of its scaled scores.

        `weighted` by the principles' weights. Each tier counts `tier_margin` times as much as the
        one above it: completions that are this share of the scale apart in a higher tier are ranked
        by it, whatever those below it say. None where the judge abstains under any principle.
        """
        weights = _weights(principles, weighted, tier_margin)
        out: list[float | None] = []
        for row in self.marks(prompts, texts, principles):
            known = [
                w * m.scaled for w, m in zip(weights, row, strict=True) if isinstance(m, Marks)
            ]
            whole = len(known) == len(row)
            out.append(math.fsum(known) / math.fsum(weights) if whole else None)
        return out

    def render(self, prompt: Prompt, text: str, principle: str) -> Rendered:
        """The exact prompt about a completion."""
        return self.after_examples(self._asked(prompt, text, principle))

    def _asked(self, prompt: Prompt, text: str, principle: str) -> Rendered:
        return self.template.render(messages=prompt.messages, response=text, principle=principle)

    def worked(self, example: Example) -> tuple[Rendered, str]:
        pair = example.pair
        asked = self._asked(pair.prompt, pair.first, example.compare)
        return asked, self.template.options[-1 if example.first_is_better else 0]

    def _marks(self, items: Sequence[_Item]) -> dict[tuple[str, str, str], _Found]:
        """Each different item's marks, all in one batch; those of a completion side by side."""
        out: dict[tuple[str, str, str], _Found] = {}
        todo: dict[tuple[str, str], dict[str, _Item]] = {}
        for item in items:
            reason = item.unjudgeable()
            if reason is not None:
                out[item.name] = reason, ()
            else:
                todo.setdefault(item.name[:2], {}).setdefault(item.principle, item)
        prompts: list[Rendered] = []
        for same in todo.values():
            one = next(iter(same.values()))
            prompts += self.template.render_each(
                "principle", list(same), messages=one.prompt.messages, response=one.text
            )
        asked = [item for same in todo.values() for item in same.values()]
        samples = self.prepared([self.after_examples(prompt) for prompt in prompts])
        scores = self.score_samples(samples, [self.template.options] * len(prompts))
        for item, row, found in zip(asked, samples, scores, strict=True):
            each = [self._read(*one) for one in zip(row, found, strict=True)]
            out[item.name] = _mean_of(each), row
        return out

    def _read(self, sample: Sample, scores: Scores | None) -> Marks | Reason:
        if scores is None:
            return sample.fault or "cut"
        if scores.failure:
            return scores.failure
        if scores.mass < self.min_mass:
            return "low_mass"
        top = max(scores.logprobs)
        weights = [math.exp(x - top) for x in scores.logprobs]
        total = math.fsum(weights)
        return Marks(tuple(w / total for w in weights), scores.mass)

    def _verdict(self, ask: Ask, of_first: _Found, of_second: _Found) -> Verdict:
        (first, before), (second, after) = of_first, of_second
        facts = {
            "score_first": first.mean if isinstance(first, Marks) else None,
            "score_second": second.mean if isinstance(second, Marks) else None,
            **facts_of([*before, *after]),
        }
        if isinstance(first, str):
            return self.abstain(ask, first, **facts)
        if isinstance(second, str):
            return self.abstain(ask, second, **facts)
        mass = min(first.mass, second.mass)
        return self.verdict(ask, p_above(first.levels, second.levels), mass=mass, **facts)


def _mean_of(found: Sequence[Marks | Reason]) -> Marks | Reason:
    """The mean of the marks after each thought, by the rule of `verdict_of`."""
    known = [one for one in found if isinstance(one, Marks)]
    whether = verdict_of([one if isinstance(one, str) else 0.5 for one in found])
    if isinstance(whether, str):
        return whether
    if len(known) == 1:
        return known[0]
    levels = zip(*(one.levels for one in known), strict=True)
    mass = math.fsum(one.mass for one in known) / len(known)
    return Marks(tuple(math.fsum(level) / len(known) for level in levels), mass)


class PointwiseJudge(ScoreJudge):
    """A mark for each completion: "1" to "10", or as many levels as the template has."""

    method = "pointwise"


class RubricJudge(ScoreJudge):
    """Yes or no to each principle, for each completion."""

    method = "rubric"

    def __init__(self, engine: Engine, settings: ScoreSettings | None = None) -> None:
        super().__init__(engine, settings)
        self._needs_options(2)


def p_above(first: Sequence[float], second: Sequence[float]) -> float:
    """P(S₁ > S₂) + ½ P(S₁ = S₂) of independent scores with these level probabilities."""
    below = 0.0  # P(S₂ < k)
    total = []
    for a, b in zip(first, second, strict=True):
        total.append(a * (below + b / 2))
        below += b
    return min(max(math.fsum(total), 0.0), 1.0)
