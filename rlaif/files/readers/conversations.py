"""Messages, transcripts and prompts out of a row's fields. No prompt is ever made up here.

A conversation is a list of messages (`role` and `content`, or `from` and `value`), a list of turns
(`input`, `output`), Anthropic's transcripts, or a plain text, which is one user turn whatever it
begins with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from rlaif.files.readers.fields import (
    Left,
    Row,
    expect,
    fields_of,
    items,
    need,
    refuse_unsupported,
    say_which,
    text_of,
)
from rlaif.records import Message, Pair, Prompt, Role

Prefix = tuple[Message, ...]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = {
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "ipython",
    "tool_call",
    "tool_response",
}

_THOUGHTS = ("reasoning", "thinking", "reasoning_details")  # of a row, they may tell of its making


# ---------------------------------------------------------------------------- messages


def messages_of(value: Any, field: str) -> Prefix:
    """A list of messages, or a single one."""
    if _is_message(value):
        if not all(isinstance(part, list) for part in value.values()):
            return (_message(value, field),)
        value = items(value, field)
    expect(isinstance(value, list), field, "a text or a list of messages", value)
    return tuple(_message(item, f"{field}[{i}]") for i, item in enumerate(value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and not {"role", "from"}.isdisjoint(value)


def _message(item: Any, place: str) -> Message:
    expect(isinstance(item, dict), place, "a message {role, content}", item)
    refuse_unsupported(item, place, *_THOUGHTS)
    sharegpt = item.get("role") is None and item.get("from") is not None
    speaker, said = ("from", "value") if sharegpt else ("role", "content")
    given = item.get(speaker)
    name = given.lower() if isinstance(given, str) else given
    if isinstance(name, str) and name in _TOOL_ROLES:
        raise Left("unsupported", f"'{place}' has the role {given!r}, and only texts can be read")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        expected = f"expected '{place}.{speaker}' to be {'|'.join(get_args(Role))}"
        raise Left("malformed", f"{expected}, got {given!r}")
    return Message(role, _content(item.get(said), f"{place}.{said}"))


def _content(value: Any, field: str) -> str:
    """A text, or a list of parts that are texts."""
    if not isinstance(value, list):
        return text_of(value, field)
    texts = []
    for i, part in enumerate(value):
        place = f"{field}[{i}]"
        expect(isinstance(part, dict), place, "a part {type, text}", part)
        refuse_unsupported(part, place)
        if part.get("type") not in ("text", "input_text", "output_text"):
            what = f"'{place}' is a part of type {part.get('type')!r}"
            raise Left("unsupported", f"{what}, and only texts can be read")
        texts.append(text_of(part.get("text"), f"{place}.text"))
    return "".join(texts)


def conversation(value: Any, field: str) -> Prefix:
    """Messages as they are; a transcript's turns; any other text as one user turn."""
    if isinstance(value, str):
        text = text_of(value, field)
        return turns(text) if is_transcript(text) else (Message("user", text),)
    if isinstance(value, list) and value and _is_exchange(value[0]):
        return _exchanges(value, field)
    return messages_of(value, field)


def _is_exchange(item: Any) -> bool:
    return isinstance(item, dict) and "input" in item and "output" in item


def _exchanges(value: list[Any], field: str) -> Prefix:
    """Capybara's turns: [{input, output}]. An output that is null or empty is not yet said."""
    said: list[Message] = []
    for i, item in enumerate(value):
        place = f"{field}[{i}]"
        expect(_is_exchange(item), place, "a turn {input, output}", item)
        said.append(Message("user", text_of(item["input"], f"{place}.input")))
        if i + 1 < len(value) or item["output"]:
            said.append(Message("assistant", text_of(item["output"], f"{place}.output")))
    return tuple(said)


# ---------------------------------------------------------------------------- transcripts

