from __future__ import annotations

import pickle
from collections import Counter

import pytest

from rlaif.constitution import Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.judges.base import expand
from rlaif.judges.draw import Draw
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.records import Pair, Prompt, Verdict
from rlaif.steps.executors import Memory, run_judge

FOUR = tuple(Principle(id=f"p{w}", compare=f"Question {w}?", weight=w) for w in (1, 2, 3, 4))
PAIRS = [Pair(Prompt.user(f"question {i}"), "one", f"answer {i}") for i in range(4000)]


def counts(draw: Draw) -> Counter[str]:
    return Counter(p.id for pair in PAIRS for p in draw(pair))


def test_one_principle_at_random_for_each_pair() -> None:
    found = counts(Draw(FOUR))
    assert sum(found.values()) == 4000
    for principle in FOUR:  # 1000 ± 27 each; five standard deviations
        assert abs(found[principle.id] - 1000) < 137


def test_a_weighted_draw_follows_the_weights() -> None:
    found = counts(Draw(FOUR, weighted=True))
    for principle in FOUR:
        share = principle.weight / 10
        assert abs(found[principle.id] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5


def test_several_are_drawn_without_replacement_in_their_order() -> None:
    for pair in PAIRS[:100]:
        drawn = Draw(FOUR, 3, weighted=True)(pair)
        assert len({p.id for p in drawn}) == 3
        assert list(drawn) == sorted(drawn, key=FOUR.index)
    assert counts(Draw(FOUR, 4)) == {p.id: 4000 for p in FOUR}
    for count in (0, 5):
        with pytest.raises(ConfigError, match=f"cannot draw {count} of 4 principles"):
            Draw(FOUR, count)


def test_a_draw_depends_on_the_pair_and_the_seed_alone() -> None:
    draw = Draw(FOUR, 2)
    assert [draw(p) for p in PAIRS[:50]] == [Draw(FOUR, 2)(p.swap()) for p in PAIRS[:50]]
    assert [draw(p) for p in PAIRS[:50]] == [
        pickle.loads(pickle.dumps(draw))(p) for p in PAIRS[:50]
    ]
    assert [draw(p) for p in PAIRS[:50]] != [Draw(FOUR, 2, seed=1)(p) for p in PAIRS[:50]]
    # A principle more takes a place in some pairs and changes nothing in the others.
    five = Draw((*FOUR, Principle(id="new", compare="New?")), 2)
    for pair in PAIRS[:50]:
        if "new" not in {p.id for p in five(pair)}:
            assert five(pair) == draw(pair)


def test_what_is_drawn_is_asked_in_both_orders_and_found_again() -> None:
    draw = Draw(FOUR)
    asks = expand(PAIRS[:3], draw)
    assert [(a.pair.id, a.order, a.principle.id) for a in asks] == [
        (pair.id, order, draw(pair)[0].id)
        for pair in PAIRS[:3]
        for order in ("first_second", "second_first")
    ]
    judge = PairwiseJudge(ScriptedEngine(scorer=lambda _t, _o: [-0.5, -1.5]))
    memory: Memory[Verdict] = Memory()
    run_judge(PAIRS[:10], judge, draw, memory, chunk=3)
    assert len(memory.rows) == 20
    done = run_judge(PAIRS[5:15], judge, draw, memory, chunk=4)
    assert (done.new_rows, done.old_rows) == (10, 10)
    # All principles later: what the draw asked already is kept.
    done = run_judge(PAIRS[:15], judge, FOUR, memory)
    assert (done.new_rows, done.old_rows) == (90, 30)
