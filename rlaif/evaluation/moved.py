"""What training moved: the length of answers, traits and principles, and which of them fell.

Pure functions over answers and stored intervals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlaif.evaluation.compare import opinions
from rlaif.records import Preference
from rlaif.statistics.intervals import Interval, bootstrap, share


def words(texts: Sequence[str], prompts: Sequence[str]) -> Interval:
    """Mean words of an answer, with an interval over prompts, by their ids."""
    return bootstrap([float(len(text.split())) for text in texts], prompts)


def words_change(after: Sequence[str], before: Sequence[str], prompts: Sequence[str]) -> Interval:
    """Mean difference of words between two answers of the same prompts, paired."""
    pairs = zip(after, before, strict=True)
    return bootstrap([float(len(a.split()) - len(b.split())) for a, b in pairs], prompts)


def by_principle(preferences: Iterable[Preference]) -> dict[str, dict[str, float]]:
    """By principle the mean P that a pair's first answer is better, over the pairs of which it had
    something to say: below ½ the first policy fell under it."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for preference in preferences:
        for name, p in opinions(preference).items():
            found[name].append((preference.pair.prompt.id, p))
    return {
        name: share([p for _, p in rows], [prompt for prompt, _ in rows]).as_dict()
        for name, rows in sorted(found.items())
    }


@dataclass(frozen=True, slots=True)
class Move:
    """Something before and after training: `change` is after less before, and its interval.

    `beyond`: whether the interval leaves 0 out. `what` is a trait, or `words an answer`.
    """

    what: str
    before: float
    after: float
    change: Interval

    @property
    def beyond(self) -> bool:
        return self.change.low > 0 or self.change.high < 0

    @property
    def fell(self) -> bool:
        return self.change.high < 0


def change_of_shares(before: Interval, after: Interval) -> Interval:
    """The difference of two shares with Newcombe's interval (1998, method 10), made of theirs.

    It takes them for independent: of policies that answer the same prompts it is too wide rather
    than too narrow.
    """
    d = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Interval(d, d - down, d + up, min(before.n, after.n))


def moved(before: Mapping[str, Interval], after: Mapping[str, Interval]) -> list[Move]:
    """Every trait that both have, those that fell farthest first."""
    found = [
        Move(name, before[name].value, after[name].value, change_of_shares(before[name], end))
        for name, end in after.items()
        if name in before
    ]
    return sorted(found, key=lambda move: move.change.value)


def beyond_half(found: Mapping[str, Interval]) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Of mean P(better than the base) by principle, those that fell beyond their interval, which
    lies under ½, and those that rose."""
    fell = {name: p for name, p in found.items() if p.high < 0.5}
    return fell, {name: p for name, p in found.items() if p.low > 0.5}
