"""How a judge writes before it decides, and what becomes of what it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.engines.base import Generation, Sampling
from rlaif.errors import ConfigError, require_finite_fields
from rlaif.records import Reason, Unusable

_REASONS: dict[str, Unusable | None] = {
    "stop": None, "length": "cut", "too_long": "too_long", "content_filter": "filtered",
    "malformed": "malformed", "not_finite": "not_finite",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How rationales are written.

    `samples`: rationales a verdict, whose probabilities are averaged (self-consistency).
    `temperature`: None takes 0 for one sample and 1 for several.
    `clamp`: c keeps each sample's p within [c, 1 − c], because a rationale makes the verdict after
    it overconfident: Bai et al. 2022 (§4.1) take 0.4. None leaves p as it is.
    """

    samples: int = 1
    temperature: float | None = None
    max_new_tokens: int = 256
    seed: int = 0
    clamp: float | None = 0.4

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
        temperature = float(self.samples > 1) if self.temperature is None else self.temperature
        return Sampling(
            n=self.samples, temperature=temperature, max_new_tokens=self.max_new_tokens,
            seed=self.seed, stop=stop,
        )  # fmt: skip

    @property
    def settings(self) -> tuple[float | None, ...]:
        """All that can change a verdict, as a fingerprint takes it."""
        drawn = self.sampling(())
        seed = drawn.seed if drawn.temperature > 0 else 0
        return drawn.n, float(drawn.temperature), drawn.max_new_tokens, seed, self.clamp

    def clamped(self, p: float) -> float:
        return p if self.clamp is None else min(max(p, self.clamp), 1.0 - self.clamp)


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
