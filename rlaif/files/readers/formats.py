"""Which format a row has, told from its fields where it is not named. `docs/data.md` lists them.

A label is P(first is better). A pair that people found equal is kept, with the label ½.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from rlaif.files import own
from rlaif.files.readers import chosen, rated
from rlaif.files.readers.chosen import RATINGS, SIDES, Made
from rlaif.files.readers.conversations import PROMPT_COLUMNS, TURN
from rlaif.files.readers.fields import (
    UNSUPPORTED,
    Left,
    Row,
    fields_of,
    refuse_unsupported,
    say_which,
)

# The names of formats: the one list of them. `module:function` is a reader of somebody's own.
Format = Literal[
    "auto",
    "hh",
    "hhh",
    "webgpt",
    "ultrafeedback",
    "summarize",
    "rewardbench",
    "trl",
    "pku",
    "pku_safer",
    "helpsteer",
    "helpsteer_preference",
    "nectar",
    "shp",
    "arena",
    "arena_55k",
    "oasst",
    "stack_exchange",
]
FORMATS: tuple[str, ...] = get_args(Format)
Placed = Sequence[tuple[str, Row]]  # rows with their places


def unknown_format(name: str) -> str | None:
    """What is wrong with the name of a format; None for a listed one and `module:function`."""
    reader = "A reader of your own is named `module:function`"
    return own.unknown(name, FORMATS, "no pair format", reader)


# The formats that fields tell, the first that fits. `summarize` and others share names of fields.
_TELLING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hhh", ("text_correct", "text_incorrect")),
    ("hhh", ("input", "targets")),
    ("webgpt", ("answer_0", "answer_1", "score_0")),
    ("ultrafeedback", ("instruction", "completions")),
    ("summarize", ("info", "summaries", "choice")),
    ("pku", ("response_0", "response_1", "better_response_id")),
    ("shp", ("human_ref_A", "human_ref_B", "labels")),
    ("arena", ("conversation_a", "conversation_b", "winner")),
    ("arena_55k", ("response_a", "response_b", "winner_model_a")),
    ("arena_55k", ("response_a", "response_b", "winner")),
    ("helpsteer_preference", ("response_1", "response_2", "preference_strength")),
    ("helpsteer_preference", ("response1", "response2", "overall_preference")),
    ("helpsteer", ("prompt", "response", "helpfulness")),
    ("oasst", ("message_tree_id", "prompt")),
    ("oasst", ("message_tree_id", "message_id", "role")),
    ("nectar", ("prompt", "answers")),
    ("stack_exchange", ("question", "answers")),
    ("rewardbench", ("chosen", "rejected", "subset")),
)

# The columns that are read of a table; others only lend their names to errors.
COLUMNS: frozenset[str] = frozenset(
    {
        *PROMPT_COLUMNS,
        *UNSUPPORTED,
        "system",
        "history",
        "p_chosen",
        "status",
        "rating",
        *(name for names in (*SIDES, *RATINGS) for name in names),
        *(name for _, names in _TELLING for name in names),
        "score_1",
        "safer_response_id",
        "winner_model_b",
        "winner_tie",
        "turn",
        "message_id",
        "parent_id",
        "text",
        "rank",
        "deleted",
    }
)


def pairs_of(rows: Placed, format: str) -> Made:
    """The pairs of a row, or of rows that belong together; most often one.

    Raises Left for a row that is malformed or unusable.
    """
    for _, row in rows:
        refuse_unsupported(row)
    where, row = rows[0]
    name = _recognise(row) if format == "auto" else format
    if name in _SEVERAL:
        return _SEVERAL[name](rows)
    if name == "trl" and format == "trl":  # asked for: then the shared words may be the prompt
        return chosen.trl(row, where, shared_words=True)
    return _FORMATS[name](row, where)


def group_of(format: str, row: Row) -> Any:
    """What the rows that belong together have in common; None for a row that stands alone."""
    if format not in ("auto", *_SEVERAL):
        return None
    if row.get("helpfulness") is not None and row.get("response") is not None:
        return row.get("prompt")
    if row.get("message_tree_id") is not None and row.get("message_id") is not None:
        return row["message_tree_id"]
    return None


@lru_cache(maxsize=1024)  # most rows of a source have the same fields
def _told_by(given: tuple[str, ...]) -> str | None:
    for name, fields in _TELLING:
        if all(field in given for field in fields):
            return name
    return None


def _recognise(row: Row) -> str:
    told = _told_by(tuple(name for name, value in row.items() if value is not None))
    if told is not None:
        return told
    if not any(field in row for sides in SIDES for field in sides):
        raise Left(
            "malformed",
            "expected the fields of a known format (docs/data.md), got the fields: "
            f"{fields_of(row)}. {say_which('what they are', ('prompt', 'chosen', 'rejected'))}",
        )
    first = row.get("chosen")
    transcript = isinstance(first, str) and TURN.match(first)
    asked = any(row.get(name) is not None for name in PROMPT_COLUMNS)
    return "hh" if transcript and not asked else "trl"


_SEVERAL: dict[str, Callable[[Placed], Made]] = {"helpsteer": rated.helpsteer, "oasst": rated.oasst}
_FORMATS: dict[str, Callable[[Row, str], Made]] = {
    "hh": chosen.hh,
    "hhh": chosen.hhh,
    "webgpt": rated.webgpt,
    "ultrafeedback": rated.ultrafeedback,
    "summarize": rated.summarize,
    "rewardbench": chosen.rewardbench,
    "trl": chosen.trl,
    "pku": rated.pku,
    "pku_safer": rated.pku_safer,
    "helpsteer_preference": rated.helpsteer_preference,
    "nectar": rated.nectar,
    "shp": rated.shp,
    "arena": rated.arena,
    "arena_55k": rated.arena_55k,
    "stack_exchange": rated.stack_exchange,
}
