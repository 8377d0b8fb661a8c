"""Columns that a user named: paths into a row, which make it one that the readers know.

`question`, `corrects.0` (an item of a list), `meta.source.text` (fields in fields),
`answers[].text` (of each item of a list). A column whose own name has dots in it is found first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.errors import DataError
from rlaif.files.readers.fields import UNSUPPORTED, Left, Row, fields_of, items, kind

Columns = Mapping[str, str]  # what a column is → its path

PROMPT_ROLES = ("prompt", "system")
ANSWER_ROLES = ("prompt", "system", "completion", "messages")
PAIR_ROLES = (
    "prompt",
    "system",
    "chosen",
    "rejected",
    "p_chosen",
    "score_chosen",
    "score_rejected",
    "first",
    "second",
    "label",
    "completions",
    "scores",
    "ranks",
)
_OPTIONAL = {"system", "p_chosen", "score_chosen", "score_rejected", "label"}


def check(columns: Columns, roles: tuple[str, ...]) -> None:
    """DataError where the columns named make no row of this kind."""
    if roles is PROMPT_ROLES:
        whole = "prompt" in columns
        expected = "prompt"
    elif roles is ANSWER_ROLES:
        whole = "messages" in columns or {"prompt", "completion"} <= columns.keys()
        expected = "messages, or prompt and completion"
    else:
        sets = (
            {"chosen", "rejected"},
            {"first", "second"},
            {"completions", "scores"},
            {"completions", "ranks"},
        )
        found = sum(names <= columns.keys() for names in sets)
        # Chosen and rejected may be whole conversations: these have their prompt in them.
        whole = found == 1 and ("prompt" in columns or "chosen" in columns)
        expected = (
            "prompt, and one of: chosen and rejected; first and second; completions and scores; "
            "completions and ranks"
        )
    if not whole:
        raise DataError(f"columns: expected {expected}; got {', '.join(columns) or 'none'}")


def heads(columns: Columns) -> frozenset[str]:
    """The names of a table's columns that these paths may begin at."""
    paths = columns.values()
    return frozenset(
        {*paths, *(p.partition(".")[0].removesuffix("[]") for p in paths), *UNSUPPORTED}
    )


def mapped(row: Row, columns: Columns) -> Row:
    """The row that the paths make: its fields are called what the user says they are."""
    found: dict[str, Any] = {}
    for role, path in columns.items():
        try:
            value = at(row, path)
        except Left as left:
            raise Left(left.reason, f"columns.{role}: {left.detail}") from None
        if value is None and role not in _OPTIONAL:
            detail = f"columns.{role}: '{path}' is null in this row"
            raise Left("malformed", f"{detail}, whose fields are: {fields_of(row)}")
        found[role] = value
    return found


def at(row: Row, path: str) -> Any:
    """What stands at a path; Left where it leads nowhere."""
    if path in row:
        return row[path]
    return _step(row, path.split("."), path)


def _step(here: Any, steps: list[str], path: str) -> Any:
    if not steps or here is None:
        return here
    name, *rest = steps
    each = name.endswith("[]")
    name = name.removesuffix("[]")
    if name.isdigit() and not (isinstance(here, dict) and name in here):
        found = items(here, path)
        if int(name) >= len(found):
            raise Left("malformed", f"no item {name} for '{path}': the list has {len(found)}")
        value = found[int(name)]
    elif isinstance(here, dict) and name in here:
        value = here[name]
    else:
        have = f"the fields: {fields_of(here)}" if isinstance(here, dict) else kind(here)
        of = "" if name == path else f" for '{path}'"
        raise Left("malformed", f"there is no '{name}'{of}, got {have}")
    if not each:
        return _step(value, rest, path)
    return None if value is None else [_step(item, rest, path) for item in items(value, path)]
