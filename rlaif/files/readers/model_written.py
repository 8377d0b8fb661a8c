"""Model-written evaluations (Perez et al. 2022, arXiv 2212.09251; github.com/anthropics/evals).

Their files are as many tests, each named by its file: `persona/`, `advanced-ai-risk/` and
`sycophancy/` have {question, answer_matching_behavior, answer_not_matching_behavior}, answers being
" Yes" and " No" or " (A)" to " (H)" (a list of them, where several match or do not), and
`winogenerated/` {sentence_with_blank, pronoun_options, occupation, BLS_percent_women_2019}.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.errors import DataError
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
from rlaif.files.readers.sources import is_hub_name
from rlaif.records import Message, Prompt

COLUMNS = (
    *("question", "answer_matching_behavior", "answer_not_matching_behavior"),
    *("sentence_with_blank", "pronoun_options", "occupation", "BLS_percent_women_2019"),
)
# The cues that the paper's sycophancy prompts end with, by what is in the file's name.
POLITICS, SURVEYS = "I believe the better option is", "I believe the best answer is"
_CUES = {"political": POLITICS, "philpapers": SURVEYS, "nlp_survey": SURVEYS}
_LETTER = re.compile(r"^[ \t]*\(([A-Z])\)", re.MULTILINE)
_WORDS = {
    "female": frozenset(("she", "her", "hers", "herself")),
    "male": frozenset(("he", "him", "his", "himself")),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a test: what is asked, the answers offered, and which of them `match`.

    `answers` are as published, with the space before them. In `winogenerated` they are pronouns, of
    which none matches: `kinds` says of each whether it is `female`, `male` or `neutral`, and
    `women` what share of the occupation's people are women.
    """

    test: str
    prompt: Prompt
    answers: tuple[str, ...]
    matching: frozenset[int] = frozenset()
    kinds: tuple[str, ...] = ()
    occupation: str = ""
    women: float = 0.0

    @property
    def has_cue(self) -> bool:
        """Whether the assistant's turn has begun, so that the answer goes on in it."""
        return self.prompt.messages[-1].role == "assistant"


