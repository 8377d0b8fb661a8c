"""A row's fields, checked one by one: what was expected, and what came instead."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.files.small import RepeatedKey, once

BadReason = Literal[
    "malformed",
    "unsupported",  # tool calls, images and the like, which nothing here can judge or train on
    "unlike_prefixes",  # the two transcripts part before their last turn
    "identical_responses",
    "empty_prompt",
    "no_single_answer",  # what should be one assistant turn is not
    "no_rating",  # no aspect is rated on both sides
    "single_completion",  # nothing to compare it with
    "ends_with_assistant",  # a prompt that waits for the user
    "undesired",  # an answer that its row calls a bad one
    "not_a_prompt",  # a message from the middle of a tree of them
    "no_pair",  # a reader of somebody's own makes none of it
    "contradicts",  # says the opposite of an earlier row; handed out all the same
]
STOPPING: frozenset[BadReason] = frozenset({"malformed", "unsupported"})  # unless skipped
Row = Mapping[str, Any]

# What a conversation of texts cannot hold. Where one of these is not empty, the row is refused:
# without it, the texts that remain say something else.
UNSUPPORTED = (
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "reasoning_content",
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
)
_UNSUPPORTED = frozenset(UNSUPPORTED)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out, but for `contradicts`, which tells of one that was handed out.

    `source` is `file:line`, or `file:row` where there are no lines.
    """

    source: str
    reason: BadReason
    excerpt: str
    detail: str = ""


OnBad = Callable[[BadRow], None]


class Left(Exception):
    """Why a row is left out. Never leaves this package."""

    def __init__(self, reason: BadReason, detail: str = "") -> None:
        detail = detail.encode("utf-8", "replace").decode()  # names of fields may be no Unicode
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def say_which(what: str = "which it is", names: tuple[str, ...] = ("prompt",)) -> str:
    """The way out where no known column is found, by a command's option or in a config."""
    options = " ".join(f"--column {name}=PATH" for name in names)
    return f"Say {what}: `{options}`, or `columns` in a config (docs/data.md)"


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that a source could not take apart, and why."""

    detail: str
    content: str = ""

    def __str__(self) -> str:
        return self.content


Raw = bytes | Row | Broken  # a line of JSON, a row of a table, or what could not be read as one


class _Unread:
    """In place of a column's value that nobody asks for, so that errors can name the column."""

    def __repr__(self) -> str:
        return "…"


UNREAD = _Unread()


def excerpt(content: Raw) -> str:
    """The beginning of a row, to recognise it by."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
    text = text.encode("utf-8", "replace").decode()  # it is written to a file later
    return text if len(text) <= 120 else text[:119] + "…"


def parse(content: Raw) -> Row:
    """The row of a line of JSON; rows of tables come as they are."""
    if isinstance(content, Broken):
        raise Left("malformed", content.detail)
    row: Any = content
    if isinstance(content, bytes):
        try:
            row = _decoder.decode(content.decode())
        except UnicodeDecodeError as error:
            got = f"{error.reason} at byte {error.start}"
            raise Left("malformed", f"expected UTF-8, got {got}") from error
        except RepeatedKey as error:
            raise Left("malformed", f"expected different keys, got {error}") from error
        except (ValueError, RecursionError) as error:
            detail = f"expected a JSON object, got {_json_error(error)}"
            raise Left("malformed", detail) from error
    if not isinstance(row, dict):
        raise Left("malformed", f"expected a JSON object, got {kind(row)}")
    return row


# Made once: `json.loads` makes one for each call with a hook, which takes longer than the hook.
_decoder = json.JSONDecoder(object_pairs_hook=once)
_plain = json.JSONDecoder()


def item_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a place, and where it ends; Broken where keys are repeated.

    ValueError where there is no whole value.
    """
    try:
        return _decoder.raw_decode(text, at)
    except RepeatedKey as error:
        end = _plain.raw_decode(text, at)[1]
        return Broken(f"expected different keys, got {error}", text[at:end]), end


def _json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"text that is not JSON or is cut off ({error.msg} at column {error.colno})"
    return f"text that is not JSON ({error})"


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    names |= {int: "a number", float: "a number", type(None): "null", bytes: "no UTF-8"}
    return names.get(type(value), type(value).__name__)


def expect(condition: bool, field: str, expected: str, value: Any) -> None:
    """Left, as malformed, unless the condition holds."""
    if not condition:
        raise Left("malformed", f"expected '{field}' to be {expected}, got {kind(value)}")


def fields_of(row: Row) -> str:
    """The names of a row's fields, for an error."""
    names = (f"{key} (null)" if row[key] is None else str(key) for key in row)
    return ", ".join(names) or "none"


def need(row: Row, name: str) -> Any:
    """The field, or a malformed row that tells which fields there are."""
    if row.get(name) is None:
        raise Left("malformed", f"expected a field '{name}', got the fields: {fields_of(row)}")
    return row[name]


def text_of(value: Any, field: str) -> str:
    """A text that can be written as UTF-8."""
    expect(isinstance(value, str), field, "a text", value)
    text: str = value
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON and no legal text
        detail = f"expected '{field}' to be Unicode text, got a lone surrogate"
        raise Left("malformed", detail) from error
    return text


LARGEST = sys.float_info.max


def number(value: Any, field: str) -> float:
    """A finite number. Tables of text, such as CSV, have numbers written out."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Left("malformed", f"expected '{field}' to be a number, got {value!r}") from None
    expect(type(value) in (int, float), field, "a finite number", value)
    if not -LARGEST <= value <= LARGEST:  # 10⁴⁰⁰ is a number of JSON
        raise Left("malformed", f"expected '{field}' to be a finite number, got {value!s:.20}")
    return float(value)


def items(value: Any, name: str) -> list[Any]:
    """A list; also a mapping of lists, as which `datasets` may hand out a list of structures."""
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        lengths = {key: len(column) for key, column in value.items()}
        if len(set(lengths.values())) > 1:
            detail = f"expected the lists in '{name}' to be of one length, got {lengths}"
            raise Left("malformed", detail)
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    expect(isinstance(value, list), name, "a list", value)
    found: list[Any] = value
    return found


def refuse_unsupported(row: Row, place: str = "", *more: str) -> None:
    """Left where a row or a message holds what is no text, or something in the columns `more`."""
    if _UNSUPPORTED.isdisjoint(row) and not (more and any(name in row for name in more)):
        return
    for name in (*UNSUPPORTED, *more):
        value = row.get(name)
        if value is not None and not _empty(value):
            where = f"{place}.{name}" if place else name
            raise Left("unsupported", f"'{where}' is not empty, and only texts can be read")


def _empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is UNREAD or value is False or (isinstance(value, (list, dict)) and not value)
