"""The code that README and docs show: blocks by language, and their commands one by one."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PROGRAMS = ("rlaif", "python", "accelerate", "make", "git", "pip")


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        return f"{self.page.relative_to(ROOT)}: {first.strip()[:60]}"


def blocks(page: Path) -> list[Block]:
    return [Block(page, m[1], m[2]) for m in _FENCE.finditer(page.read_text("utf-8"))]


def sessions(page: Path) -> list[list[list[str]]]:
    """For each plain block, the words of its commands, joined over `\\` and cut at `&&`."""
    found = []
    for block in blocks(page):
        if block.language in ("", "sh", "bash", "console"):
            lines = block.text.replace("\\\n", " ").splitlines()
            told = (shlex.split(x, comments=True) for x in lines if x.split(" ")[0] in _PROGRAMS)
            found.append([words for line in told for words in _split(line)])
    return found


def commands(page: Path) -> list[list[str]]:
    return [words for session in sessions(page) for words in session]


def _split(words: list[str]) -> list[list[str]]:
    """`a && b` as two commands."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return found
