"""Constitutions from what others published: JSON of Constitutional AI, Markdown and text lists.

Read are, by their shape:

- a JSON list of questions (`RLMadisonInstructions.json`): comparisons;
- a JSON object or list of `{prompt: [critique request], edit_request: revision request}`
  (`CritiqueRevisionInstructions.json`), also under `constitutions` and with the names `critic` or
  `critique`, `revision` or `revise`: critiques and revisions;
- Markdown list items, or lines of text: comparisons. `- **an id**: the question` gives the id.

Texts stay as they are, but for the scaffolding of the published prompts around them ("Options:",
"CritiqueRequest:"), which is a template's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlaif.constitution import Constitution
from rlaif.errors import DataError
from rlaif.files.small import once, read_text, reason

_BEFORE = re.compile(r"^\s*(CritiqueRequest|RevisionRequest):\s*")
_AFTER = re.compile(r"\s*(Options|Critique|Revision):\s*$")
_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d+[.)])\s+(.*)")
_NAMED = re.compile(r"^\*\*(.+?)\*\*:?\s*(.*)|^`(.+?)`:\s*(.*)")


def import_constitution(path: str | Path, name: str | None = None) -> str:
    """The YAML text of a constitution; `name` None takes the file's. DataError names what is wrong.

    The text has been parsed again: it is a constitution that loads.
    """
    path = Path(path)
    text = read_text(path, DataError)
    entries = list(_from_json(path, text) if path.suffix == ".json" else _from_list(path, text))
    if not entries:
        raise DataError(f"{path}: no principle in it; expected list items or lines of text")
    width = len(str(len(entries)))
    numbered = [{"id": f"p{i:0{width}}", **e} for i, e in enumerate(entries, 1)]
    data = {
        "name": name or _slug(path.stem),
        "description": f"Imported from {path.name}.",
        "principles": numbered,
    }
    out = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    Constitution.parse(out, f"{path} as YAML")
    return out


def _from_json(path: Path, text: str) -> Iterator[dict[str, str]]:
    try:
        data = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {reason(error)}") from error
    if isinstance(data, dict) and isinstance(data.get("constitutions"), list):
        data = data["constitutions"]
    items = data.items() if isinstance(data, dict) else enumerate(data if data else [])
    for key, item in items if isinstance(data, (dict, list)) else ():
        if isinstance(item, str):
            if "\n\nHuman:" in item:
                raise DataError(f"{path}: entry {key} is a transcript, not a principle")
            yield {"compare": _bare(item)}
        elif isinstance(item, dict):
            yield {
                **({"id": _slug(key)} if isinstance(key, str) else {}),
                "critique": _bare(_field(path, key, item, "prompt", "critic", "critique")),
                "revise": _bare(_field(path, key, item, "edit_request", "revision", "revise")),
            }
        else:
            raise DataError(f"{path}: entry {key}: expected a text or an object, got {item!r:.60}")


def _field(path: Path, key: Any, item: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = item.get(name)
        if isinstance(value, list) and len(value) == 1:  # published as a list of one
            value = value[0]
        if isinstance(value, str):
            return value
    raise DataError(f"{path}: entry {key}: expected a text under '{names[0]}', got {sorted(item)}")


def _from_list(path: Path, text: str) -> Iterator[dict[str, str]]:
    """Markdown items with the lines that go on with them; without any item, each line is one."""
    lines = text.splitlines()
    if not any(_ITEM.match(line) for line in lines):
        plain = path.suffix != ".md"
        yield from ({"compare": line.strip()} for line in lines if plain and _is_text(line))
        return
    item: list[str] = []
    for line in [*lines, ""]:
        match = _ITEM.match(line)
        if item and (match or not _is_text(line)):
            yield _entry(" ".join(item))
            item = []
        if match:
            item = [match[1].strip()]
        elif item:
            item.append(line.strip())


def _is_text(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _entry(text: str) -> dict[str, str]:
    match = _NAMED.match(text)
    if not match:
        return {"compare": text}
    name, question = (match[1], match[2]) if match[1] else (match[3], match[4])
    return {"id": _slug(name), "compare": question} if question else {"compare": name}


def _bare(text: str) -> str:
    """A published request without the words that hold its place in the prompt."""
    return _AFTER.sub("", _BEFORE.sub("", text)).strip()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "imported"
