"""Principles that a model proposes: it reads a labelled pair and writes a question that tells the
preferred response from the other, as in inverse constitutional AI (Findeis et al. 2024)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from rlaif.constitution import Principle

BEGINNING = "Which response"  # the template's cue, which what is written goes on from
LONGEST = 300  # characters of a question


def question(text: str, finish_reason: str) -> str | None:
    """The question that a model has written after the cue; None where it wrote none."""
    said = " ".join(text.split()).strip("\"'“”?. ")
    if finish_reason == "length" or not said or len(said) > LONGEST:
        return None
    return f"{BEGINNING} {said}?"


def words(text: str) -> frozenset[str]:
    """The set of a text's words."""
    return frozenset(re.findall(r"\w+", text.casefold()))


def distinct(
    questions: Iterable[str | None], known: Collection[str], similarity: float
) -> tuple[list[str], Counter[str]]:
    """The questions that share less than `similarity` of their words (Jaccard's index) with each
    one before them and each of `known`, in their order; and why the others were left out."""
    seen, kept, left = [words(text) for text in known], list[str](), Counter[str]()
    for text in questions:
        if text is None:
            left["unusable"] += 1
            continue
        own = words(text)
        if any(len(own & other) >= similarity * len(own | other) for other in seen):
            left["repeated"] += 1
            continue
        seen.append(own)
        kept.append(text)
    return kept, left


def principles_of(questions: Iterable[str], taken: Collection[str]) -> list[Principle]:
    """A principle for each question, with an id of its words that is not among those taken."""
    found, used = list[Principle](), set(taken)
    for text in questions:
        slug = re.sub(r"[^a-z0-9]+", "-", text.removeprefix(BEGINNING).lower()).strip("-")
        name = base = slug[:48].strip("-") or "proposed"
        for number in range(2, len(used) + 3):
            if name not in used:
                break
            name = f"{base}-{number}"
        used.add(name)
        found.append(Principle(id=name, compare=text, tags=("proposed",)))
    return found
