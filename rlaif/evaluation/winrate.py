"""How often one policy's completions beat another's, in a judge's eyes.

The judge comes in as a function from pairs to preferences, so that any judge, set of principles and
aggregation will do. Both orders and the mean over principles are its business: a preference's
`p_first` is already debiased. What needs no judge is not asked: equal texts, and an empty answer
beside one that is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rlaif.errors import DataError
from rlaif.records import Pair, Preference, Prompt
from rlaif.statistics.intervals import share

Label = Callable[[Sequence[Pair]], Sequence[Preference]]
Outcome = Literal["win", "loss", "tie", "identical", "abstained"]
_SCORES: dict[Outcome, float] = {"win": 1.0, "loss": 0.0, "tie": 0.5, "identical": 0.5}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of one prompt, in the eyes of A: the outcome and P(A is better).

    `empty` names whose answer was blank: "a" has lost by it and "b" won, without a judge.
    `longer_by` is how many characters A's answer is longer than B's.
    """

    prompt_id: str
    outcome: Outcome
    p: float | None
    empty: Literal["a", "b"] | None = None
    longer_by: int = 0

    @property
    def score(self) -> float | None:
        """A's share of a win: ½ of a tie or of equal texts; None where the judge abstained."""
        return _SCORES.get(self.outcome)


@dataclass(frozen=True, slots=True)
class WinRate:
    """A's wins over B, counted apart, with rates whose intervals are over prompts.

    `wins`, `losses`, `ties` (the judge asked, and even), `identical` (equal texts, which no judge
    is asked about; both blank are equal) and `abstained` are all comparisons. `n` is without the
    abstentions. `decided` is wins/(wins + losses); `value`, `low` and `high` are of the rate over
    `n` in which ties and identical texts are half a win, so that a policy that changed few answers
    stays near ½. `empty_a`, `empty_b` of the losses and wins are of a blank answer. `mean_p` is the
    mean P(A is better), which tells a narrow win from a clear one.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    wins: int
    losses: int
    ties: int
    identical: int
    abstained: int
    decided: dict[str, float] | None
    empty_a: int
    empty_b: int
    mean_p: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    prompts: Sequence[Prompt],
    completions_a: Sequence[str],
    completions_b: Sequence[str],
    label: Label,
) -> list[Comparison]:
    """One comparison a row, in order. `label(pairs)` returns a preference a pair, in order.

    A wins where it is preferred; what the label calls a tie, being too near ½ to tell, is one.
    """
    pairs = [
        Pair(prompt, a, b)
        for prompt, a, b in zip(prompts, completions_a, completions_b, strict=True)
    ]
    known = [_without_a_judge(pair) for pair in pairs]
    asked = list({p.id: p for p, one in zip(pairs, known, strict=True) if one is None}.values())
    labels = label(asked) if asked else []
    said = {pair.id: one for pair, one in zip(asked, labels, strict=True)}
    found = [
        _judged(pair, said[pair.id]) if one is None else one
        for pair, one in zip(pairs, known, strict=True)
    ]
    return [
        replace(one, longer_by=len(pair.first) - len(pair.second))
        for pair, one in zip(pairs, found, strict=True)
    ]


def _without_a_judge(pair: Pair) -> Comparison | None:
    """What needs no judge; a blank answer loses to one that is not."""
    a, b = bool(pair.first.strip()), bool(pair.second.strip())
    if pair.first == pair.second or not (a or b):
        return Comparison(pair.prompt.id, "identical", 0.5)
    if not a:
        return Comparison(pair.prompt.id, "loss", 0.0, "a")
    return None if b else Comparison(pair.prompt.id, "win", 1.0, "b")


def _judged(pair: Pair, found: Preference) -> Comparison:
    if found.status == "abstained":
        return Comparison(pair.prompt.id, "abstained", None)
    p = 0.5 if found.p_first is None or found.status != "preferred" else found.p_first
    return Comparison(pair.prompt.id, "tie" if p == 0.5 else "win" if p > 0.5 else "loss", p)


def rate(found: Sequence[Comparison], *, level: float = 0.95) -> WinRate:
    """The counts and rates of some comparisons; rows of one prompt are not independent."""
    counts = Counter(c.outcome for c in found)
    known = [c for c in found if c.p is not None]
    decided = [c for c in known if c.outcome in ("win", "loss")]

    def of(rows: Sequence[Comparison], values: Sequence[float]) -> dict[str, float] | None:
        names = [c.prompt_id for c in rows]
        return share(values, names, level=level).as_dict() if rows else None

    score = of(known, [_SCORES[c.outcome] for c in known]) or {}
    return WinRate(
        value=score.get("value"),
        low=score.get("low"),
        high=score.get("high"),
        n=len(known),
        wins=counts["win"],
        losses=counts["loss"],
        ties=counts["tie"],
        identical=counts["identical"],
        abstained=counts["abstained"],
        decided=of(decided, [_SCORES[c.outcome] for c in decided]),
        empty_a=sum(c.empty == "a" for c in found),
        empty_b=sum(c.empty == "b" for c in found),
        mean_p=of(known, [c.p for c in known if c.p is not None]),
    )


def winrate(
    prompts: Sequence[Prompt],
    completions_a: Sequence[str],
    completions_b: Sequence[str],
    label: Label,
    *,
    level: float = 0.95,
) -> WinRate:
    """A's win rate over B: the `rate` of all comparisons."""
    found = compare(prompts, completions_a, completions_b, label)
    if not found:
        raise DataError("a win rate needs at least one prompt")
    return rate(found, level=level)
