"""Prompts are files: `prompts/**/*.j2` rendered into messages, with a hash on every verdict.

A template is YAML front matter, then a body split into messages by marker lines:

    ---
    options: [" A", " B"]
    ---
    === user ===
    Which answer is better?
    <answer_a>{{ first }}</answer_a>
    ...
    === assistant ===
    The better answer is:

A last assistant message is left open: it is the cue that the judge goes on from. It may hold data
(a rationale, say), and nothing else.

Front matter: `options` are the labels that the judge scores, in the judge's own order. `stop` are
strings that end what the judge writes, where it writes anything. A template may also use `labels`:
its options without the space around them, as trusted text. Values may be lists:

    {% for response in responses %}
    Response {{ labels[loop.index0] }}:
    <response>{{ response }}</response>
    {% endfor %}

Text under judgement is data. Whatever `{{ … }}` puts in becomes a segment of its own, which engines
tokenise without looking for special tokens; the template's literal text is what they trust. Jinja
substitutes once, so a text that contains `{{` is not rendered again.

What keeps the parts of a prompt apart must not stand in the data, so a backslash is put into the
judge's view of it, and records keep the text as it was. Broken in this way are the `<tag>`s of the
literal text (`<\\/answer_a>`), also with attributes, wide letters or invisible characters in them;
in a template without tags the lines that end in a colon, such as `B:`; and everywhere `Human:` and
`Assistant:` at the start of a line, the turns of models without a chat template. Letters of another
alphabet that only look alike are not seen through.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import jinja2
import jinja2.nodes
from jinja2.sandbox import SandboxedEnvironment

from rlaif.errors import ConfigError
from rlaif.files.resources import find
from rlaif.files.small import read_text
from rlaif.files.yamlfile import parse_yaml
from rlaif.records import Message, Role

_MARKER = re.compile(r"^=== (system|user|assistant) ===\n?", re.MULTILINE)
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is tokenised by itself. `data`: its special tokens stay text.

    `own` data are a policy's own words, such as it learns from: tokens added to its vocabulary that
    are not special, `<think>` say, are those tokens in it, as when it said them.
    """

    text: str
    data: bool
    own: bool = False