def read_model_written(
    source: str | Path,
    *,
    cue: str | None = None,
    limit: int | None = None,
    skip_bad: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[Item]:
    """The questions of a file, of all .jsonl files below a folder, of a glob or a hub name.

    A test is named by its file, and by its folder too where two have one name. `cue` begins the
    assistant's turn; None takes the published one of the sycophancy files, none for others.
    `limit` takes at most that many of each file, the first.

    Raises DataError for a source that is not there, and at the malformed row after `skip_bad`
    skipped ones.
    """
    skipped = 0

    def counted(row: Any) -> None:
        nonlocal skipped
        skipped += row.reason in ("malformed", "unsupported")
        if on_bad is not None:
            on_bad(row)

    for name, path in _tests(str(source)):
        begun = _cue_of(name) if cue is None else cue
        rows = read_rows(
            path,
            partial(_items, name, begun),
            COLUMNS,
            skip_bad=skip_bad - skipped,
            on_bad=counted,
        )
        for i, item in enumerate(rows):
            if limit is not None and i >= limit:
                break
            yield item


def _tests(source: str) -> list[tuple[str, str]]:
    """Names and files of a source, in the order of their paths."""
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.jsonl*") if p.is_file())
    elif any(mark in source for mark in "*?["):
        files = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
    elif path.is_file() or not is_hub_name(source):
        files = [path]  # what is not there is told by the reader
    else:
        return [(source, source)]
    if not files:
        raise DataError(f"{source}: expected .jsonl files of model-written evaluations, got none")
    stems = [p.name.partition(".jsonl")[0] for p in files]
    folders = [f"{p.parent.name}/{stem}" for p, stem in zip(files, stems, strict=True)]
    return [
        (folder if stems.count(stem) > 1 else stem, str(p))
        for p, stem, folder in zip(files, stems, folders, strict=True)
    ]


def _cue_of(name: str) -> str:
    low = name.lower()
    return next((cue for part, cue in _CUES.items() if part in low), "")


def _items(test: str, cue: str, where: str, row: Row) -> Iterator[Item]:
    yield item_of(where, row, test, cue)


def item_of(where: str, row: Row, test: str, cue: str = "") -> Item:
    """The question of one row; `where` names it, and `cue` begins the assistant's turn."""
    if row.get("sentence_with_blank") is not None:
        return _pronoun(where, row, test)
    if row.get("question") is None and row.get("occupation") is not None:
        raise Left("not_a_prompt", "a list of occupations asks nothing")
    if row.get("question") is None:
        raise Left(
            "malformed",
            "expected 'question' with 'answer_matching_behavior', or 'sentence_with_blank', got "
            f"the fields: {fields_of(row)}",
        )
    question = text_of(row["question"], "question")
    yes, no = (_answers(row, f"answer_{which}_behavior") for which in ("matching", "not_matching"))
    offered = list(dict.fromkeys([*yes, *no]))
    if both := set(yes) & set(no):
        raise Left("malformed", f"the answer {both.pop()!r} both matches the behavior and does not")
    choices = [f" ({letter})" for letter in _letters(question)]
    if choices and all(re.fullmatch(r" \([A-Z]\)", a) for a in offered):
        if unknown := [a for a in offered if a not in choices]:
            raise Left(
                "malformed",
                f"the answer {unknown[0]!r} is none of the question's choices: {''.join(choices)}",
            )
        offered = choices
    else:
        offered.sort(reverse=True)  # " Yes" before " No", whichever matches
    matching = frozenset(i for i, answer in enumerate(offered) if answer in yes)
    return Item(test, _prompt(where, question, cue), tuple(offered), matching)


def _letters(question: str) -> list[str]:
    """The letters of a question's choices, which stand at its end."""
    _, mark, choices = question.rpartition("Choices:")
    return list(dict.fromkeys(_LETTER.findall(choices))) if mark else []


def _answers(row: Row, name: str) -> list[str]:
    value = need(row, name)
    found = [text_of(x, name) for x in (value if isinstance(value, list) else [value])]
    expect(bool(found) and all(x.strip() for x in found), name, "an answer, or some", value)
    return found


def _prompt(where: str, question: str, cue: str) -> Prompt:
    turns = [Message("user", question)]
    if cue.strip():
        turns.append(Message("assistant", cue.strip()))
    return Prompt(tuple(turns), where)


def _pronoun(where: str, row: Row, test: str) -> Item:
    sentence = text_of(row["sentence_with_blank"], "sentence_with_blank")
    if sentence.count("_") != 1:
        got = f"{sentence.count('_')} of them"
        raise Left("malformed", f"expected 'sentence_with_blank' to have one '_', got {got}")
    pronouns = [text_of(x, "pronoun_options") for x in items(need(row, "pronoun_options"), "x")]
    kinds = tuple(
        next((kind for kind, words in _WORDS.items() if p.lower() in words), "neutral")
        for p in pronouns
    )
    if kinds.count("female") != 1 or kinds.count("male") != 1:
        raise Left(
            "malformed",
            "expected 'pronoun_options' with one pronoun of a woman and one of a man, got "
            f"{', '.join(pronouns)}",
        )
    women = number(need(row, "BLS_percent_women_2019"), "BLS_percent_women_2019")
    if not 0 <= women <= 100:
        raise Left("malformed", f"expected 'BLS_percent_women_2019' from 0 to 100, got {women:g}")
    asked = f"Fill in the blank with {', '.join(pronouns[:-1])} or {pronouns[-1]}:\n\n{sentence}"
    prompt = _prompt(where, asked, sentence.partition("_")[0])
    answers = tuple(f" {p}" for p in pronouns)
    occupation = text_of(need(row, "occupation"), "occupation")
    return Item(test, prompt, answers, frozenset(), kinds, occupation, women / 100)
