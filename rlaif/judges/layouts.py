"""A judge's template with other names for its options, or laid out otherwise: the same question.

Pure functions over the text of a template with two options that are letters, " A" and " B" say. No
rule applies to others, whose options mean something (marks, yes and no).
"""

from __future__ import annotations

import json
import re
from typing import Final

from rlaif.files.templates import Template

NAMES: Final[tuple[tuple[str, str], ...]] = (("1", "2"), ("X", "Y"))
_FRONT: Final = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)


def layouts(source: str) -> dict[str, tuple[str, str]]:
    """Other templates that ask the same: name → (kind, text), kind being `options` or `format`.

    `options 1/2` renames the options wherever the template names them; `no blank lines` takes its
    blank lines out. Empty where the options are no two letters.
    """
    template = Template("template", source)
    letters = [re.sub(r"[\s\[\]()]", "", option) for option in template.options]
    if len(letters) != 2 or not all(len(x) == 1 and x.isalpha() for x in letters):
        return {}
    found = {
        f"options {'/'.join(names)}": ("options", _renamed(template, source, letters, names))
        for names in NAMES
        if list(names) != letters
    }
    compact = _compact(source)
    return found | ({"no blank lines": ("format", compact)} if compact != source else {})


def _renamed(template: Template, source: str, old: list[str], new: tuple[str, str]) -> str:
    names = dict(zip(old, new, strict=True))
    options = [
        option.replace(letter, names[letter])
        for option, letter in zip(template.options, old, strict=True)
    ]
    front = f"---\noptions: {json.dumps(options)}\n"
    if template.stop:
        front += f"stop: {json.dumps(list(template.stop))}\n"
    either = "|".join(old)
    # An article at the beginning of a sentence is no name of an option.
    article = rf"(?:^|(?<=[.!?\"] ))(?:{either}) (?=[a-z])"
    word = rf"(?P<name>(?<![\w<'])(?:{either})(?![\w']))"
    tag = rf"(?P<tag>(?<=_)(?:{either.lower()})(?=>))"
    pattern = re.compile(f"{article}|{word}|{tag}", re.MULTILINE)

    def put(match: re.Match[str]) -> str:
        if match["name"]:
            return names[match[0]]
        return names[match[0].upper()].lower() if match["tag"] else match[0]

    return f"{front}---\n" + pattern.sub(put, _FRONT.sub("", source, count=1))


def _compact(source: str) -> str:
    front = _FRONT.match(source)
    end = front.end() if front else 0
    body = re.sub(r"\n{2,}", "\n", source[end:].strip("\n"))
    return source[:end] + body + source[len(source.rstrip("\n")) :]
