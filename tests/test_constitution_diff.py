from __future__ import annotations

from rlaif import PairwiseJudge
from rlaif.constitution import Constitution
from rlaif.constitution.diff import diff
from rlaif.engines.base import ScriptedEngine
from rlaif.records import Pair, Prompt, Verdict
from rlaif.steps.executors import Memory, run_judge

BEFORE = """
name: before
principles:
  - {id: same, compare: 'Same?'}
  - {id: gone, compare: 'Gone?'}
  - {id: word, compare: 'Is it good?'}
  - {id: weight, compare: 'Weight?'}
  - {id: old-name, compare: 'Named?'}
  - {id: request, compare: 'Request?', critique: Before.}
"""
AFTER = """
name: after
principles:
  - {id: request, compare: 'Request?', critique: After., weight: 2}
  - {id: same, compare: 'Same?'}
  - {id: word, compare: 'Is it better?'}
  - {id: weight, compare: 'Weight?', weight: 2}
  - {id: new-name, compare: 'Named?'}
  - {id: new, compare: 'New?'}
"""


def test_every_kind_of_change_is_told() -> None:
    changes = diff(Constitution.parse(BEFORE), Constitution.parse(AFTER))
    assert [(c.id, c.kind, c.fields) for c in changes] == [
        ("request", "changed", ("critique", "weight")),
        ("same", "same", ()),
        ("word", "reworded", ("compare",)),
        ("weight", "reweighted", ("weight",)),
        ("new-name", "renamed", ()),
        ("new", "added", ()),
        ("gone", "removed", ()),
    ]
    renamed = changes[4].before
    assert renamed is not None
    assert renamed.id == "old-name"


def test_what_it_says_is_to_judge_is_what_a_judge_judges() -> None:
    """Against the judge itself: the verdicts that the second labelling makes anew."""
    before, after = Constitution.parse(BEFORE), Constitution.parse(AFTER)
    judge = PairwiseJudge(ScriptedEngine(scorer=lambda *_: (-0.5, -1.0)))
    memory: Memory[Verdict] = Memory()
    pairs = [Pair(Prompt.user("q"), "one", "two")]
    run_judge(pairs, judge, before.principles, memory)
    known = len(memory.rows)
    run_judge(pairs, judge, after.principles, memory)
    made = {v.principle for v in memory.rows[known:]}
    assert (
        made == {c.id for c in diff(before, after) if c.judged_again} == {"word", "new-name", "new"}
    )
