"""Read pairs and prompts that others wrote, one at a time, whatever the size of the source.

Sources, formats and columns are in `docs/data.md`: files, folders and globs of shards, saved data
sets, hub names; the published data sets as they are; any other row by the paths of its columns.

Two things can be wrong with a row. A *malformed* one breaks the format (cut-off JSON, bytes that
are not UTF-8, a missing field), or holds what cannot be read (*unsupported*: tool calls, images),
and ends the run, unless `skip_bad` allows for it. An *unusable* one is well formed but makes no
pair or prompt (both responses the same, nothing asked); it is reported and left out. Neither is
ever dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif.errors import DataError
from rlaif.files.own import is_named
from rlaif.files.readers import columns as named
from rlaif.files.readers.chosen import trl, two_sides
from rlaif.files.readers.columns import Columns
from rlaif.files.readers.conversations import (
    conversation,
    messages_of,
    prompt_of,
    refuse_answered,
    refuse_empty,
    require_prompt,
    with_system,
)
from rlaif.files.readers.fields import (
    BadReason,
    BadRow,
    Left,
    OnBad,
    Row,
    fields_of,
    refuse_unsupported,
    say_which,
)
from rlaif.files.readers.formats import COLUMNS, Format, group_of, pairs_of
from rlaif.files.readers.own import EVERY, own_reader
from rlaif.files.readers.rated import listed, nvidia_prompt, oasst_prompt
from rlaif.files.readers.repeats import Repeats
from rlaif.files.readers.rows import Placed, read_units
from rlaif.files.readers.settings import (
    AnswerReading,
    PairReading,
    PromptReading,
    paths_of,
)
from rlaif.files.readers.sources import open_source
from rlaif.records import Demonstration, Message, Pair, Prompt

__all__ = [
    "BadReason",
    "BadRow",
    "Columns",
    "Format",
    "OnBad",
    "read_demonstrations",
    "read_pairs",
    "read_prompts",
]

_TALKS = ("messages", "text")  # where prompts stand beside the columns known to hold one
_ANSWERS = ("completion", "response", "output", "answer")


def read_pairs(
    source: str | Path,
    reading: PairReading | None = None,
    *,
    on_bad: OnBad | None = None,
) -> Iterator[Pair]:
    """Pairs of a source; where one response is known to be better, most formats have it first.

    `reading` says which format the source has, or which fields are `prompt`, `chosen`, `rejected`
    and so on; how many pairs to read, and how many malformed rows to pass over. A pair's `label` is
    P(first is better) as people, or `p_chosen`, say. An empty response is kept: judges abstain on
    it. A row that says the opposite of an earlier one of the same two responses is handed out too,
    and told to `on_bad` (`contradicts`, naming both). `on_bad` is told of every row left out;
    without it one warning sums up.

    Raises DataError for a source that is missing, of an unknown kind or cut off, for columns that
    make no pair, and at the malformed row after `skip_bad` skipped ones.
    """
    reading = reading or PairReading()
    columns, format = paths_of(reading.columns), reading.format
    if columns:
        if format != "auto":
            raise DataError(f"columns are named, so the format '{format}' has no say: leave it out")
        named.check(columns, named.PAIR_ROLES)
    wanted = named.heads(columns) if columns else COLUMNS
    reader = own_reader(format) if is_named(format) else None
    raw = open_source(str(source), EVERY if reader else wanted, allow_text=False)

    def convert(rows: Placed) -> Iterable[Pair | Left]:
        if reader:
            return reader(rows)
        return _named_pairs(rows, columns) if columns else pairs_of(rows, format)

    def group(row: Row) -> Any:
        return None if columns or reader else group_of(format, row)

    return read_units(str(source), raw, convert, reading, on_bad, group, Repeats())


def _named_pairs(rows: Placed, columns: Columns) -> Iterable[Pair | Left]:
    ((where, row),) = rows
    refuse_unsupported(row)
    row = named.mapped(row, columns)
    if "completions" in columns:
        return listed(row, where)
    return two_sides(row, where) if "first" in columns else trl(row, where)


def read_prompts(
    source: str | Path,
    reading: PromptReading | None = None,
    *,
    on_bad: OnBad | None = None,
) -> Iterator[Prompt]:
    """Prompts of a source: rows with `prompt`, `messages`, `text`, or another name of a prompt,
    each text or messages; a `system` column goes in front. Of pairs whose prompt stands in the
    responses, such as hh-rlhf's, it is taken from there.

    `reading` may say instead which fields are `prompt` and `system`. `on_bad` and the errors are
    those of `read_pairs`.
    """
    reading = reading or PromptReading()
    columns = paths_of(reading.columns)
    if columns:
        named.check(columns, named.PROMPT_ROLES)
    wanted = named.heads(columns) if columns else COLUMNS | {*_TALKS}
    raw = open_source(str(source), wanted, allow_text=True)

    def convert(rows: Placed) -> Iterable[Prompt | Left]:
        return _prompt(*rows[0], columns)

    return read_units(str(source), raw, convert, reading, on_bad)


def read_demonstrations(
    source: str | Path,
    reading: AnswerReading | None = None,
    *,
    on_bad: OnBad | None = None,
) -> Iterator[Demonstration]:
    """Answers to learn from: rows with `messages` or `conversations`, of which the last is the
    assistant's, or with a prompt and `completion`, `response`, `output` or `answer`, each text or
    messages; a `system` column goes in front. Only the last answer is learnt from.

    `reading` may say instead which fields are `messages`, or `prompt`, `completion` and `system`.
    `on_bad` and the errors are those of `read_pairs`.
    """
    reading = reading or AnswerReading()
    columns = paths_of(reading.columns)
    if columns:
        named.check(columns, named.ANSWER_ROLES)
    wanted = named.heads(columns) if columns else COLUMNS | {*_TALKS, *_ANSWERS, "label"}
    raw = open_source(str(source), wanted, allow_text=False)

    def convert(rows: Placed) -> Iterable[Demonstration | Left]:
        return _demonstration(*rows[0], columns)

    return read_units(str(source), raw, convert, reading, on_bad)


def _demonstration(where: str, row: Row, columns: Columns | None) -> Iterator[Demonstration]:
    refuse_unsupported(row)
    if columns:
        row = named.mapped(row, columns)
    elif row.get("label") is False:  # KTO's rows
        raise Left("undesired", "its label is false")
    asked: Sequence[Message]
    if row.get("messages") is not None:
        whole = with_system(row, conversation(row["messages"], "messages"))
        *asked, answer = whole or (Message("user", ""),)
    else:
        asked, answer = _asked_and_answered(row)
    if answer.role != "assistant":
        raise Left("no_single_answer")
    refuse_empty(asked)
    refuse_answered(asked)
    yield Demonstration(Prompt(tuple(asked), where), answer.content)


def _asked_and_answered(row: Row) -> tuple[Sequence[Message], Message]:
    given = [name for name in _ANSWERS if row.get(name) is not None]
    asked = require_prompt(row)
    if not given and asked and asked[-1].role == "assistant":
        return asked[:-1], asked[-1]  # a whole conversation
    if not given:
        detail = f"expected a field 'completion', got the fields: {fields_of(row)}"
        raise Left("malformed", f"{detail}. {say_which(names=('completion',))}")
    if len(given) > 1:
        raise Left("malformed", f"expected one answer, got the fields {' and '.join(given)}")
    said = row[given[0]]
    if isinstance(said, str):
        said = [{"role": "assistant", "content": said}]
    answer, *more = messages_of(said, given[0]) or (Message("user", ""),)
    if more:
        raise Left("no_single_answer")
    return asked, answer


def _prompt(where: str, row: Row, columns: Columns | None) -> Iterator[Prompt]:
    refuse_unsupported(row)
    if columns:
        row = named.mapped(row, columns)
    messages = _only_asked(where, row)
    refuse_empty(messages)
    refuse_answered(messages)
    yield Prompt(messages, where)


def _only_asked(where: str, row: Row) -> tuple[Message, ...]:
    if row.get("helpfulness") is not None or row.get("preference_strength") is not None:
        return nvidia_prompt(row)
    if row.get("message_tree_id") is not None:
        return oasst_prompt(row)
    talk = next((name for name in _TALKS if row.get(name) is not None), None)
    found = prompt_of(row) or (_prompt_of_pair(where, row) if talk is None else None)
    return found or require_prompt(row, *([talk] if talk else []))


def _prompt_of_pair(where: str, row: Row) -> tuple[Message, ...] | None:
    """What the two responses of a row answer, where the row has no column for it alone."""
    try:
        found = next(iter(pairs_of([(where, row)], "auto")))
    except Left as reason:
        if reason.reason == "malformed":
            return None
        raise
    if isinstance(found, Left):
        raise found
    return found.prompt.messages
