"""Records as rows: the columns of each table, records to columns and rows to records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

import pyarrow as pa

from rlaif.records import (
    Completion,
    Message,
    Pair,
    Preference,
    Prompt,
    Revision,
    Verdict,
    messages_to_json,
)

R = TypeVar("R")

_TEXT, _FLOAT, _COUNT = pa.string(), pa.float64(), pa.int32()
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))

# The first column is the key: no two rows that are read share one.
SCHEMAS: dict[str, pa.Schema] = {
    "prompts": pa.schema([("id", _TEXT), ("messages", _MESSAGES), ("source", _TEXT)]),
    "completions": pa.schema(
        [
            ("key", _TEXT),
            ("prompt_id", _TEXT),
            ("policy", _TEXT),
            ("index", _COUNT),
            ("text", _TEXT),
            ("finish_reason", _TEXT),
            ("tokens", _COUNT),
            ("ids", pa.list_(_COUNT)),
            ("thought", _TEXT),
        ]
    ),
    "pairs": pa.schema(
        [
            ("id", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("first", _TEXT),
            ("second", _TEXT),
            ("label", _FLOAT),
            ("source", _TEXT),
            ("thoughts", pa.list_(_TEXT)),
        ]
    ),
    "verdicts": pa.schema(
        [
            ("key", _TEXT),
            ("pair_id", _TEXT),
            ("principle", _TEXT),
            ("order", _TEXT),
            ("judge", _TEXT),
            ("p_first", _FLOAT),
            ("logprob_first", _FLOAT),
            ("logprob_second", _FLOAT),
            ("mass", _FLOAT),
            ("reason", _TEXT),
            ("score_first", _FLOAT),
            ("score_second", _FLOAT),
            ("rationales", pa.list_(_TEXT)),
            ("tokens", _COUNT),
            ("thoughts", pa.list_(_TEXT)),
            ("thoughts_cut", _COUNT),
        ]
    ),
    "revisions": pa.schema(
        [
            ("key", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("policy", _TEXT),
            ("sample", _COUNT),
            ("round", _COUNT),
            ("principle", _TEXT),
            ("response", _TEXT),
            ("critique", _TEXT),
            ("revision", _TEXT),
            ("reason", _TEXT),
            ("tokens", _COUNT),
        ]
    ),
    "preferences": pa.schema(
        [
            ("pair_id", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("first", _TEXT),
            ("second", _TEXT),
            ("label", _FLOAT),
            ("source", _TEXT),
            ("status", _TEXT),
            ("p_first", _FLOAT),
            ("principles", pa.list_(_TEXT)),
            ("p_principles", pa.list_(_FLOAT)),
            ("verdicts", _COUNT),
            ("abstained", _COUNT),
            ("reason", _TEXT),
            ("p_raw", _FLOAT),
            ("people", _FLOAT),
            ("status_judged", _TEXT),
            ("p_judged", _FLOAT),
        ]
    ),
}


def _messages(rows: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"]) for row in rows)


def _prompt_of_row(_id: str, messages: list[dict[str, Any]], source: str) -> Prompt:
    return Prompt(_messages(messages), source)


def _pair_of_row(
    _id: str,
    prompt: list[dict[str, Any]],
    prompt_source: str,
    first: str,
    second: str,
    label: float | None,
    source: str,
    thoughts: list[str] | None = None,
) -> Pair:
    told = None if thoughts is None else (thoughts[0], thoughts[1])
    return Pair(Prompt(_messages(prompt), prompt_source), first, second, label, source, told)


def _completion_of_row(*row: Any) -> Completion:
    told = list(row)
    told[7:] = tuple(told[7] or ()), told[8] or ""  # null in a shard from before there were any
    return Completion(*told)


def _verdict_of_row(*row: Any) -> Verdict:
    told = list(row)
    # null in a shard from before there were any
    told[12:] = tuple(told[12] or ()), told[13] or 0, tuple(told[14] or ()), told[15] or 0
    return Verdict(*told)


def _revision_of_row(
    key: str, prompt: list[dict[str, Any]], prompt_source: str, *told: Any
) -> Revision:
    return Revision(key, Prompt(_messages(prompt), prompt_source), *told)


def _preference_of_row(*row: Any) -> Preference:
    status, p_first, principles, p_principles, *told = row[7:]
    verdicts, abstained, reason, p_raw, people, status_judged, p_judged = told
    return Preference(
        pair=_pair_of_row(*row[:7]),
        status=status,
        p_first=p_first,
        principles=tuple(principles),
        p_principles=tuple(p_principles),
        verdicts=verdicts,
        abstained=abstained,
        reason=reason,
        p_raw=p_raw,
        people=people,
        status_judged=status_judged,
        p_judged=p_judged,
    )


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """Records to columns, and rows to records.

    A column is the attribute of its name unless `getters` says otherwise.
    """

    record: Callable[..., R]  # from one row's values, in the schema's order
    getters: Mapping[str, Callable[[R], Any]]

    def table(self, schema: pa.Schema, records: Sequence[R]) -> pa.Table:
        columns = [
            list(map(self.getters.get(name) or attrgetter(name), records)) for name in schema.names
        ]
        return pa.Table.from_pydict(dict(zip(schema.names, columns, strict=True)), schema=schema)

    def records(self, batch: pa.RecordBatch | pa.Table) -> list[R]:
        return list(itertools.starmap(self.record, zip(*_python_columns(batch), strict=True)))


def _python_columns(batch: pa.RecordBatch | pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in batch.columns]


_PROMPT_GETTERS: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda row: messages_to_json(row.prompt.messages),
    "prompt_source": attrgetter("prompt.source"),
}
CODECS: dict[str, Codec[Any]] = {
    "prompts": Codec(_prompt_of_row, {"messages": lambda p: messages_to_json(p.messages)}),
    "completions": Codec(_completion_of_row, {}),
    "pairs": Codec(_pair_of_row, _PROMPT_GETTERS),
    "verdicts": Codec(_verdict_of_row, {}),
    "revisions": Codec(_revision_of_row, _PROMPT_GETTERS),
    "preferences": Codec(
        _preference_of_row,
        {
            "pair_id": attrgetter("pair.id"),
            "prompt": lambda p: messages_to_json(p.pair.prompt.messages),
            "prompt_source": attrgetter("pair.prompt.source"),
            **{name: attrgetter(f"pair.{name}") for name in ("first", "second", "label", "source")},
        },
    ),
}
