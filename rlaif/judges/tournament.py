"""Round robin: strengths of completions from comparisons of pairs, by Bradley–Terry.

Every pair of a prompt's completions judged is a round robin (`sampling.n` above 2 makes one). The
model P(i ≻ j) = s_i / (s_i + s_j) (Bradley & Terry 1952) then gives one strength a completion, and
labels that agree with one another: three pairs that go round in a circle come out even.
Pure functions over labels that are there already: no model is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rlaif.errors import DataError
from rlaif.records import Preference
from rlaif.statistics.logistic import fit_logistic

Floats = npt.NDArray[np.float64]


def bradley_terry(
    count: int,
    games: Iterable[tuple[int, int, float]],
    *,
    prior: float = 0.1,
) -> Floats:
    """Log-strengths (count,), their mean 0, that make the games likeliest.

    A game is (i, j, P(i ≻ j)); a probability counts as that share of a win. `prior` is a game that
    every two play and draw, of so much weight: it keeps the strength of one who never loses
    finite, and connects those who never met. 0 leaves it out, and is refused (DataError) where the
    games alone do not settle the strengths.
    """
    wins = np.zeros((count, count))
    for i, j, p in games:
        if i == j or not 0 <= p <= 1:
            raise DataError(f"expected a game of two with a probability, got {(i, j, p)}")
        wins[i, j] += p
        wins[j, i] += 1 - p
    return log_strengths(wins, prior=prior)


def log_strengths(wins: Floats, *, prior: float = 0.1) -> Floats:
    """As `bradley_terry`, from the number of times that each has beaten each (count, count).

    A logistic regression of who won on who played, by Newton's method: the usual MM iteration takes
    over 100,000 steps where somebody nearly always wins.
    """
    count = len(wins)
    wins = wins + prior / 2
    np.fill_diagonal(wins, 0.0)
    if count < 2:
        return np.zeros(count)
    if not above(wins).all():
        raise DataError(
            "these games do not settle the strengths: somebody never lost, or two groups never "
            "met. Give a prior above 0"
        )
    played = np.triu(wins + wins.T)
    first, second = np.nonzero(played)
    one = np.eye(count)
    weights = played[first, second]
    rows = (one[first] - one[second])[:, 1:]  # the first one's strength is 0
    logs = [0.0, *fit_logistic(rows, wins[first, second] / weights, weights)]
    found: Floats = np.array(logs) - np.mean(logs)
    return found


def above(wins: Floats) -> npt.NDArray[np.bool_]:
    """Whether i beats j by some chain of wins, (count, count). The strengths are finite where each
    is above every other (Ford 1957)."""
    reached = (wins > 0) | np.eye(len(wins), dtype=bool)
    for k in range(len(wins)):
        reached |= reached[:, k, None] & reached[k]
    return reached


def strengths(
    preferences: Sequence[Preference], *, prior: float = 0.1
) -> dict[str, dict[str, float]]:
    """Log-strength of each completion by prompt id, then by text, from the prompt's labelled pairs.

    Pairs on which the judge abstained are not games; a completion that has no other is left out.
    """
    by_prompt: dict[str, list[Preference]] = {}
    for preference in preferences:
        if preference.p_first is not None and preference.pair.first != preference.pair.second:
            by_prompt.setdefault(preference.pair.prompt.id, []).append(preference)
    out = {}
    for prompt, rows in by_prompt.items():
        texts = list(dict.fromkeys(t for r in rows for t in (r.pair.first, r.pair.second)))
        place = {text: i for i, text in enumerate(texts)}
        games = [(place[r.pair.first], place[r.pair.second], float(r.p_first or 0)) for r in rows]
        found = bradley_terry(len(texts), games, prior=prior)
        out[prompt] = dict(zip(texts, found.tolist(), strict=True))
    return out
