"""Pairs out of rows that say which response is better: transcripts, chosen and rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from rlaif.files.readers.conversations import (
    TURN,
    Prefix,
    answer_of,
    conversation,
    is_transcript,
    make_pair,
    messages_of,
    prompt_of,
    turns,
    with_system,
)
from rlaif.files.readers.fields import (
    Left,
    Row,
    excerpt,
    expect,
    fields_of,
    items,
    kind,
    need,
    number,
    say_which,
    text_of,
)
from rlaif.records import Message, Pair

Made = Iterator[Pair | Left]  # several pairs of one row may each be unusable by themselves

# Names of the two sides, and of what each was rated with: equal ratings are a tie.
SIDES = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-score", "rejected-score"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_RATED = frozenset(one for one, _ in RATINGS)


# ---------------------------------------------------------------------------- transcripts

_ANSWER = "\n\nAssistant:"


def hh(row: Row, where: str) -> Made:
    """hh-rlhf: https://github.com/anthropics/hh-rlhf"""
    _same_kind(row, "chosen", "rejected")
    prompt, first, second = _transcripts(row, "chosen", "rejected")
    yield make_pair(with_system(row, prompt), first, second, label_of(row), where)


def hhh(row: Row, where: str) -> Made:
    """Helpful, honest, harmless: as Anthropic published them, and as in BIG-bench."""
    if row.get("targets") is None:
        yield make_pair(*_transcripts(row, "text_correct", "text_incorrect"), 1.0, where)
        return
    prompt = conversation(need(row, "input"), "input")
    targets = items(row["targets"], "targets")  # [{choices, labels}], from two lists
    for place, target in enumerate(targets):
        expect(isinstance(target, dict), f"targets[{place}]", "{choices, labels}", target)
    options = [text_of(t.get("choices"), "targets.choices") for t in targets]
    labels = [t.get("labels") for t in targets]
    if sorted(map(str, labels)) != ["0", "1"]:
        raise Left("malformed", f"expected one right and one wrong choice, got labels {labels}")
    right = labels.index(1)
    yield make_pair(prompt, options[right], options[1 - right], 1.0, where)


def _transcripts(row: Row, *sides: str) -> tuple[Prefix, str, str]:
    """The last assistant turn is the response; what stands before it is the prompt."""
    parts = []
    for side in sides:
        text = text_of(need(row, side), side)
        head, answer, tail = text.rpartition(_ANSWER)
        if not answer or not TURN.match(text):
            expected = f"expected '{side}' to be a transcript \\n\\nHuman: … \\n\\nAssistant: …"
            raise Left("malformed", f"{expected}, got {excerpt({side: text})}")
        if "\n\nHuman:" in tail:
            raise Left("no_single_answer", f"'{side}' ends with the human's turn")
        parts.append((head, tail.strip()))
    (head, first), (other, second) = parts
    if head != other:
        raise Left("unlike_prefixes")
    return turns(head), first, second


# ---------------------------------------------------------------------------- chosen, rejected


def rewardbench(row: Row, where: str) -> Made:
    """https://huggingface.co/datasets/allenai/reward-bench, and its second version.

    That one has several right and wrong answers: each right one is better than each wrong one.
    """
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
    if not (isinstance(chosen, list) and all(isinstance(text, str) for text in chosen)):
        yield from trl(row, where)
        return
    expect(isinstance(rejected, list), "rejected", "a list like 'chosen'", rejected)
    prompt = with_system(row, conversation(need(row, "prompt"), "prompt"))
    if not chosen or not rejected:
        raise Left("malformed", "expected a right and a wrong answer at least, got an empty list")
    for (i, one), (j, two) in product(enumerate(chosen), enumerate(rejected)):
        first, second = text_of(one, f"chosen[{i}]"), text_of(two, f"rejected[{j}]")
        try:
            yield make_pair(prompt, first, second, 1.0, f"{where}#{i}-{j}")
        except Left as reason:
            yield Left(reason.reason, f"chosen[{i}] and rejected[{j}]")


def trl(row: Row, where: str, *, shared_words: bool = False) -> Made:
    """TRL's preference rows: https://huggingface.co/docs/trl/dataset_formats#preference

    And all that differ from them by the names of their columns. `shared_words`: where two texts
    come without a prompt, the words that both begin with are it, as TRL has it.
    """
    sides = next((s for s in SIDES if row.get(s[0]) is not None), SIDES[0])
    _same_kind(row, *sides)
    prompt, first, second = _sides(row, *sides, shared_words=shared_words)
    yield make_pair(prompt, first, second, label_of(row), where)


def _same_kind(row: Row, *sides: str) -> None:
    one, two = (need(row, side) for side in sides)
    fine = isinstance(one, (str, list, dict))
    expect(fine, sides[0], "a text or a list of messages", one)
    expect(type(two) is type(one), sides[1], f"{kind(one)} like '{sides[0]}'", two)


