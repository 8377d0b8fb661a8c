"""How few verdicts tell a label: stopping early over principles and orders, simulated.

A pair's label is made of K verdicts, a column each for a principle in an order. They are asked one
after the other, those that tell most of the label first. After each look the label's P is foretold
by least squares from the verdicts so far; where it lies farther from the nearest border between
labels (½ ± the margin of ties) than λ residual standard deviations, no more is asked. λ is the
least for which the share of labels that come out otherwise keeps below the stated error on pairs
that were judged in full: (wrong + 1) / (n + 1) ≤ error, for this λ and all above (conformal risk
control, Angelopoulos et al. 2022). So it holds on average over pairs drawn as those were.

Pure functions over stored verdicts (N pairs, K columns): no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import DataError
from rlaif.evaluation.labels import Floats

Ints = NDArray[np.int64]
LEAST = 1e-3  # of the mean square of a column: what ridge adds, so that like columns share a weight
STRICT = (*(i / 20 for i in range(121)), 8.0, 12.0, 20.0, np.inf)


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """In what order columns are asked, and when no more are.

    `order` (K,): the columns; `looks`: after how many of them it may stop, the last after all.
    `weights`: for each look the intercept and the weights of the columns so far, which foretell P;
    `spread`: the standard deviation of what they miss; `strict`: λ.
    """

    order: tuple[int, ...]
    looks: tuple[int, ...]
    weights: tuple[Floats, ...]
    spread: tuple[float, ...]
    margin: float
    strict: float


def sides(p: Floats, margin: float) -> Ints:
    """What labels of P(first), (N,), say: 1 the first, −1 the second, 0 a tie."""
    found = np.where((p == 0.5) | (np.abs(p - 0.5) < margin), 0, np.sign(p - 0.5))
    return found.astype(np.int64)


def fitted(
    verdicts: Floats,
    p: Floats,
    learn: NDArray[np.bool_],
    *,
    margin: float,
    error: float,
    order: Sequence[int] | None = None,
    looks: Sequence[int] | None = None,
) -> StoppingRule:
    """The rule from pairs judged in full: `verdicts` (N, K), NaN where the judge abstained, and
    their labels' P(first), `p` (N,).

    Order and weights are of the pairs in `learn`, λ of the others. `order` is by information unless
    given, `looks` all counts. DataError where there are too few others for so small an error.
    """
    others = int((~learn).sum())
    if others + 1 < 1 / error:
        raise DataError(
            f"{others} pairs judged in full cannot show an error of {error:.3%}: it needs "
            f"{int(np.ceil(1 / error)) - 1}, beside those that the weights are of"
        )
    x = _filled(verdicts)
    ranked = tuple(ranking(x[learn], p[learn]) if order is None else order)
    last = x.shape[1]
    at = tuple(sorted({*(looks or range(1, last + 1)), last}))
    weights = tuple(_weights(x[learn][:, ranked[:n]], p[learn]) for n in at)
    rule = StoppingRule(ranked, at, weights, (0.0,) * len(at), margin, np.inf)
    foretold, _ = _looked(rule, x[learn])
    spread = np.sqrt(((foretold - p[learn]) ** 2).mean(axis=1)).tolist()
    rule = replace(rule, spread=tuple(spread))
    return replace(rule, strict=_strictness(rule, verdicts[~learn], p[~learn], error))


def stopped(rule: StoppingRule, verdicts: Floats, p: Floats) -> tuple[Ints, Ints]:
    """What each label comes out as (`sides`), and how many columns were asked for it: (N,) each.
    `p` are the labels of all verdicts, which are looked at where all were asked."""
    foretold, distance = _looked(rule, verdicts)
    foretold[-1] = p  # all is known: the label is made as ever
    return _stopped(rule, foretold, distance, rule.strict)


def ranking(x: Floats, p: Floats) -> list[int]:
    """The columns of `x` (N, K), each the one that with those before it foretells `p` best."""
    found: list[int] = []
    left = list(range(x.shape[1]))
    while left:

        def miss(column: int) -> float:
            chosen = x[:, [*found, column]]
            return float(((_foretold(chosen, _weights(chosen, p)) - p) ** 2).sum())

        best = min(left, key=miss)
        found.append(best)
        left.remove(best)
    return found


def _filled(verdicts: Floats) -> Floats:
    """An abstention tells nothing: ½."""
    return np.where(np.isfinite(verdicts), verdicts, 0.5)


def _weights(x: Floats, p: Floats) -> Floats:
    """The intercept and the weights by ridge regression of P − ½ on the columns' P − ½."""
    a = np.column_stack([np.ones(len(x)), x - 0.5])
    penalty = LEAST * np.diag([0.0, *(((x - 0.5) ** 2).sum(axis=0) + 1e-9)])
    return np.asarray(np.linalg.solve(a.T @ a + penalty, a.T @ (p - 0.5)), dtype=np.float64)


def _foretold(x: Floats, weights: Floats) -> Floats:
    return np.asarray(0.5 + weights[0] + (x - 0.5) @ weights[1:], dtype=np.float64)


def _looked(rule: StoppingRule, verdicts: Floats) -> tuple[Floats, Floats]:
    """P as foretold at each look, and its distance to the nearest border, (looks, N) each."""
    x = _filled(verdicts)
    foretold = np.stack(
        [_foretold(x[:, rule.order[:n]], w) for n, w in zip(rule.looks, rule.weights, strict=True)]
    )
    return foretold, np.abs(np.abs(foretold - 0.5) - rule.margin)


def _stopped(
    rule: StoppingRule, foretold: Floats, distance: Floats, strict: float
) -> tuple[Ints, Ints]:
    spread = np.array(rule.spread)[:, None]
    with np.errstate(invalid="ignore"):
        enough = distance > strict * spread
    enough[-1] = True  # nothing is left to ask
    look = enough.argmax(axis=0)
    said = sides(foretold[look, np.arange(len(look))], rule.margin)
    return said, np.array(rule.looks)[look]


def _strictness(rule: StoppingRule, verdicts: Floats, p: Floats, error: float) -> float:
    foretold, distance = _looked(rule, verdicts)
    foretold[-1] = p  # all is known: the label is made as ever
    truth, found = sides(p, rule.margin), np.inf
    for strict in STRICT[::-1]:
        said, _ = _stopped(rule, foretold, distance, strict)
        if ((said != truth).sum() + 1) / (len(p) + 1) > error:
            break
        found = strict
    return found
