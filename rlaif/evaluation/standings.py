"""Several policies on the same prompts: win rates free of length, differences, Bradley–Terry.

Pure functions over the comparisons of `winrate.compare`; every interval is over prompts. Outcomes
are soft: P(A is better), ½ for ties and equal texts; what the judge abstained on is in none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlaif.errors import DataError
from rlaif.evaluation.winrate import Comparison
from rlaif.judges.tournament import above, log_strengths
from rlaif.statistics.intervals import Floats, bootstrap, bootstrap_of_many
from rlaif.statistics.logistic import fit_logistic, separates

ELO = 400 / math.log(10)  # points a unit of log-odds
RIDGE = 0.01  # keeps a fit that always wins finite; of 100 prompts it moves the rate by under 1e-3
ROUNDING = 1e-6  # points: ends that are nearer to one another are the same number
Games = Mapping[tuple[str, str], Sequence[Comparison]]  # of A against B, in the eyes of A


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A's mean P(better than B), had both answers been equally long, with its interval.

    `effect` is what an answer that is much longer gains, in log-odds: φ. `spread` is the standard
    deviation of the difference of lengths, in characters. `separated`: length and a constant tell
    wins from losses for sure, so that the value is what the ridge allows, and has no interval; nor
    has that of outcomes that are all equal.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    effect: dict[str, float]
    spread: float
    separated: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def length_controlled(found: Sequence[Comparison], *, seed: int = 0) -> LengthControlled | None:
    """The win rate of AlpacaEval 2 (Dubois et al. 2024) without its third term; None of nothing.

    Fitted are θ and φ of logit P(A is better) = θ + φ · tanh(Δ/std(Δ)), Δ the difference of lengths
    in characters, on soft targets; the rate is σ(θ), that at Δ = 0. Theirs has a third term, ψ
    times an instruction's difficulty, fitted on the outputs of many other models; here is none.
    They choose an L1 penalty by cross-validation and add weighted rows of two gamed
    baselines; here is `RIDGE`/2 · (θ² + φ²). Answers all equally long leave φ at 0.
    """
    known = [(c.prompt_id, c.p, float(c.longer_by)) for c in found if c.p is not None]
    if not known:
        return None
    prompts, targets, lengths = zip(*known, strict=True)
    change, p = np.array(lengths), np.array(targets)
    spread = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    feature = np.tanh(change / spread) if spread > 0 else np.zeros(len(change))
    features = np.stack([np.ones(len(p)), feature], axis=1)

    def statistics(weights: Floats) -> list[float]:
        theta, phi = fit_logistic(features, p, weights, ridge=RIDGE).tolist()
        return [1 / (1 + math.exp(-theta)), phi]

    rate, effect = bootstrap_of_many(statistics, len(p), prompts, seed=seed)
    apart = separates(feature, p)
    unknown = apart or bool((p == p[0]).all())  # the bootstrap cannot tell how others would differ
    low, high = (None, None) if unknown else (rate.low, rate.high)
    return LengthControlled(rate.value, low, high, rate.n, effect.as_dict(), spread, apart)


@dataclass(frozen=True, slots=True)
class Rating:
    """A policy's Bradley–Terry rating in Elo points over the anchor: 400 are odds of 10 to 1.

    `n` are its games. `settled`: whether games alone settle it. Of one who never lost to those the
    anchor has met, or never won, or never met them, it is what a prior of 0.1 games that every two
    play and draw makes of it, and has no interval. Nor has one that is the same however prompts are
    drawn, such as that of a single prompt: nothing is known of how others would differ.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    settled: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ratings(games: Games, anchor: str, *, seed: int = 0) -> dict[str, Rating]:
    """The rating of all who play, the anchor's being 0; `games` by the two who play them.

    DataError where nothing is known of any game, or the anchor does not play.
    """
    names = list(dict.fromkeys([anchor, *(name for two in games for name in two)]))
    place = {name: i for i, name in enumerate(names)}
    rows = [
        (place[a], place[b], c.p, c.prompt_id)
        for (a, b), found in games.items()
        for c in found
        if c.p is not None
    ]
    if not rows or not any(anchor in two for two in games):
        raise DataError(f"ratings need games of which the outcome is known, and {anchor} in some")
    first, second, outcomes, prompts = zip(*rows, strict=True)
    k, p, once = len(names), np.array(outcomes), np.ones(len(rows))
    won, lost = (np.ravel_multi_index(two, (k, k)) for two in ((first, second), (second, first)))

    def wins(weights: Floats) -> Floats:
        flat = np.zeros(k * k)
        np.add.at(flat, won, weights * p)
        np.add.at(flat, lost, weights * (1 - p))
        return flat.reshape(k, k)

    def points(weights: Floats) -> Floats:
        logs = log_strengths(wins(weights))
        return np.asarray(ELO * (logs - logs[0]))

    reach, played = above(wins(once)), np.bincount([*first, *second], minlength=k)
    found = {}
    for i, (name, x) in enumerate(
        zip(names, bootstrap_of_many(points, len(p), prompts, seed=seed), strict=True)
    ):
        known = bool(reach[0, i] and reach[i, 0])
        told = known and (name == anchor or x.high - x.low > ROUNDING)  # else none ever differed
        low, high = (x.low, x.high) if told else (None, None)
        found[name] = Rating(x.value, low, high, int(played[i]), known)
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over n prompts with its interval, which it has not where it is the same on
    all of them, such as on one: nothing is known of how others would differ."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def beyond(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired(
    one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, seed: int = 0
) -> Difference | None:
    """The mean difference of two policies' values, paired by prompt, over the prompts of both.

    The values of a prompt are averaged first. None where the two share no prompt.
    """
    both = [prompt for prompt in one if prompt in other]
    if not both:
        return None
    values = [float(np.mean(one[x]) - np.mean(other[x])) for x in both]
    found = bootstrap(values, both, seed=seed)
    low, high = (None, None) if len(set(values)) == 1 else (found.low, found.high)
    return Difference(found.value, low, high, found.n)
