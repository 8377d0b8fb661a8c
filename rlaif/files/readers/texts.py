"""Texts to measure: completions with what they answer and what they should be like, where known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.files.readers.conversations import prompt_of
from rlaif.files.readers.fields import Left, OnBad, Row, expect, fields_of, text_of
from rlaif.files.readers.formats import COLUMNS as KNOWN
from rlaif.files.readers.rows import read_rows
from rlaif.records import Prompt

_SAID = ("completion", "response", "output", "answer", "prediction", "text")
_WANTED = ("references", "reference", "target", "targets", "summary")
_WHO = ("policy", "model")
COLUMNS = KNOWN | {*_SAID, *_WANTED, *_WHO}


@dataclass(frozen=True, slots=True)
class Text:
    """A completion. `group` says whose it is, `references` what is wanted, any of them; `prompt`
    is None where the row has none."""

    group: str
    text: str
    source: str
    prompt: Prompt | None = None
    references: tuple[str, ...] = ()

    @property
    def cluster(self) -> str:
        """What texts that are not independent have in common."""
        return self.source if self.prompt is None else self.prompt.id


def read_texts(
    source: str | Path, *, skip_bad: int = 0, on_bad: OnBad | None = None
) -> Iterator[Text]:
    """Rows with a text (`completion`, `response`, `output`, `answer`, `prediction` or `text`), and
    where they have them its `references` (`reference`, `target`, `targets`, `summary`; a text or a
    list) and prompt. Whose it is says `policy` or `model`, else the file's name.

    Raises DataError as `rlaif.files.readers.read_pairs` does.
    """
    return read_rows(source, _text, COLUMNS, skip_bad=skip_bad, on_bad=on_bad)


def _text(where: str, row: Row) -> Iterator[Text]:
    said = [name for name in _SAID if row.get(name) is not None]
    if not said:
        raise Left(
            "malformed",
            f"expected a text in one of {', '.join(_SAID)}, got the fields: {fields_of(row)}",
        )
    who = next((str(row[name]) for name in _WHO if row.get(name)), None)
    name = Path(where.rpartition(":")[0]).name.partition(".")[0]
    found = prompt_of(row)
    prompt = Prompt(found, where) if found else None
    text = text_of(row[said[0]], said[0])
    yield Text(who or name, text, where, prompt, _references(row))


def _references(row: Row) -> tuple[str, ...]:
    name = next((n for n in _WANTED if row.get(n) is not None), None)
    if name is None:
        return ()
    value: Any = row[name]
    found = tuple(text_of(x, name) for x in (value if isinstance(value, list) else [value]))
    expect(bool(found), name, "a text, or some", value)
    return found
