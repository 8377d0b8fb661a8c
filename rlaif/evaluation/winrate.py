"""How often one policy's completions beat another's, in a judge's eyes.

The judge comes in as a function from pairs to preferences, so that any judge, set of principles and
aggregation will do. Both orders and the mean over principles are its business: a preference's
`p_first` is already debiased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.errors import DataError
from rlaif.evaluation.metrics import Interval, bootstrap
from rlaif.records import Pair, Preference, Prompt

Label = Callable[[Sequence[Pair]], Sequence[Preference]]


@dataclass(frozen=True, slots=True)
class WinRate:
    """A's share of wins over B, a tie being half a win, with its interval over prompts.

    `n` compared prompts, of which `ties` came out even; `identical` of the ties are pairs of equal
    texts, which no judge is asked about. `abstained` pairs are outside `n`. `mean_p` is the mean
    P(A is better), which tells a narrow win from a clear one.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    ties: int
    identical: int
    abstained: int
    mean_p: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def winrate(
    prompts: Sequence[Prompt],
    completions_a: Sequence[str],
    completions_b: Sequence[str],
    label: Label,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """A's win rate over B, one comparison a row; rows of one prompt are resampled together.

    `label(pairs)` returns a preference a pair, in order. A wins where it is preferred; what the
    label calls a tie, being too near ½ to tell, is one.
    """
    pairs = [
        Pair(prompt, a, b)
        for prompt, a, b in zip(prompts, completions_a, completions_b, strict=True)
    ]
    if not pairs:
        raise DataError("a win rate needs at least one prompt")
    asked = [pair for pair in pairs if pair.first != pair.second]
    labels = label(asked) if asked else []
    p_of = {
        pair.id: p if p is not None and status == "preferred" else 0.5
        for pair, p, status in (
            (pair, found.p_first, found.status) for pair, found in zip(asked, labels, strict=True)
        )
        if status != "abstained"
    }
    p_of |= {pair.id: 0.5 for pair in pairs if pair.first == pair.second}
    known = [(pair.prompt.id, p_of[pair.id]) for pair in pairs if pair.id in p_of]
    identical, abstained = len(pairs) - len(asked), len(pairs) - len(known)
    if not known:
        return WinRate(None, None, None, 0, 0, identical, abstained, None)
    clusters, p_a = [c for c, _ in known], [p for _, p in known]
    wins = [0.5 if p == 0.5 else float(p > 0.5) for p in p_a]

    def interval(values: Sequence[float]) -> Interval:
        return bootstrap(values, clusters, level=level, resamples=resamples, seed=seed)

    rate = interval(wins)
    return WinRate(
        value=rate.value,
        low=rate.low,
        high=rate.high,
        n=rate.n,
        ties=wins.count(0.5),
        identical=identical,
        abstained=abstained,
        mean_p=interval(p_a).as_dict(),
    )
