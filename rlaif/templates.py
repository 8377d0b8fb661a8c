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

A last assistant message is left open: it is the cue that the judge goes on from.

Text under judgement is data. Whatever `{{ … }}` puts in becomes a segment of its own, which engines
tokenise without looking for special tokens; the template's literal text is what they trust. Jinja
substitutes once, so a text that contains `{{` is not rendered again. Every `<tag>` of the literal
text is a fence: where data contains one, a backslash is put into the judge's view of it
(`<\\/answer_a>`), so that no answer can close its own fence. Records keep the text as it was.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from jinja2.sandbox import SandboxedEnvironment

from rlaif.errors import ConfigError
from rlaif.records import Message, Role
from rlaif.resources import find

_MARKER = re.compile(r"^=== (system|user|assistant) ===\n?", re.MULTILINE)
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is tokenised by itself. `data`: its special tokens stay text."""

    text: str
    data: bool


@dataclass(frozen=True, slots=True)
class RenderedMessage:
    """One message, as the segments it is made of."""

    role: Role
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.segments)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What an engine is asked: messages; a last assistant message is an open cue to go on from."""

    messages: tuple[RenderedMessage, ...]

    @classmethod
    def chat(cls, messages: tuple[Message, ...] | list[Message]) -> Rendered:
        """A conversation as it is, every content being data."""
        return cls(tuple(RenderedMessage(m.role, (Segment(m.content, True),)) for m in messages))


def tag_sentences(text: str, letter: str) -> str:
    """Puts ` letter` after each sentence end: small judges keep the responses apart by it."""
    return re.sub(r"(?<=[.!?])(?=\s|$)", f" {letter}", text)


class Template:
    """One prompt file. `hash` covers its bytes; `options` are the labels the judge scores."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.hash = hashlib.sha256(source.encode()).hexdigest()[:16]
        front, body = _split_front_matter(name, source)
        options = front.pop("options", [])
        if front:
            raise ConfigError(f"{name}: unknown front matter {sorted(front)}; known: options")
        if not (isinstance(options, list) and all(isinstance(o, str) and o for o in options)):
            raise ConfigError(
                f"{name}: options must be a list of non-empty strings, got {options!r}"
            )
        self.options: tuple[str, ...] = tuple(options)
        if not _MARKER.match(body.lstrip("\n")):
            raise ConfigError(f"{name}: the body must start with a line such as '=== user ==='")
        self._fences = _fence_pattern(body)
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
            self._compiled = self._environment.from_string(body)
        except jinja2.TemplateSyntaxError as error:
            line = (error.lineno or 1) + source[: len(source) - len(body)].count("\n")
            raise ConfigError(f"{name}:{line}: {error.message}") from error

    def render(self, **values: Any) -> Rendered:
        """The messages for these values; ConfigError when the template needs one not given."""
        aside = _Aside(secrets.token_hex(16), [])
        try:
            text = self._compiled.render(values, _aside=aside)
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
        text = str(value)  # StrictUndefined raises here
        aside: _Aside = context["_aside"]
        if aside.nonce in text:  # the output of a macro: its values are already put aside
            return text
        return aside.put(self._fences.sub(_break_fence, text) if self._fences else text)


@dataclass(frozen=True, slots=True)
class _Aside:
    """The values of one rendering, kept apart from its text by markers no value can guess."""

    nonce: str
    values: list[str]

    def put(self, text: str) -> str:
        self.values.append(text)
        return f"\x00{self.nonce}:{len(self.values) - 1}\x00"

    def segments(self, body: str) -> tuple[Segment, ...]:
        out = []
        for i, part in enumerate(re.split(f"\x00{self.nonce}:(\\d+)\x00", body)):
            text = self.values[int(part)] if i % 2 else part
            if text:
                out.append(Segment(text, bool(i % 2)))
        return tuple(out)


def _split_front_matter(name: str, source: str) -> tuple[dict[str, Any], str]:
    match = _FRONT.match(source)
    if not match:
        return {}, source
    try:
        front = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: the front matter is not YAML: {error}") from error
    if not isinstance(front, dict):
        raise ConfigError(f"{name}: the front matter must be a mapping, got {front!r}")
    return front, source[match.end() :]


def _fence_pattern(body: str) -> re.Pattern[str] | None:
    literal = re.sub(r"\{[{%#].*?[}%#]\}", "", body, flags=re.DOTALL)
    words = sorted({re.sub(r"[</>]", "", tag) for tag in _TAG.findall(literal)})
    if not words:
        return None
    return re.compile(rf"<(\s*/?\s*)({'|'.join(map(re.escape, words))})(?=\s*>)", re.IGNORECASE)


def _break_fence(match: re.Match[str]) -> str:
    return f"<\\{match[1]}{match[2]}"


@lru_cache(maxsize=64)
def _load(path: Path, _modified_ns: int) -> Template:
    try:
        return Template(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error


def load_template(name: str) -> Template:
    """A template by path or by shipped name, such as `pairwise/default`."""
    path = find("prompts", name, ".j2")
    return _load(path, path.stat().st_mtime_ns)
