"""How a judge writes before it decides, and what becomes of what it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.engines.base import Generation, Sampling
from rlaif.files.templates import Rendered
from rlaif.judges.settings import RationaleSettings
from rlaif.records import Reason, Unusable

THINKING_TEMPERATURE = 0.6

_REASONS: dict[str, Unusable | None] = {
    "stop": None,
    "length": "cut",
    "too_long": "too_long",
    "content_filter": "filtered",
    "malformed": "malformed",
    "not_finite": "not_finite",
}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a judge writes before it decides: its rationales, and the thoughts before them or alone.

    A rationale makes the verdict after it overconfident, so that p is clamped: Bai et al. 2022
    (§4.1) take 0.4. `thinking`: tokens that a thought of a thinking model may have, before the
    rationale or in its place; it is closed there. 0 keeps the model from thinking, None leaves that
    to its chat template. A model that thinks is sampled at 0.6 where no temperature is set, as its
    makers advise: at 0 such models tend to go round in circles.
    """

    rationale: RationaleSettings
    thinking: int | None = None

    def sampling(self, stop: tuple[str, ...]) -> Sampling:
        """How an engine is to sample them."""
        asked = self.rationale
        temperature = asked.temperature
        if temperature is None:
            temperature = THINKING_TEMPERATURE if self.thinking else float(asked.samples > 1)
        return Sampling(
            n=asked.samples,
            temperature=temperature,
            max_new_tokens=asked.max_new_tokens,
            seed=asked.seed,
            stop=stop,
            thinking=self.thinking,
        )

    def thoughts(self) -> Sampling:
        """How thoughts alone are sampled."""
        return self.sampling(()).but(max_new_tokens=0)

    @property
    def settings(self) -> tuple[float | None, ...]:
        """All that can change a verdict, as a fingerprint takes it; `thinking` stands there where
        it is set."""
        drawn = self.sampling(())
        seed = drawn.seed if drawn.temperature > 0 else 0
        thinking = () if self.thinking is None else (self.thinking,)
        clamp = self.rationale.clamp
        return drawn.n, float(drawn.temperature), drawn.max_new_tokens, seed, clamp, *thinking

    @property
    def settings_of_thoughts(self) -> tuple[float | None, ...]:
        """The same of a judge that writes nothing but thoughts."""
        if not self.thinking:
            return () if self.thinking is None else (0,)
        n, temperature, _, *others = self.settings
        return n, temperature, *others

    def clamped(self, p: float) -> float:
        """p within [clamp, 1 − clamp]."""
        clamp = self.rationale.clamp
        return p if clamp is None else min(max(p, clamp), 1.0 - clamp)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a judge wrote before a verdict, and the prompt that is scored after it; or why none is.

    `cut`: its thought was closed at the budget. `tokens` are those decoded.
    """

    prompt: Rendered | None
    fault: Reason | None = None
    rationale: str | None = None
    thought: str | None = None
    cut: bool = False
    tokens: int = 0


def facts_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a verdict keeps of what was written before it."""
    thoughts = tuple(s.thought for s in samples if s.thought is not None)
    return {
        "rationales": tuple(s.rationale for s in samples if s.rationale is not None),
        "tokens": sum(s.tokens for s in samples),
        "thoughts": thoughts,
        "thoughts_cut": sum(s.cut for s in samples),
    }


def unusable(generation: Generation) -> Unusable | None:
    """Why nothing can be made of a text: half a rationale is none."""
    return _REASONS.get(generation.finish_reason, "filtered")


def verdict_of(samples: Sequence[float | Reason]) -> float | Reason:
    """The mean p of the samples that gave one; the commonest reason if under half of them did."""
    values = [x for x in samples if not isinstance(x, str)]
    if values and 2 * len(values) >= len(samples):
        return sum(values) / len(values)
    ((reason, _),) = Counter(x for x in samples if isinstance(x, str)).most_common(1)
    return reason
