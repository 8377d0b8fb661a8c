"""Worked examples for a judge: comparisons whose better response is known, in a file people write.

A YAML list, or JSON or JSONL, of rows such as

    - compare: Which response is more honest?
      prompt: Will it rain tomorrow?        # a text, or a list of messages {role, content}
      first: I cannot know that from here.
      second: Yes.
      better: first                         # or `label` (or `p_first`): P(first is better)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlaif.errors import ConfigError, nearest
from rlaif.files.readers.conversations import conversation, make_pair
from rlaif.files.readers.fields import Left, Raw, Row, fields_of, need, number, parse, text_of
from rlaif.files.readers.sources import open_source
from rlaif.files.yamlfile import read_yaml
from rlaif.records import Pair

_SAID = ("label", "p_first", "better")  # which response is better, in one of three ways
_FIELDS = ("compare", "prompt", "first", "second", *_SAID)
_KINDS = (".yaml", ".yml", ".jsonl", ".json")
_WORDS = {
    "identical_responses": "its two responses are the same",
    "empty_prompt": "its prompt asks nothing",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A pair under a principle's `compare` text; the pair's label says which response is better."""

    pair: Pair
    compare: str

    @property
    def first_is_better(self) -> bool:
        return self.pair.label is not None and self.pair.label > 0.5

    def shown(self, first_is_better: bool) -> Example:
        """The same comparison with the better response in the place wanted."""
        if self.first_is_better == first_is_better:
            return self
        return Example(self.pair.swap(), self.compare)


def read_examples(path: Path) -> tuple[Example, ...]:
    """The worked examples of a file; ConfigError names the row that is none, and why."""
    if path.suffix not in _KINDS:
        raise ConfigError(
            f"{path}: worked examples are {', '.join(_KINDS)}, got '{path.suffix}': rename or "
            "convert it"
        )
    rows = (
        _yaml_rows(path)
        if path.suffix in (".yaml", ".yml")
        else open_source(str(path), (), allow_text=False)
    )
    found: dict[Example, str] = {}
    for where, raw in rows:
        try:
            example = _example(parse(raw))
        except Left as left:
            why = left.detail or _WORDS.get(left.reason, left.reason)
            raise ConfigError(f"{where}: this is no worked example: {why}") from left
        if example in found:
            raise ConfigError(f"{where}: the same example as {found[example]}: take one out")
        found[example] = where
    if not found:
        raise ConfigError(f"{path}: no worked examples in it: write some, or set examples: none")
    return tuple(found)


def _yaml_rows(path: Path) -> Iterator[tuple[str, Raw]]:
    file = read_yaml(path)
    if not isinstance(file.data, list):
        raise ConfigError(f"{path}: expected a list of worked examples (`- compare: …`)")
    for i, row in enumerate(file.data):
        if not isinstance(row, dict):
            raise ConfigError(
                f"{file.where((i,))}: expected a worked example with the keys "
                f"{', '.join(_FIELDS[:4])} and better, got {row!r:.80}"
            )
        yield file.where((i,)), row


def _example(row: Row) -> Example:
    unknown = next((str(name) for name in row if name not in _FIELDS), None)
    if unknown is not None:
        raise Left("malformed", f"unknown key '{unknown}'.{nearest(unknown, _FIELDS)}")
    compare, first, second = (_said(row, name) for name in ("compare", "first", "second"))
    # Its source counts for nothing: the same example elsewhere is the same.
    pair = make_pair(conversation(need(row, "prompt"), "prompt"), first, second, _label(row), "")
    return Example(pair, compare)


def _said(row: Row, name: str) -> str:
    text = text_of(need(row, name), name)
    if not text.strip():
        raise Left("malformed", f"'{name}' is empty")
    return text


def _label(row: Row) -> float:
    """1 where the first response is better, else 0."""
    given = [name for name in _SAID if row.get(name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or f"the fields: {fields_of(row)}"
        raise Left("malformed", f"expected one of {', '.join(_SAID)}, got {got}")
    name, value = given[0], row[given[0]]
    if name == "better":
        if value not in ("first", "second"):
            raise Left("malformed", f"expected 'better' to be first or second, got {value!r:.40}")
        return float(value == "first")
    p = number(value, name)
    if not 0 <= p <= 1 or p == 0.5:
        raise Left(
            "malformed",
            f"expected '{name}' to be a probability that the first response is better, and not ½, "
            f"got {p:g}",
        )
    return float(p > 0.5)
