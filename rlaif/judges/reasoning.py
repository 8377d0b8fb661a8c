"""How a judge writes before it decides, and what becomes of what it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.engines.base import Generation, Sampling
from rlaif.errors import ConfigError, require_finite_fields
from rlaif.files.templates import Rendered
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
    """How rationales are written.

    `samples`: rationales a verdict, whose probabilities are averaged (self-consistency).
    `temperature`: None takes 0 for one sample and 1 for several.
    `clamp`: c keeps each sample's p within [c, 1 − c], because a rationale makes the verdict after
    it overconfident: Bai et al. 2022 (§4.1) take 0.4. None leaves p as it is.
    `thinking`: tokens that a thought of a thinking model may have, before the rationale or in its
    place; it is closed there. 0 keeps the model from thinking, None leaves that to its chat
    template. A model that thinks is sampled at 0.6 where `temperature` is None, as its makers
    advise: at 0 such models tend to go round in circles.
    """

    samples: int = 1
    temperature: float | None = None
    max_new_tokens: int = 256
    seed: int = 0
    clamp: float | None = 0.4
    thinking: int | None = None

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.samples} samples at temperature 0 are all the same: raise the temperature, "
                "or ask for one"
            )
        if self.clamp is not None and not 0 <= self.clamp < 0.5:
            raise ConfigError(f"clamp must be in [0, 0.5) or None, got {self.clamp}")

    def sampling(self, stop: tuple[str, ...]) -> Sampling:
        """The same as an engine takes it. Raises ConfigError for values out of range."""
        temperature = self.temperature
        if temperature is None:
            temperature = THINKING_TEMPERATURE if self.thinking else float(self.samples > 1)
        return Sampling(
            n=self.samples,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
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
        return drawn.n, float(drawn.temperature), drawn.max_new_tokens, seed, self.clamp, *thinking

    @property
    def settings_of_thoughts(self) -> tuple[float | None, ...]:
        """The same of a judge that writes nothing but thoughts."""
        if not self.thinking:
            return () if self.thinking is None else (0,)
        n, temperature, _, *others = self.settings
        return n, temperature, *others

    def clamped(self, p: float) -> float:
        return p if self.clamp is None else min(max(p, self.clamp), 1.0 - self.clamp)


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
