from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_expit

from rlaif.errors import DataError
from rlaif.judges.tournament import bradley_terry, log_strengths, strengths
from rlaif.records import Pair, Preference, Prompt


def test_two_players_by_hand() -> None:
    # Three wins of four: the odds are 3, so the log-strengths are ± ln 3 / 2.
    found = bradley_terry(2, [(0, 1, 1.0), (0, 1, 1.0), (1, 0, 0.0), (0, 1, 0.0)], prior=0)
    assert found == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    # With a prior: 3.5 wins of 5.
    found = bradley_terry(2, [(0, 1, 1.0)] * 3 + [(1, 0, 1.0)], prior=1)
    assert found[0] - found[1] == pytest.approx(math.log(3.5 / 1.5))


def test_a_circle_comes_out_even_and_labels_that_fit_come_back() -> None:
    assert bradley_terry(3, [(0, 1, 0.9), (1, 2, 0.9), (2, 0, 0.9)]) == pytest.approx([0, 0, 0])
    truth = [0.7, 0.1, -0.8]
    games = [
        (i, j, 1 / (1 + math.exp(truth[j] - truth[i]))) for i in range(3) for j in range(3) if i < j
    ]
    assert bradley_terry(3, games, prior=0) == pytest.approx(truth, abs=1e-8)


def likeliest(count: int, games: list[tuple[int, int, float]], prior: float) -> np.ndarray:
    """The same by a general optimiser on the log-likelihood as it is written."""
    every = [(i, j, 0.5, prior) for i in range(count) for j in range(i)]
    rows = [(i, j, p, 1.0) for i, j, p in games] + every

    def loss(x: np.ndarray) -> float:
        return -sum(
            w * (p * log_expit(x[i] - x[j]) + (1 - p) * log_expit(x[j] - x[i]))
            for i, j, p, w in rows
        )

    x = minimize(loss, np.zeros(count), method="BFGS", options={"gtol": 1e-9}).x
    return x - x.mean()


game = st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1)).filter(
    lambda g: g[0] != g[1]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(game, max_size=12))
def test_a_general_optimiser_finds_the_same(games: list[tuple[int, int, float]]) -> None:
    assert bradley_terry(5, games) == pytest.approx(likeliest(5, games, 0.1), abs=1e-4)


def test_what_the_games_do_not_settle_is_refused() -> None:
    for games in ([(0, 1, 1.0)], [(0, 1, 0.6), (2, 3, 0.6)]):
        with pytest.raises(DataError, match="do not settle the strengths"):
            bradley_terry(1 + max(max(g[:2]) for g in games), games, prior=0)
    with pytest.raises(DataError, match="a game of two with a probability"):
        bradley_terry(2, [(0, 1, 1.5)])
    assert bradley_terry(1, []).tolist() == [0.0]


def test_strengths_of_labelled_pairs_by_prompt() -> None:
    a, b = Prompt.user("a"), Prompt.user("b")
    rows = [
        Preference(Pair(a, "x", "y"), "preferred", 0.9),
        Preference(Pair(a, "y", "z"), "preferred", 0.8),
        Preference(Pair(a, "x", "z"), "abstained", None),
        Preference(Pair(b, "x", "y"), "tie", 0.5),
        Preference(Pair(b, "x", "w"), "abstained", None),
    ]
    found = strengths(rows)
    assert sorted(found[a.id], key=lambda text: -found[a.id][text]) == ["x", "y", "z"]
    assert found[b.id] == pytest.approx({"x": 0.0, "y": 0.0})


def test_who_always_wins_is_rated_at_once_and_to_the_last_digit() -> None:
    # Each of four beat all below it in all of 2,000 games. At the best strengths the expected wins
    # of each are its wins, those of the prior's games included.
    wins = np.triu(np.full((4, 4), 2000.0), 1)
    logs = log_strengths(wins)
    chance = 1 / (1 + np.exp(logs[None, :] - logs[:, None]))
    np.fill_diagonal(chance, 0)
    assert (2000.1 * chance).sum(axis=1) == pytest.approx((wins + 0.05).sum(axis=1) - 0.05)