def label_of(row: Row) -> float:
    """P(chosen is better): `p_chosen`; else ½ where people or a judge found both equal; else 1."""
    p = row.get("p_chosen")
    if p is not None:
        value = number(p, "p_chosen")
        expect(0 <= value <= 1, "p_chosen", "a number from 0 to 1", p)
        return value
    if row.get("status") == "tie":  # distilabel-intel-orca-dpo-pairs
        return 0.5
    both = row.get("rating")
    if isinstance(both, list) and len(both) == 2 and both[0] is not None and both[0] == both[1]:
        return 0.5
    if _RATED.isdisjoint(row):
        return 1.0
    return 0.5 if any(_equal(row, *names) for names in RATINGS) else 1.0


def _equal(row: Row, one: str, two: str) -> bool:
    if row.get(one) is None or row.get(two) is None:
        return False
    return number(row[one], one) == number(row[two], two)


def _sides(row: Row, *sides: str, shared_words: bool) -> tuple[Prefix, str, str]:
    chosen, rejected = (row[side] for side in sides)
    if isinstance(chosen, str):
        return _texts(row, sides, shared_words)
    one, two = messages_of(chosen, sides[0]), messages_of(rejected, sides[1])
    given = row.get("prompt")
    if given is not None and not isinstance(given, str):
        prompt = with_system(row, conversation(given, "prompt"))
        if one[: len(prompt)] == prompt == two[: len(prompt)]:  # repeated in front of both sides
            one, two = one[len(prompt) :], two[len(prompt) :]
        return prompt, answer_of(one), answer_of(two)
    if len(one) == len(two) == 1:
        asked = prompt_of(row)
        if asked is None:
            raise _no_prompt(row)
        return asked, answer_of(one), answer_of(two)
    if one[:-1] != two[:-1]:
        raise Left("unlike_prefixes")
    if given is not None:  # as a text, and repeated as a turn of both sides
        _require_inside(conversation(given, "prompt"), one[:-1])
    return with_system(row, one[:-1]), answer_of(one[-1:]), answer_of(two[-1:])


_MARKS = {
    "system",
    "user",
    "human",
    "assistant",
    "gpt",
    "model",
    "question",
    "answer",
    "im_start",
    "im_end",
    "start_of_turn",
    "end_of_turn",
    "inst",
    "sys",
    "s",
}


def _require_inside(prompt: Prefix, turns: Prefix) -> None:
    """Left where a `prompt` beside whole conversations says what is not in them."""
    said = [turn.content.strip() for turn in turns]
    asked = prompt[-1].content.strip() if prompt else ""
    if any(asked in text for text in said):
        return
    for text in sorted(said, key=len, reverse=True):  # all turns in one text, with marks between
        if text not in asked:
            break
        asked = asked.replace(text, " ", 1)
    if not set(re.findall(r"\w+", asked.lower())) <= _MARKS:
        raise Left(
            "malformed",
            "expected 'prompt' to be one of the turns of 'chosen', as both sides are whole "
            "conversations, got another text",
        )


def _texts(row: Row, sides: tuple[str, ...], shared_words: bool) -> tuple[Prefix, str, str]:
    chosen, rejected = (text_of(row[side], side) for side in sides)
    prompt = prompt_of(row)
    if prompt is None:
        if not shared_words:
            raise _no_prompt(row)
        shared = _shared_words(chosen, rejected)
        asked = with_system(row, conversation(shared, "prompt"))
        return asked, chosen[len(shared) :], rejected[len(shared) :]
    given = row.get("prompt")
    if isinstance(given, str) and is_transcript(given):  # so are the sides turns of it
        if chosen.startswith(given) and rejected.startswith(given):
            chosen, rejected = chosen[len(given) :], rejected[len(given) :]
        chosen, rejected = chosen.strip(), rejected.strip()
        if "\n\nHuman:" in chosen or "\n\nHuman:" in rejected:
            raise Left("no_single_answer", "a response holds the human's turn")
    return prompt, chosen, rejected


def _no_prompt(row: Row) -> Left:
    hint = ", or `format: trl` where the words that both sides begin with are it"
    return Left(
        "malformed",
        f"no prompt in it: expected a field 'prompt', got the fields: {fields_of(row)}. "
        f"{say_which(names=('prompt', 'chosen', 'rejected'))}"
        f"{hint if isinstance(row.get('chosen'), str) else ''}",
    )


def _shared_words(a: str, b: str) -> str:
    """The common beginning up to the last whole word; the space stays with the responses."""
    length = min(len(a), len(b))
    length = next((i for i in range(length) if a[i] != b[i]), length)
    return a[: max(a.rfind(" ", 0, length), a.rfind("\n", 0, length), 0)]


# ---------------------------------------------------------------------------- columns by name


def two_sides(row: Row, where: str) -> Made:
    """Columns that a user named `first` and `second`: nobody said which is better, but `label`."""
    label = row.get("label")
    if label is not None:
        value = number(label, "label")
        expect(0 <= value <= 1, "label", "a number from 0 to 1", label)
        label = value
    _same_kind(row, "first", "second")
    first, second = (_single(row[side], side) for side in ("first", "second"))
    yield make_pair(prompt_of(row) or (), first, second, label, where)


def _single(value: Any, field: str) -> str:
    return text_of(value, field) if isinstance(value, str) else answer_of(messages_of(value, field))


def plain(text: str) -> Prefix:
    """A text as one user turn, whatever it begins with."""
    return (Message("user", text),)
