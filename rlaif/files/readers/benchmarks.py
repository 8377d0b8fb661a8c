"""Rows of benchmarks of reward models and judges, as they are published.

- `rewardbench` (Lambert et al. 2024, arXiv 2403.13787): {prompt, chosen, rejected, subset, id}; the
  prior sets of it too, whose prompts are messages (allenai/preference-test-sets).
- `rewardbench2` (Malik et al. 2025, arXiv 2506.01937): {prompt, chosen: [...], rejected: [...],
  num_correct, total_completions, subset, id}; ids of the subset Ties are `ref:7` and `tied:7`.
- `rmbench` (Liu et al. 2024, arXiv 2410.16184): {id, prompt, chosen: [3], rejected: [3], domain},
  the three in ascending order of style: concise, detailed, detailed with markdown.
- `judgebench` (Tan et al. 2024, arXiv 2410.12784): {pair_id, source, question, response_A,
  response_B, label: "A>B" or "B>A"}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rlaif.files.readers.conversations import messages_of
from rlaif.files.readers.fields import (
    Left,
    OnBad,
    Row,
    expect,
    fields_of,
    items,
    need,
    number,
    text_of,
)
from rlaif.files.readers.rows import read_rows
from rlaif.records import Message, Prompt

Benchmark = Literal["rewardbench", "rewardbench2", "rmbench", "judgebench"]
BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)

PRIOR_SETS = (
    "anthropic_harmless",
    "anthropic_helpful",
    "anthropic_hhh",
    "mtbench_gpt4",
    "mtbench_human",
    "shp",
    "summarize",
)
COLUMNS = (
    *("id", "prompt", "chosen", "rejected", "subset", "num_correct", "domain"),
    *("pair_id", "source", "question", "response_A", "response_B", "label"),
)
_TIES = re.compile(r"(ref|tied):(\d+)")


@dataclass(frozen=True, slots=True)
class Item:
    """One row: a prompt and its completions, of which the first `correct` are right.

    `subset` is the published name of what it belongs to (RM-Bench's domain, JudgeBench's source),
    `source` the file and line. `swapped`: a JudgeBench row whose right response is response_B.
    """

    benchmark: Benchmark
    id: str
    subset: str
    prompt: Prompt
    completions: tuple[str, ...]
    correct: int = 1
    swapped: bool = False

    @property
    def ties(self) -> tuple[str, int] | None:
        """Of a row of RewardBench 2's Ties: `ref` (one right answer) or `tied`, and the number
        that the two rows of a question share."""
        if self.benchmark != "rewardbench2" or self.subset != "Ties":
            return None
        kind, at = _TIES.fullmatch(self.id).groups()  # type: ignore[union-attr]
        return kind, int(at)


def read_benchmark(
    source: str | Path,
    benchmark: Benchmark | Literal["auto"] = "auto",
    *,
    skip_bad: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[Item]:
    """The rows of a benchmark's files; `auto` tells by the fields of a row which it is.

    Raises DataError for a source that is missing or of an unknown kind, and at the malformed row
    after `skip_bad` skipped ones; a row of another benchmark than those before is malformed.
    """
    known: list[Benchmark] = []

    def convert(where: str, row: Row) -> Iterator[Item]:
        found = _benchmark_of(row) if benchmark == "auto" else benchmark
        if not known:
            known.append(found)
        if known[0] != found:
            raise Left("malformed", f"expected a row of {known[0]}, as before, got one of {found}")
        yield _CONVERT[found](where, row)

    return read_rows(source, convert, COLUMNS, skip_bad=skip_bad, on_bad=on_bad)


def _benchmark_of(row: Row) -> Benchmark:
    if row.get("response_A") is not None:
        return "judgebench"
    if row.get("domain") is not None and isinstance(row.get("chosen"), list):
        return "rmbench"
    if row.get("num_correct") is not None:
        return "rewardbench2"
    if row.get("chosen") is not None:
        return "rewardbench"
    raise Left(
        "malformed",
        "expected a row of RewardBench ('prompt', 'chosen', 'rejected', 'subset'), RewardBench 2 "
        "(with 'num_correct'), RM-Bench (with 'domain') or JudgeBench ('question', 'response_A', "
        f"'response_B', 'label'), got the fields: {fields_of(row)}",
    )


def _rewardbench(where: str, row: Row) -> Item:
    subset = str(row.get("subset") or "")
    name = Path(where.rpartition(":")[0]).name.partition(".")[0].partition("-0")[0]
    if name in PRIOR_SETS:  # the sets' own `subset` is a part of them
        subset = name
    if not subset:
        raise Left("malformed", f"expected a field 'subset', got the fields: {fields_of(row)}")
    both = tuple(text_of(need(row, side), side) for side in ("chosen", "rejected"))
    return Item("rewardbench", _id(row, "id"), subset, _prompt(where, need(row, "prompt")), both)


def _rewardbench2(where: str, row: Row) -> Item:
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    correct = int(number(need(row, "num_correct"), "num_correct"))
    if correct != len(chosen):
        raise Left(
            "malformed",
            f"expected 'num_correct' completions in 'chosen', {correct}, got {len(chosen)}",
        )
    subset, own = text_of(need(row, "subset"), "subset"), _id(row, "id")
    if subset.lower() == "ties":
        subset, found = "Ties", _TIES.fullmatch(own)
        if found is None:
            raise Left("malformed", f"expected 'id' to be ref:N or tied:N in Ties, got {own!r}")
        if (found[1] == "ref") != (correct == 1):
            many = "1 right answer" if found[1] == "ref" else "several right answers"
            raise Left("malformed", f"expected {own} to have {many}, got {correct}")
    elif correct != 1:
        raise Left("malformed", f"expected 1 right answer in {subset}, got {correct}")
    prompt = _prompt(where, need(row, "prompt"))
    return Item("rewardbench2", own, subset, prompt, (*chosen, *rejected), correct)


def _rmbench(where: str, row: Row) -> Item:
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    if len(chosen) != 3 or len(rejected) != 3:
        got = f"{len(chosen)} and {len(rejected)}"
        raise Left("malformed", f"expected 3 styles in 'chosen' and in 'rejected', got {got}")
    domain = text_of(need(row, "domain"), "domain")
    prompt = _prompt(where, need(row, "prompt"))
    return Item("rmbench", _id(row, "id"), domain, prompt, (*chosen, *rejected), 3)


def _judgebench(where: str, row: Row) -> Item:
    label = need(row, "label")
    if label not in ("A>B", "B>A"):
        raise Left("malformed", f"expected 'label' to be A>B or B>A, got {label!r}")
    both = tuple(text_of(need(row, side), side) for side in ("response_A", "response_B"))
    swapped = label == "B>A"
    source = text_of(need(row, "source"), "source")
    prompt = _prompt(where, need(row, "question"))
    right = both[::-1] if swapped else both
    return Item("judgebench", _id(row, "pair_id"), source, prompt, right, swapped=swapped)


_CONVERT = {
    "rewardbench": _rewardbench,
    "rewardbench2": _rewardbench2,
    "rmbench": _rmbench,
    "judgebench": _judgebench,
}


def _prompt(where: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return Prompt((Message("user", text_of(value, "prompt")),), where)
    messages = messages_of(value, "prompt")
    expect(bool(messages), "prompt", "a text or messages", value)
    return Prompt(tuple(messages), where)


def _texts(row: Row, name: str) -> tuple[str, ...]:
    found = tuple(text_of(x, name) for x in items(need(row, name), name))
    expect(bool(found), name, "a list with at least one text", [])
    return found


def _id(row: Row, name: str) -> str:
    return str(need(row, name))
