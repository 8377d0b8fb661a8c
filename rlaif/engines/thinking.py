"""How models write down a thought before they answer, and how their chat templates are told to.

What a family's thought looks like is read off its chat template: off the end of the generation
prompt as it is rendered with thinking and without, else off the marks that the template's source
knows. Pure functions over texts; nothing here knows a tokenizer.

Known by their published templates: Qwen 3 to 3.8, QwQ and Qwen3-Thinking, DeepSeek R1 and V3.1,
GLM 4.5, SmolLM 3, Granite 3.3, Nemotron 3, EXAONE 4, Hunyuan, MiniMax M2, Kimi, LFM 2.5, Olmo 3,
Seed-OSS, Magistral and Mistral with `reasoning_effort`, Command A Reasoning, Gemma 4, gpt-oss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

# How a prompt is rendered: `off`, the model is kept from thinking; `on`, it may think first;
# `open`, its thought has been begun. None: as the template has it by itself, a thought that it
# leaves open being closed.
Mode = Literal["off", "on", "open"]

ON_BUDGET = 1_024  # tokens of a thought where none is named
_HEADER = "<|start|>assistant"  # of gpt-oss and Muse: to whom a message goes is yet to be named
# <think>, <|thinking|>, <seed:think>, <reasoning>, [THINK], ◁think▷; the end mark has a slash.
_NAMED = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|THINK)"
_OPEN = re.compile(rf"(<\|?|\[|◁)({_NAMED})(\|?>|\]|▷)(\s*)\Z")
_CLOSED = re.compile(
    rf"(?P<lead>\s*)(?:(?:<\|?|\[|◁){_NAMED}(?:\|?>|\]|▷)(?P<gap>\s*))?"
    rf"(?P<end>(?:<\|?|\[|◁)/{_NAMED}(?:\|?>|\]|▷))(?P<then>\s*)\Z"
)


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts round a thought.

    `begin` opens it and `end` ends it; `gap` stands before an end mark that is put in, and `then`
    between the end mark and the answer. `wrap` is a tag that some put round the answer.
    """

    begin: str
    end: str
    gap: str = ""
    then: str = ""
    wrap: str = ""

    @property
    def turn(self) -> str:
        """Behind what the answer begins, in a completion that the model wrote all of."""
        return self.then.removeprefix(_HEADER) if self.then.startswith(_HEADER) else self.end

    @property
    def close(self) -> str:
        """What closes a thought that was cut off, up to where the answer begins."""
        return f"{self.gap}{self.after}"

    @property
    def after(self) -> str:
        """The end mark of a thought that ended by itself, up to where the answer begins."""
        return f"{self.end}{self.then}{self.wrap}"

    def unwrapped(self, answer: str) -> str:
        """An answer without the tag that the family puts round it."""
        if not self.wrap or not answer.startswith(self.wrap):
            return answer
        inner = answer.removeprefix(self.wrap)
        return inner.rstrip().removesuffix(self.wrap.replace("<", "</", 1)).strip()