# Anthropic's transcripts: https://github.com/anthropics/hh-rlhf
TURN = re.compile(r"(?:\A\s*|\n\n(?!System))(System|Human|Assistant):")
_CUE = re.compile(r"\n\nAssistant:\s*\Z")
_SPEAKERS: dict[str, Role] = {"System": "system", "Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether a text is a transcript as published: two line breaks before its first turn, or the
    cue for the assistant at its end. "Human: …" alone is a text that begins with a word.
    """
    if not TURN.match(text) or "Human:" not in text:
        return False
    return text.startswith("\n\n") or bool(_CUE.search(text))


def turns(transcript: str) -> Prefix:
    """A transcript as messages, without the cue for the next answer."""
    _, *parts = TURN.split(transcript)
    said = zip(parts[::2], parts[1::2], strict=True)
    messages = [Message(_SPEAKERS[name], content.strip()) for name, content in said]
    if messages and messages[-1] == Message("assistant", ""):
        messages.pop()
    return tuple(messages)


# ---------------------------------------------------------------------------- prompts

# Columns that people keep a prompt in, as a text or as messages.
PROMPT_COLUMNS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "context",
    "conversations",
    "conversation",
    "trajectory",
)


def prompt_of(row: Row, *more: str) -> Prefix | None:
    """What a row asks, its `system` and `history` in front; None where no column is known to.

    `more` names columns that hold a prompt in this kind of row only. Two columns that each may be
    the prompt, and differ, are refused: taking one would drop the other without a word.
    """
    names = [n for n in (*PROMPT_COLUMNS, *more) if row.get(n) is not None]
    filled = [n for n in names if row[n] and not (isinstance(row[n], str) and row[n].isspace())]
    if isinstance(row.get("history"), str):  # no earlier turns, but all there is
        names, filled = [*names, "history"], [*filled, "history"]
    if not names:
        return with_system(row, _history(row["history"])) if row.get("history") else None
    first, *others = filled or names
    asked = _asked(row, first)
    half = next((name for name in ("input", "context") if name in others), "")
    if first == "instruction" and half and isinstance(row[half], str):
        others.remove(half)  # Alpaca's and Dolly's questions, joined as LLaMA-Factory joins them
        asked = (Message("user", f"{asked[-1].content}\n{text_of(row[half], half)}"),)
    for other in others:
        if not _same(asked, _asked(row, other)):
            raise Left(
                "malformed",
                f"expected one prompt, got two that differ, '{first}' and '{other}'. {say_which()}",
            )
    earlier = _history(row["history"]) if row.get("history") and "history" not in names else ()
    return with_system(row, earlier + asked)


def _asked(row: Row, name: str) -> Prefix:
    value = row[name]
    if name == "question" and isinstance(value, dict):
        value = need(value, "full_text")  # webgpt_comparisons
    return conversation(value, name)


def _same(asked: Prefix, other: Prefix) -> bool:
    """Whether the other says nothing that is not in what is asked."""
    if len(asked) == len(other) == 1:
        return other[0].content.strip() in asked[0].content
    return asked == other


def _history(value: Any) -> Prefix:
    """Earlier turns: [question, answer] pairs, or messages."""
    expect(isinstance(value, list), "history", "a list of earlier turns", value)
    said: list[Message] = []
    for i, turn in enumerate(value):
        if isinstance(turn, list):
            expect(len(turn) == 2, f"history[{i}]", "a question and its answer", turn)
            said.append(Message("user", text_of(turn[0], f"history[{i}][0]")))
            said.append(Message("assistant", text_of(turn[1], f"history[{i}][1]")))
        else:
            said += messages_of([turn], f"history[{i}]")
    return tuple(said)


def with_system(row: Row, messages: Prefix) -> Prefix:
    """The messages after the row's `system` column, where it has one that says something."""
    given = row.get("system")
    if given is None:
        return messages
    system = text_of(given, "system")
    if not system.strip():
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content.strip() == system.strip():
            return messages
        raise Left("malformed", "expected one system message, got a 'system' column and another")
    return (Message("system", system), *messages)


def require_prompt(row: Row, *more: str) -> Prefix:
    """`prompt_of`, or a malformed row that names its fields and the way out."""
    found = prompt_of(row, *more)
    if found is None:
        raise Left(
            "malformed",
            f"expected a field 'prompt', got the fields: {fields_of(row)}. {say_which()}",
        )
    return found


def refuse_empty(messages: Sequence[Message]) -> None:
    """Left unless something is asked."""
    if not messages or not messages[-1].content.strip():
        raise Left("empty_prompt")


def refuse_answered(messages: Sequence[Message]) -> None:
    """Left where nobody asks: an answer to it would be written into the assistant's own turn."""
    if messages and messages[-1].role == "assistant":
        raise Left("ends_with_assistant", "the prompt ends with the assistant's turn")


# ---------------------------------------------------------------------------- pairs


def make_pair(prompt: Prefix, first: str, second: str, label: float | None, where: str) -> Pair:
    """A pair, unless its prompt asks nothing or its responses are the same."""
    refuse_empty(prompt)
    refuse_answered(prompt)
    if first.strip() == second.strip():
        raise Left("identical_responses")
    return Pair(Prompt(prompt, where), first, second, label, where)


def better(first: float, second: float) -> float:
    """P(first is better) by two scores of which the higher is better."""
    return 0.5 if first == second else float(first > second)


def answer_of(messages: Sequence[Message]) -> str:
    """The text of what has to be a single turn of the assistant."""
    if len(messages) != 1 or messages[0].role != "assistant":
        raise Left("no_single_answer")
    return messages[0].content
