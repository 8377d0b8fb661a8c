"""A reader of your own: rows with a question, two answers and votes, such as
{"q": "How are you?", "a": ["Well.", "Bad."], "votes": [3, 1]}.

rlaif label --pairs votes.jsonl --format extending_reader:pairs --out runs/votes
"""

from collections.abc import Iterable
from typing import Any

from rlaif import Pair, Prompt


def pairs(row: dict[str, Any], where: str) -> Iterable[Pair]:
    first, second = row["a"]
    ours, others = row["votes"]
    if ours + others:  # nobody voted: no pair, and the row is counted as left out
        label = ours / (ours + others)  # P(first is better), as people say
        yield Pair(Prompt.user(row["q"], where), first, second, label=label)