# Families that write a thought as a message of its own, to the channel `analysis` or to `self`.
_GPT_OSS = Marks(
    "<|channel|>analysis<|message|>", "<|end|>", then=f"{_HEADER}<|channel|>final<|message|>"
)
_MUSE = Marks(" to=self<|message|>", "<|eom|>", then=f"{_HEADER} to=user<|message|>")
# Families whose marks do not tell one another by a slash, and others by their marks.
_FAMILIES = (
    Marks("<|channel>thought\n", "<channel|>", gap="\n"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>", "\n\n", "\n\n"),
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("◁think▷", "◁/think▷"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<think>", "</think>"),
    Marks("<thinking>", "</thinking>"),
)


def variables(source: str, mode: Mode | None) -> dict[str, Any]:
    """What a chat template is told in a mode. Templates take no notice of what they do not know."""
    if mode is None:
        return {"enable_thinking": False}
    on = mode != "off"
    told: dict[str, Any] = {"enable_thinking": on, "thinking": on, "reasoning": on}
    if not on:
        told["thinking_budget"] = 0
    if "reasoning_effort" in source:
        if re.search(r"""['"]none['"]""", source):  # Mistral: `none` or `high`, and `none` unasked
            told["reasoning_effort"] = "high" if on else "none"
        elif not on:
            told["reasoning_effort"] = "low"
    return told


def marks_of(source: str, on: str, off: str) -> Marks | None:
    """The marks of a template's thoughts; None for one that knows of none.

    `on` and `off` are the ends of its generation prompt in these modes.
    """
    wrap = "<response>" if "<think></think>" in source and "<response></response>" in source else ""
    begun, shut = _OPEN.search(on), _CLOSED.search(off)
    if begun:
        mark, space = begun[0].rstrip(), "\n" if "\n" in begun[4] else ""
        end = f"{begun[1]}/{begun[2]}{begun[3]}"
        return Marks(mark + begun[4], end, space, shut["then"] if shut else space * 2, wrap)
    if shut:
        inside = shut["gap"] or ""  # of `<think>\n\n</think>`: one line feed belongs to each mark
        half = inside[: len(inside) // 2]
        lead = "" if on.endswith(shut["lead"]) else shut["lead"]
        begin = lead + shut["end"].replace("/", "", 1) + half
        return Marks(begin, shut["end"], inside[len(half) :], shut["then"], wrap)
    ends = on.rstrip()
    for known in (_GPT_OSS, _MUSE, *_FAMILIES):
        if ends.endswith(known.begin.rstrip()):
            return known
    if by_message := _by_message(on, source):
        return by_message
    for known in _FAMILIES:
        if known.end in source and known.begin.rstrip() in source:
            return known if not wrap else Marks(known.begin, known.end, "", "\n", wrap)
    return None


def opened(tail: str, marks: Marks) -> bool:
    """Whether a generation prompt ends within a thought."""
    return tail.rstrip().endswith(marks.begin.strip())


def closed(tail: str, marks: Marks) -> bool:
    """Whether a generation prompt ends behind a thought's end mark."""
    return tail.rstrip().endswith(marks.after.rstrip())


def without_thought(tail: str, source: str) -> str:
    """A generation prompt as the template has it by itself, with what it leaves open closed.

    A thought is closed at once, else a verdict would be read inside it; and a header that does not
    name its channel yet is written out, else one would be read inside the header.
    """
    if by_message := _by_message(tail, source):
        return tail + by_message.turn
    found = left_open(tail)
    if found is None:
        return tail
    gap = "" if found.then.endswith("<|message|>") else "\n\n"
    return f"{tail.rstrip()}{gap}{found.end}{gap or found.then.strip()}"


def _by_message(tail: str, source: str) -> Marks | None:
    """The marks of a family whose generation prompt ends within a message's header."""
    if not tail.endswith(_HEADER):
        return None
    if _GPT_OSS.turn in source:
        return _GPT_OSS
    return _MUSE if f"{_HEADER}{_MUSE.begin}" in source else None


def left_open(tail: str) -> Marks | None:
    """The marks of the thought that a generation prompt ends in, if it does."""
    found = _OPEN.search(tail)
    if found:
        return Marks(found[0].strip(), f"{found[1]}/{found[2]}{found[3]}")
    ends = tail.rstrip()
    return next((m for m in (_GPT_OSS, *_FAMILIES) if ends.endswith(m.begin.rstrip())), None)


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of a text that a server did not part, by the marks that stand in it.

    The answer is empty where a thought that the text begins with does not end.
    """
    for marks in (_GPT_OSS, *_FAMILIES):
        begin = marks.begin.strip()
        begun = text.lstrip().startswith(begin)
        before, end, after = text.partition(marks.turn)
        if end or begun:
            thought = before.strip().removeprefix(begin).removesuffix(_HEADER)
            return thought.removesuffix(marks.end).strip(), after.strip()
    return "", text
