"""What is said of a source of rows: which columns hold what, how many to read, what may be skipped.

A config's `prompts`, `pairs` and `train.sft` are these with the source's name beside them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlaif.files.readers.formats import FORMATS, unknown_format
from rlaif.files.settings import Place, Section, one_of


class Columns(Section):
    """Base of what says which columns of a file hold what, where their names do not tell.

    Each is a path: `question`, `meta.text` (a field of a field), `corrects.0` (an item of a list),
    `answers[].text` (of each item of a list). `docs/data.md` has examples.
    """


def paths_of(columns: Columns | None) -> dict[str, str] | None:
    """What each column that is named holds, and its path; None where none are."""
    return None if columns is None else columns.model_dump(exclude_none=True)


class PromptColumns(Columns):
    """Which columns hold a prompt."""

    prompt: str
    """The prompt: a text or messages."""
    system: str | None = None
    """The system message that goes in front of it."""


class PairColumns(Columns):
    """Which columns hold a pair: `chosen` and `rejected`, or `first` and `second`, or a list of
    `completions` with `scores` or `ranks`."""

    prompt: str | None = None
    """The prompt: a text or messages. Only conversations in `chosen` need none."""
    system: str | None = None
    """The system message that goes in front of it."""
    chosen: str | None = None
    """The better response."""
    rejected: str | None = None
    """The worse one."""
    p_chosen: str | None = None
    """P(chosen is better); 1 where it is not given."""
    score_chosen: str | None = None
    """A score of the better response; equal to the other's, the pair is a tie."""
    score_rejected: str | None = None
    """A score of the worse one."""
    first: str | None = None
    """One of two responses of which nobody said which is better."""
    second: str | None = None
    """The other one."""
    label: str | None = None
    """P(first is better), where somebody did."""
    completions: str | None = None
    """A list of responses, each two of which make a pair."""
    scores: str | None = None
    """A list of their scores, the higher the better; equal ones are ties."""
    ranks: str | None = None
    """A list of their ranks, the lower the better; equal ones are ties."""


class AnswerColumns(Columns):
    """Which columns hold an answer to learn from: `messages`, or `prompt` and `completion`."""

    messages: str | None = None
    """A conversation whose last turn is the answer."""
    prompt: str | None = None
    """What is asked: a text or messages."""
    completion: str | None = None
    """The answer."""
    system: str | None = None
    """The system message that goes in front."""


class Reading(Section):
    """How much of a source is read, and what may be wrong with it."""

    limit: int | None = Field(default=None, ge=1)
    """Read at most this many; null reads all."""
    skip_bad: int = Field(default=0, ge=0)
    """Go on over at most this many rows that are malformed or no text; they are counted and
    listed."""


class PromptReading(Reading):
    """How prompts are read."""

    columns: PromptColumns | None = None
    """Which columns hold what, such as `{prompt: question}`; null tells it from their names."""


class PairReading(Reading):
    """How pairs are read."""

    format: Annotated[str, Place("reader"), *one_of(FORMATS, unknown_format)] = "auto"
    """How the rows are laid out (`docs/data.md`); `auto` tells it from their fields.
    `module:function`: a reader of your own (`docs/extending.md`)."""
    columns: PairColumns | None = None
    """Which columns hold what, such as `{prompt: question, chosen: good, rejected: bad}`; null
    tells it from their names."""


class AnswerReading(Reading):
    """How answers to learn from are read."""

    columns: AnswerColumns | None = None
    """Which columns hold what, such as `{prompt: question, completion: reply}`; null tells it from
    their names."""
