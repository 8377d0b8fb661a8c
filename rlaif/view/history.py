"""Where a pair's responses come from: how each was sampled, and what was criticised and revised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.records import Pair, messages_to_json
from rlaif.view.index import Index, Json


@dataclass(frozen=True, slots=True)
class History:
    """What the store has of one response: its rows of `completions` (several policies may have said
    the same), and the rounds of the first chain of revisions that it is in, in their order."""

    sampled: tuple[Json, ...] = ()
    rounds: tuple[Json, ...] = ()


def histories(index: Index, pair: Pair) -> tuple[History, History]:
    """Those of the pair's two responses."""
    texts = (pair.first, pair.second)
    said = _rows(index, "completions", "prompt_id", pair.prompt.id)
    revised = _rows(index, "revisions", "prompt", messages_to_json(pair.prompt.messages))
    first, second = (
        History(tuple(row for row in said if row["text"] == text), _chain(revised, text))
        for text in texts
    )
    return first, second


def _rows(index: Index, table: str, column: str, value: Any) -> list[Json]:
    paths = [str(path) for path in index.store.table(table).files()]  # type: ignore[call-overload]
    if not paths:
        return []
    sql = f"SELECT * FROM read_parquet(?, union_by_name=true) WHERE {column} = ?"
    return index.made.run(sql, [paths, value])


def _chain(rows: Sequence[Json], text: str) -> tuple[Json, ...]:
    """The rounds that began with a text, else those that led to it."""
    chains: dict[tuple[str, int], dict[int, Json]] = {}
    for row in rows:  # of a round that was made again the last row is the one that stands
        chains.setdefault((row["policy"], row["sample"]), {})[row["round"]] = row
    found = [[chain[number] for number in sorted(chain)] for chain in chains.values()]
    own = [rounds for rounds in found if rounds[0]["response"] == text]
    led = [rounds for rounds in found if any(row["revision"] == text for row in rounds)]
    return tuple(next(iter(own + led), ()))