@dataclass(frozen=True, slots=True)
class RenderedMessage:
    """One message, as the segments it is made of."""

    role: Role
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.segments)


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model thought before its answer, without the marks round it.

    `ids` are the tokens that it was sampled as, where they are known; `cut` says that a budget
    ended it.
    """

    text: str
    ids: tuple[int, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """What an engine is asked: messages; a last assistant message is an open cue to go on from.

    `thinking`: whether the model may think first (`rlaif.engines.thinking.Mode`); None leaves that
    to the chat template, and closes a thought that it opens. `thought` stands closed before the
    cue: the model has thought.
    """

    messages: tuple[RenderedMessage, ...]
    thinking: Literal["off", "on", "open"] | None = None
    thought: Thought | None = None

    @classmethod
    def chat(
        cls,
        messages: tuple[Message, ...] | list[Message],
        thinking: Literal["off", "on", "open"] | None = None,
    ) -> Rendered:
        """A conversation as it is, every content being data."""
        rows = tuple(RenderedMessage(m.role, (Segment(m.content, True),)) for m in messages)
        return cls(rows, thinking)

    @property
    def mode(self) -> Literal["off", "on", "open"] | None:
        """Whether what is said next may begin with a thought: not behind one, nor behind a cue."""
        has_cue = bool(self.messages) and self.messages[-1].role == "assistant"
        return None if has_cue or self.thought else self.thinking

    def without_cue(self, thinking: Literal["off", "on", "open"] | None = None) -> Rendered:
        """The messages before the open cue, where there is one."""
        has_cue = bool(self.messages) and self.messages[-1].role == "assistant"
        return Rendered(self.messages[:-1] if has_cue else self.messages, thinking)

    def after(self, thought: Thought) -> Rendered:
        """The same, asked after a thought."""
        return Rendered(self.messages, None, thought)


def tag_sentences(text: str, letter: str) -> str:
    """Puts ` letter` after each sentence end: small judges keep the responses apart by it."""
    return re.sub(r"(?<=[.!?])(?=\s|$)", f" {letter}", text)


class Trusted(str):
    """Text of the template itself, put in by `{{ }}`: it stays part of the literal text."""

    __slots__ = ()


class Template:
    """One prompt file. `hash` covers its bytes.

    `options` are the labels the judge scores, `stop` the strings that end what it writes, `fences`
    the names of the literal text's tags. `has_turns`: it holds answers of the assistant's, before
    the one that is asked for.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.hash = hashlib.sha256(source.encode()).hexdigest()[:16]
        front, body = _split_front_matter(name, source)
        self.options = _strings(name, front, "options")
        self.stop = _strings(name, front, "stop")
        if front:
            raise ConfigError(f"{name}: unknown front matter {sorted(front)}; known: options, stop")
        if len(set(self.options)) < len(self.options):
            raise ConfigError(f"{name}: an option is given twice in {list(self.options)}")
        self._own = {"labels": tuple(Trusted(o.strip()) for o in self.options)}
        if not _MARKER.match(body.lstrip("\n")):
            raise ConfigError(f"{name}: the body must start with a line such as '=== user ==='")
        self.has_turns = "assistant" in _MARKER.findall(body)[:-1]
        self.fences = _fence_words(body)
        self._guards = _guards(body, self.fences)
        self._environment = SandboxedEnvironment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        self._environment.filters["tag_sentences"] = tag_sentences
        self._environment.finalize = self._put_aside
        try:
            self._plain = _plain_names(self._environment.parse(body))
            self._compiled = self._environment.from_string(body)
        except jinja2.TemplateSyntaxError as error:
            line = (error.lineno or 1) + source[: len(source) - len(body)].count("\n")
            raise ConfigError(f"{name}:{line}: {error.message}") from error

    def render(self, **values: Any) -> Rendered:
        """The messages for these values; ConfigError when the template needs one not given."""
        return self._render(values, _Aside(secrets.token_hex(16)))

    def render_each(self, name: str, each: Sequence[str], **shared: Any) -> list[Rendered]:
        """`render` for each value of the variable `name`, the others being the same.

        Where the template only puts the variable in, as `{{ principle }}`, the rest is rendered
        once: sixteen principles over a pair then cost little more than one.
        """
        if name not in self._plain or not all(each):
            return [self.render(**shared, **{name: value}) for value in each]
        varying = _Varying(each[0] if each else "")
        aside = _Aside(secrets.token_hex(16), varying=varying)
        one = self._render({**shared, name: varying}, aside)
        return list(_variants(one, aside.marked, map(self._guard, each)))

    def _render(self, values: Mapping[str, Any], aside: _Aside) -> Rendered:
        try:
            text = self._compiled.render({**values, **self._own}, _aside=aside)
        except jinja2.UndefinedError as error:
            given = ", ".join(sorted(values))
            raise ConfigError(f"{self.name}: {error.message} (given: {given})") from error
        pieces = _MARKER.split(text.lstrip("\n"))[1:]  # role, body, role, body, …
        messages = []
        for role, body in zip(pieces[::2], pieces[1::2], strict=True):
            segments = aside.segments(body.strip("\n"))
            if segments:  # an empty assistant cue leaves the chat template's own prompt
                messages.append(RenderedMessage(cast(Role, role), segments))
        return Rendered(tuple(messages))

    @jinja2.pass_context
    def _put_aside(self, context: jinja2.runtime.Context, value: Any) -> str:
        """Called by Jinja for each `{{ }}`: keeps the value out of the text, leaving a marker."""
        if isinstance(value, Trusted):
            return str(value)
        text = str(value)  # StrictUndefined raises here
        aside: _Aside = context["_aside"]
        if aside.nonce in text:  # the output of a macro: its values are already put aside
            return text
        return aside.put(self._guard(text), value is aside.varying)

    def _guard(self, text: str) -> str:
        for pattern in self._guards:
            text = pattern.sub(r"\g<0>\\", text)
        return text


class _Varying(str):
    """The value of one variable, known again by identity where the template puts it in."""


@dataclass(frozen=True, slots=True)
class _Aside:
    """The values of one rendering, kept apart from its text by markers no value can guess."""

    nonce: str
    values: list[str] = field(default_factory=list)
    varying: _Varying | None = None
    varies: set[int] = field(default_factory=set)  # which of the values it is
    marked: list[Segment] = field(default_factory=list)  # the segments that hold it

    def put(self, text: str, varies: bool) -> str:
        if varies:
            self.varies.add(len(self.values))
        self.values.append(text)
        return f"\x00{self.nonce}:{len(self.values) - 1}\x00"

    def segments(self, body: str) -> tuple[Segment, ...]:
        out = []
        for i, part in enumerate(re.split(f"\x00{self.nonce}:(\\d+)\x00", body)):
            text = self.values[int(part)] if i % 2 else part
            if text or i % 2:  # an empty value too: what stands around it is tokenised as ever
                out.append(Segment(text, bool(i % 2)))
                if i % 2 and int(part) in self.varies:
                    self.marked.append(out[-1])
        return tuple(out)


