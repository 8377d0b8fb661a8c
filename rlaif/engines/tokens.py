"""From rendered messages to token ids, one segment at a time.

Each segment is tokenised by itself. The template's literal text is trusted: its special tokens are
tokens. Data is not: no added token, special or not, is ever made from it, so that `<|im_end|>` in a
response under judgement cannot end the judge's turn. Runs of whitespace that a tokenizer adds as
tokens control nothing and stay. A policy's own words, where it learns from them, are data in which
added tokens that are not special (`<think>`, the marks of tools) are tokens: so it said them.

Where the tokenizer has a chat template, it is applied once per sequence of roles, with markers in
place of the contents; what stands between the markers is trusted text. Where it has none, messages
become a plain `Human:` / `Assistant:` transcript. A template that asks for the day is told one that
stays the same for a run (`fix_date`), and a thought that it leaves open is closed, unless the
prompt says that the model may think (`rlaif.engines.thinking`).

One space at the end of trusted text goes over to the data after it, because tokenizers of words
expect the space before the word. The literal text stays as it was in every other respect.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import json
import math
import re
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rlaif.engines import thinking
from rlaif.engines.base import Generation, Sampling
from rlaif.engines.thinking import Marks, Mode
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.records import content_id

Ids = npt.NDArray[np.int32]  # (T,)
_Encode = Callable[[str], list[int]]
_ANCHORS = ("\n", "\x01", "¶", "|")  # text that tokenizers keep apart from what follows it
_PROBES = ("x", " x", ".", "The end", "\n\n", "é")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = (("user",), ("system", "user"), ("user", "assistant", "user"))
_today: list[
    datetime.date
] = []  # the day that templates are told; empty: that of an encoder's making


def fix_date(date: datetime.date) -> None:
    """Has all encoders made from now on in this process tell their chat templates this day.

    A template that puts the day into each prompt would else make another prompt of the same row
    tomorrow.
    """
    _today[:] = [date]


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said: its answer, and the thought before it, whose `thought_ids` are without
    its marks. `thinking`: it was cut, or ended its turn, before the thought had ended."""

    text: str
    thought: str = ""
    thought_ids: tuple[int, ...] = ()
    thinking: bool = False


class Encoder:
    """Token ids of prompts and options. Segments seen before come from a cache.

    `transcript` says that the tokenizer has no chat template, and `stop` which strings then end
    the assistant's turn.
    """

    def __init__(self, tokenizer: Any, name: str = "the model") -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.date = _today[0] if _today else datetime.date.today()
        self._thought_said = False
        self.transcript = not getattr(tokenizer, "chat_template", None)
        self.stop: tuple[str, ...] = (HUMAN,) if self.transcript else ()
        if self.transcript:
            warnings.warn(
                f"{name} has no chat template: messages are written as a plain 'Human:' / "
                "'Assistant:' transcript. Put a chat_template.jinja into its folder to change that",
                stacklevel=3,
            )
        trusted, data, unknown = _encoders(tokenizer)
        added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items()}
        control = {text: i for text, i in added.items() if text.strip()}
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        self._forbidden = _Forbidden.of(control, unknown)
        self._special = _Forbidden.of({t: i for t, i in control.items() if t in special}, unknown)
        self._marks = _alternatives({t: i for t, i in added.items() if t not in special})
        self._added = added
        self._parses_marks = getattr(tokenizer, "backend_tokenizer", None) is not None
        self._trusted, self._data = trusted, data
        self._anchor, self._anchor_ids = _find_anchor(trusted)
        self._bos = _leading_ids(tokenizer)
        self._segment = lru_cache(maxsize=16_384)(self._encode_segment)
        self._skeleton = lru_cache(maxsize=1_024)(self._chat_skeleton)
        self._source = str(getattr(tokenizer, "chat_template", None) or "")
        self._marks_of_thoughts: Marks | None = None  # found when first asked for
        self._mark_ids: dict[str, list[int]] = {}

    def prompt(self, prompt: Rendered, begun: bool = False) -> Ids:
        """The ids of a prompt, as int32 (T,), up to where the assistant begins or goes on.

        A thought of the prompt stands before its cue, closed. A turn that the assistant has begun
        otherwise cannot begin with a thought: it is rendered without, unless what it has `begun`
        with is what it said.
        """
        if prompt.thought is not None:
            return self._after_thought(prompt)
        mode = prompt.thinking
        has_cue = bool(prompt.messages) and prompt.messages[-1].role == "assistant"
        if mode is not None and has_cue and not begun:
            mode = "off"
        pieces = [np.asarray(self._bos, np.int32)] if self.transcript else []
        for i, segment in enumerate(_shift_spaces(self._segments(prompt.messages, mode))):
            pieces.append(self._segment(segment, i == 0 and not segment.text[0].isspace()))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def _after_thought(self, prompt: Rendered) -> Ids:
        """The prompt, the thought as it was sampled, its end and the cue."""
        thought, marks = prompt.thought, self.marks
        assert thought is not None
        before = self.prompt(prompt.without_cue("open"))
        said: Ids = np.asarray(thought.ids, np.int32)
        if thought.text and not thought.ids:
            said = self._segment(Segment(thought.text, True, own=True), False)
        cue = prompt.messages[-1].segments if prompt.messages[-1].role == "assistant" else ()
        end = Segment(marks.close if thought.cut else marks.after, False)
        after = [self._segment(segment, False) for segment in _shift_spaces([end, *cue])]
        return np.concatenate([before, said, *after])

    @property
    def template_id(self) -> str:
        """A hash of what the chat template puts round messages on this encoder's day, so that a
        template which says something else tomorrow, or in another version, has other keys."""
        if not self.transcript:
            return content_id([self._skeleton(roles, None) for roles in _ROLES])
        said = (Segment("x", False),)
        turns = [RenderedMessage("user", said), RenderedMessage("assistant", said)]
        return content_id([s.text for s in _transcript(turns, said)])

    # ---- thoughts

    @property
    def marks(self) -> Marks:
        """What stands round the model's thoughts; EngineError for one whose template knows none."""
        if self._marks_of_thoughts is None:
            self._marks_of_thoughts = self._find_marks()
        return self._marks_of_thoughts

    def thinking_id(self, mode: Mode) -> str:
        """A hash of what the chat template puts round messages in a mode, and round a thought.

        EngineError where the model cannot think, unless it is told not to.
        """
        skeletons = [self._skeleton(roles, mode) for roles in _ROLES] if not self.transcript else []
        return content_id(mode, skeletons, str(self.marks) if mode != "off" else "")

    def _find_marks(self) -> Marks:
        found, on = None, ""
        if not self.transcript:
            on, off = (self._generation_prompt(mode) for mode in ("on", "off"))
            found = thinking.marks_of(self._source, on, off)
        if found is None or thinking.closed(on, found):
            why = "it has no chat template" if self.transcript else "its template knows no thought"
            raise EngineError(
                f"{self.name} cannot think: {why}. Set `thinking` to null or off, or take a model "
                "whose template has thinking; a method that writes first, such as cot, needs none"
            )
        return found

    def _generation_prompt(self, mode: Mode | None) -> str:
        parts = self._rendered(("user",), mode)
        return parts[-1] if parts else ""

    @property
    def opens_thoughts(self) -> bool:
        """Whether the template, and not the model, writes the mark that begins a thought."""
        return thinking.opened(self._generation_prompt("on"), self.marks)

    def ends_thought(self, ids: Sequence[int]) -> bool:
        """Whether the newest token ends a thought."""
        end = self.ids_of_mark(self.marks.end)
        if end:
            return list(ids[-len(end) :]) == end
        tail = len(self.marks.end.encode()) + 4  # a token is at least one byte of text
        return self.marks.end in self._raw(ids[-tail:])

    def said(self, ids: Sequence[int], stop: Sequence[str], mode: Mode | None) -> Said:
        """What sampled ids say: a completion, or a thought and the answer after it.

        `mode` is the one that the prompt was rendered in; stop strings count in the answer only.
        """
        if mode is None or mode == "off":
            return Said(self.completion(ids, stop))
        marks = self.marks
        found = self._find(ids, marks.turn)
        begin = self._find(ids, marks.begin.strip())
        if begin is not None and self.decode(ids[: begin[0]]).strip():
            begin = None  # only spoken of
        begun = begin is not None or mode == "open"
        if not begun and found is None:
            begun = self.opens_thoughts
        if not begun and found is None:
            return Said(self.completion(ids, stop))
        end = len(ids) if found is None else found[0]
        thought = ids[min(begin[1] if begin else 0, end) : end]
        if marks.turn != marks.end and (inner := self._find(thought, marks.end)) is not None:
            thought = thought[: inner[0]]
        told = self.decode(thought).strip()
        if found is None:
            return Said("", told, tuple(thought), thinking=True)
        answer = found[2] + self.completion(ids[found[1] :], stop)
        return Said(marks.unwrapped(answer.lstrip()), told, tuple(thought))

    def _find(self, ids: Sequence[int], mark: str) -> tuple[int, int, str] | None:
        """Where a mark first stands in ids: the first and the last of its tokens' places, the
        latter exclusive, and what its last token says after it."""
        wanted, n = self.ids_of_mark(mark), len(ids)
        if wanted:
            k = len(wanted)
            places = (i for i in range(n - k + 1) if ids[i] == wanted[0])
            at = next((i for i in places if list(ids[i : i + k]) == wanted), None)
            return None if at is None else (at, at + k, "")
        whole = self._raw(ids)
        begin = whole.find(mark)
        if begin < 0:
            return None
        last = bisect.bisect_left(range(n), True, key=lambda k: mark in self._raw(ids[: k + 1]))
        first = bisect.bisect_left(
            range(n), True, key=lambda k: len(self._raw(ids[: k + 1])) > begin
        )
        rest = self._raw(ids[: last + 1])[begin + len(mark) :]
        return first, last + 1, rest

    def ids_of_mark(self, mark: str) -> list[int]:
        """The tokens of a mark that is made of added ones; none where its letters are text, which
        a tokenizer may write in several ways."""
        if mark not in self._mark_ids:
            ids, added = self._trusted(mark), set(self._added.values())
            self._mark_ids[mark] = ids if ids and {ids[0], ids[-1]} <= added else []
        return self._mark_ids[mark]

    def _raw(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def generation(
        self, ids: Sequence[int], finish_reason: str, sampling: Sampling, mode: Mode | None
    ) -> Generation:
        """What was sampled after a prompt that was rendered in a mode.

        A thought that was sampled alone has the ids of its own words. A stop string that an engine
        did not stop at ends the completion here.
        """
        if mode == "open" and not sampling.max_new_tokens:
            said = self.said(ids, (), mode)
            kept = said.thought_ids
            if said.thinking and finish_reason == "stop" and kept:  # it ended its turn instead
                kept = kept[:-1]
            return Generation("", finish_reason, len(ids), kept, self.decode(kept).strip())
        said, tokens = self.said(ids, sampling.stop, mode), len(ids)
        if mode == "on" and finish_reason == "length" and sampling.stop:
            whole = self.said(ids, (), mode).text
            if said.text != whole:  # the engine went on behind a stop string of the answer
                ids, finish_reason = self._up_to_stop(ids, sampling.stop), "stop"
        return Generation(said.text, finish_reason, tokens, tuple(ids), said.thought)

    def _up_to_stop(self, ids: Sequence[int], stop: Sequence[str]) -> Sequence[int]:
        """The ids of a completion up to the first stop string of its answer."""

        def stopped(n: int) -> bool:
            return any(s in self.said(ids[:n], (), "on").text for s in stop)

        return ids[: bisect.bisect_left(range(len(ids) + 1), True, key=stopped)]

    # ---- options and completions

    def option(self, text: str) -> Ids:
        """The ids of an option: trusted text that goes on after the prompt."""
        ids = self._segment(Segment(text, False), False)
        if not len(ids):
            raise EngineError(f"{self.name}: the option {text!r} has no tokens")
        return ids

    def options(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each option. EngineError where two of them are the same tokens, as words that
        the tokenizer does not know are: each would get the other's probability."""
        found = [self.option(text) for text in texts]
        if len({ids.tobytes() for ids in found}) < len(found):
            raise EngineError(
                f"{self.name}: two of the options {', '.join(map(repr, texts))} are the same "
                "tokens, so it cannot tell them apart: give the template other options"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def completion(self, ids: Sequence[int], stop: Sequence[str]) -> str:
        """The text of a completion: up to the first stop string, without the transcript's space."""
        text = self.decode(ids)
        cuts = [text.find(s) for s in (*stop, *self.stop) if s in text]
        if cuts:
            text = text[: min(cuts)]
        return text.removeprefix(" ") if self.transcript else text

    # ---- messages → segments

    def _segments(self, messages: tuple[RenderedMessage, ...], mode: Mode | None) -> list[Segment]:
        cue: tuple[Segment, ...] = ()
        if messages and messages[-1].role == "assistant":
            messages, cue = messages[:-1], messages[-1].segments
        if self.transcript:
            return _transcript(messages, cue)
        for variant in (messages, _fold_system(messages), _alternating(_fold_system(messages))):
            skeleton = self._skeleton(tuple(m.role for m in variant), mode)
            if skeleton is not None:
                out = [Segment(skeleton[0], False)]
                for index, after in zip(skeleton[1::2], skeleton[2::2], strict=True):
                    out += [*variant[int(index)].segments, Segment(after, False)]
                return [*out, *cue]
        roles = ", ".join(m.role for m in messages)
        raise EngineError(
            f"{self.name}: its chat template refuses messages of the roles [{roles}], "
            "also with the system message folded into the first user message"
        )

    def _chat_skeleton(self, roles: tuple[str, ...], mode: Mode | None) -> tuple[str, ...] | None:
        """Text and message index by turns: text, index, text, …; None if the template refuses."""
        parts = self._rendered(roles, mode)
        return None if parts is None else (*parts[:-1], self._ended(parts[-1], mode))

    def _rendered(self, roles: tuple[str, ...], mode: Mode | None) -> tuple[str, ...] | None:
        """The same as the template has it."""
        nonce = secrets.token_hex(8)
        messages = [{"role": r, "content": f"Q{nonce}x{i}Q"} for i, r in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=self._strftime,
                **thinking.variables(self._source, mode),
            )
        except Exception:  # templates raise what they like
            return None
        parts = re.split(f"Q{nonce}x(\\d+)Q", text)
        found = [int(i) for i in parts[1::2]]
        return tuple(parts) if found == list(range(len(roles))) else None

    def _ended(self, tail: str, mode: Mode | None) -> str:
        """The generation prompt as a mode wants it to end: a thought is begun, left to the model,
        or, what it leaves open, closed: else a verdict would be read inside it."""
        if mode == "on":
            return tail
        if mode == "open":
            return tail if thinking.opened(tail, self.marks) else tail + self.marks.begin
        shut = thinking.without_thought(tail, self._source)
        if mode == "off":
            return shut + self._empty_thought(shut)
        left = thinking.left_open(tail)
        if left is not None and not self._thought_said:
            self._thought_said = True
            warnings.warn(
                f"{self.name}: its chat template begins every answer with an open thought "
                f"({left.begin}), which is closed at once: it answers without thinking",
                stacklevel=6,
            )
        return shut

    def _empty_thought(self, tail: str) -> str:
        """What keeps a model from thinking whose template leaves that to it, and has no switch."""
        on, off = (self._rendered(("user",), mode) for mode in ("on", "off"))
        found = thinking.marks_of(self._source, on[-1] if on else "", off[-1] if off else "")
        if found is None or on is None or off is None or thinking.closed(tail, found):
            return ""
        same = [x for i, x in enumerate(on) if i % 2 == 0] == [
            x for i, x in enumerate(off) if i % 2 == 0
        ]
        return f"{found.begin.strip()}{found.after}" if same else ""

    def _strftime(self, form: str) -> str:
        """In place of the clock that Transformers gives to templates."""
        return datetime.datetime.combine(self.date, datetime.time()).strftime(form)

    # ---- segments → ids

    def _encode_segment(self, segment: Segment, first: bool) -> Ids:
        text = segment.text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
        encode = self._trusted if not segment.data else self._data_ids
        if segment.own:
            encode = self._own_ids
        ids = encode(text) if first else self._after_anchor(encode, text)
        out = np.asarray(ids, np.int32)
        out.flags.writeable = False
        return out

    def _after_anchor(self, encode: _Encode, text: str) -> list[int]:
        """Without the space that sentencepiece puts before the first word of any text."""
        if not self._anchor:
            return encode(text)
        ids = encode(self._anchor + text)
        k = len(self._anchor_ids)
        return ids[k:] if ids[:k] == self._anchor_ids else encode(text)

    def _data_ids(self, text: str) -> list[int]:
        """Ids of untrusted text: none of them is a control token's."""
        return self._without(self._forbidden, self._data, text)

    def _own_ids(self, text: str) -> list[int]:
        """Ids of a policy's own words: none of them is a special token's, added ones may be."""
        return self._without(self._special, self._with_marks, text)

    def _with_marks(self, text: str) -> list[int]:
        """Ids of text in which added tokens that are not special are tokens, and nothing else is.

        Fast tokenizers do so of themselves; those in Python leave all of them text, or none.
        """
        if self._parses_marks:
            return self._data(text)
        ids: list[int] = []
        end = 0
        for mark in self._marks.finditer(text):
            ids += self._piece(text[end : mark.start()], end == 0)
            ids.append(self._added[mark[0]])
            end = mark.end()
        return ids + self._piece(text[end:], end == 0)

    def _piece(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        return self._data(text) if first else self._after_anchor(self._data, text)

    def _without(self, forbidden: _Forbidden, encode: _Encode, text: str) -> list[int]:
        """Ids of a text, cut within the texts of forbidden tokens wherever one came up."""
        ids = encode(text)
        if forbidden.ids.isdisjoint(ids):
            return ids
        cuts = [0, *(m.start() + 1 for m in forbidden.texts.finditer(text)), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        for parts in (pieces, list(text)):
            ids = encode(parts[0])
            ids += [i for part in parts[1:] for i in self._after_anchor(encode, part)]
            if forbidden.ids.isdisjoint(ids):
                return ids
        return [i for i in ids if i not in forbidden.ids]  # a control token of one character


@dataclass(frozen=True, slots=True)
class _Forbidden:
    """Tokens that a text must not become, and a pattern of their texts."""

    ids: frozenset[int]
    texts: re.Pattern[str]

    @classmethod
    def of(cls, tokens: dict[str, int], unknown: int | None) -> _Forbidden:
        return cls(frozenset(tokens.values()) - {unknown}, _alternatives(tokens))


def exclusive(values: Sequence[float], options: Sequence[Ids]) -> list[float]:
    """Log-probabilities of options as events that exclude one another.

    Where one option's tokens begin another's, as "1" begins "10" in tokenizers that write numbers
    digit by digit, P(going on with "1") counts "10" too: it is taken out. Rounding leaves at least
    1e-7 of it, so that a difference of nothing stays finite.
    """
    out = list(values)
    rows = [option.tolist() for option in options]
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        inside = [
            j
            for j, row in enumerate(rows)
            if len(row) > len(rows[i]) and row[: len(rows[i])] == rows[i]
        ]
        if inside:
            rest = 1.0 - math.fsum(math.exp(out[j] - values[i]) for j in inside)
            out[i] = values[i] + math.log(max(rest, 1e-7))
    return out


def _encoders(tokenizer: Any) -> tuple[_Encode, _Encode, int | None]:
    """Encoders of trusted text and of data, and the id of the unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python

        def trusted(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids

        def data(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True
            )
            return ids

        return trusted, data, unknown

    full, bare = _backends(backend)
    return (
        lambda text: full.encode(text, add_special_tokens=False).ids,
        lambda text: bare.encode(text, add_special_tokens=False).ids,
        unknown,
    )


def _backends(backend: Any) -> tuple[Any, Any]:
    """Copies of a fast tokenizer: as it is, and one to which special tokens are text."""
    from tokenizers import Tokenizer

    source = json.loads(backend.to_str())
    source["truncation"] = source["padding"] = None
    full, bare = (Tokenizer.from_str(json.dumps(source)) for _ in range(2))
    bare.encode_special_tokens = True
    return full, bare


def _alternatives(texts: dict[str, int]) -> re.Pattern[str]:
    longest_first = sorted((t for t in texts if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _find_anchor(encode: _Encode) -> tuple[str, list[int]]:
    """A text whose ids stay the same whatever follows; empty if texts need none.

    Tokenizers that put a space before the first word would put one into every segment. After an
    anchor they do not.
    """
    for anchor in _ANCHORS:
        ids = encode(anchor)
        after = [encode(anchor + probe) for probe in _PROBES]
        if not ids or any(a[: len(ids)] != ids for a in after):
            continue
        if all(a[len(ids) :] == encode(p) for a, p in zip(after, _PROBES, strict=True)):
            return "", []
        return anchor, ids
    return "", []


def _leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its BOS, if it adds one."""
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    full = tokenizer("x")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def _shift_spaces(segments: Sequence[Segment]) -> list[Segment]:
    out: list[Segment] = []
    for segment in segments:
        before = out[-1] if out else None
        if before and segment.data and not before.data and re.search(r"\S \Z", before.text):
            out[-1] = Segment(before.text[:-1], False)
            segment = replace(segment, text=" " + segment.text)
        out.append(segment)
    return [s for s in out if s.text]


def _transcript(messages: Sequence[RenderedMessage], cue: tuple[Segment, ...]) -> list[Segment]:
    out: list[Segment] = []
    for message in messages:
        if message.role == "system":
            out += message.segments
        else:
            out += _turn(HUMAN if message.role == "user" else ASSISTANT, message.segments)
    return [*out, *_turn(ASSISTANT, cue)]


def _turn(label: str, segments: Sequence[Segment]) -> list[Segment]:
    """What is said after its label. The space between goes with the first word, where tokenizers
    of words expect it: an answer is the same tokens said, and to be gone on with."""
    if not any(segment.text for segment in segments):
        return [Segment(label, False), *segments]
    first, *rest = segments
    space = "" if not first.data and first.text[:1].isspace() else " "
    return [Segment(label, False), replace(first, text=space + first.text), *rest]


def _fold_system(messages: tuple[RenderedMessage, ...]) -> tuple[RenderedMessage, ...]:
    """The system message put before the first user message, for templates that know none."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    return (_join(messages[1].role, messages[:2]), *messages[2:])


def _alternating(messages: tuple[RenderedMessage, ...]) -> tuple[RenderedMessage, ...]:
    """Neighbours of one role joined, for templates that insist on turns."""
    out: list[RenderedMessage] = []
    for message in messages:
        if out and out[-1].role == message.role:
            message = _join(message.role, (out.pop(), message))
        out.append(message)
    return tuple(out)


def _join(role: Any, parts: Sequence[RenderedMessage]) -> RenderedMessage:
    segments = [*parts[0].segments]
    for part in parts[1:]:
        segments += [Segment("\n\n", False), *part.segments]
    return RenderedMessage(role, tuple(segments))