def _variants(
    rendered: Rendered, marked: Sequence[Segment], texts: Iterable[str]
) -> Iterator[Rendered]:
    """The same messages with each text in the place of the marked segments."""
    places = [
        (m, s)
        for m, message in enumerate(rendered.messages)
        for s, segment in enumerate(message.segments)
        if any(segment is one for one in marked)
    ]
    for text in texts:
        messages = list(rendered.messages)
        for m, s in places:
            role, segments = messages[m].role, messages[m].segments
            segments = (*segments[:s], Segment(text, True), *segments[s + 1 :])
            messages[m] = RenderedMessage(role, segments)
        yield Rendered(tuple(messages))


def _plain_names(template: jinja2.nodes.Template) -> set[str]:
    """The variables that the template puts in as they are and uses for nothing else."""
    put_in = Counter(
        child.name
        for output in template.find_all(jinja2.nodes.Output)
        for child in output.nodes
        if isinstance(child, jinja2.nodes.Name)
    )
    used = Counter(name.name for name in template.find_all(jinja2.nodes.Name))
    return {name for name, count in put_in.items() if used[name] == count}


def _split_front_matter(name: str, source: str) -> tuple[dict[str, Any], str]:
    match = _FRONT.match(source)
    if not match:
        return {}, source
    front = parse_yaml(match[1], name, first_line=2).data or {}
    if not isinstance(front, dict):
        raise ConfigError(f"{name}: the front matter must be a mapping, got {front!r}")
    return front, source[match.end() :]


def _strings(name: str, front: dict[str, Any], key: str) -> tuple[str, ...]:
    """Takes a list of strings out of the front matter; empty where there is none."""
    found = front.pop(key, [])
    if not (isinstance(found, list) and all(isinstance(text, str) and text for text in found)):
        hint = " (put numbers into quotes)" if isinstance(found, list) else ""
        raise ConfigError(f"{name}: {key} must be a list of non-empty strings{hint}, got {found!r}")
    return tuple(found)


def _literal(body: str) -> str:
    """The body without what Jinja puts in, of which a line feed stays."""
    return re.sub(r"\{[{%#].*?[}%#]\}", "\n", body, flags=re.DOTALL)


def _fence_words(body: str) -> tuple[str, ...]:
    return tuple(sorted({re.sub(r"[</>]", "", tag) for tag in _TAG.findall(_literal(body))}))


def _guards(body: str, fences: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """Patterns after whose matches in data a backslash goes.

    Each is linear in the text, however it is made: a run of ignored characters is gone over once.
    """
    flags = re.IGNORECASE | re.MULTILINE
    start = rf"^[ \t\r\f\v\u00a0{_UNSEEN}]*"
    found = [re.compile(rf"{start}(?={_spelt('Human:')}|{_spelt('Assistant:')})", flags)]
    if fences:
        words = "|".join(map(_spelt, fences))
        found.append(re.compile(rf"[<＜﹤](?=[\s/／{_UNSEEN}]*({words})(?![\w-]))", flags))
        return tuple(found)
    cues = {line.strip() for line in _literal(_MARKER.sub("", body)).split("\n")}
    cues = {cue for cue in cues if re.search(r"\w:\Z", cue)}
    if cues:
        lines = "|".join(map(_spelt, sorted(cues)))
        found.append(re.compile(rf"{start}(?=({lines})[ \t\r\f\v\u00a0{_UNSEEN}]*$)", flags))
    return tuple(found)


# Format characters: a reader does not see them.
_UNSEEN = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
_UNSEEN += "\U000e0000-\U000e0fff"


def _spelt(word: str) -> str:
    """A pattern of the word, also in full-width letters and with unseen characters between them."""
    letters = (
        f"[{re.escape(c)}{chr(ord(c) + 0xFEE0)}]" if "!" <= c <= "~" else re.escape(c) for c in word
    )
    return f"[{_UNSEEN}]*".join(letters)


@lru_cache(maxsize=64)
def _load(path: Path, _modified_ns: int) -> Template:
    return Template(str(path), read_text(path, ConfigError))


def load_template(name: str) -> Template:
    """A template by path or by shipped name, such as `pairwise/default`."""
    path = find("prompts", name, ".j2")
    return _load(path, path.stat().st_mtime_ns)
