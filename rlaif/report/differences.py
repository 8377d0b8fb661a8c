"""What two texts say differently, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
MOST = 4_000  # words and signs of a text above which it is not compared: the time is quadratic

Piece = tuple[str, bool]  # a stretch of text, and whether the other text lacks it


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces that together are the text, each marked if the other lacks it.

    Texts that share nearly nothing, or are very long, come back as one unmarked piece: all marked
    would mark nothing.
    """
    a, b = _TOKEN.findall(first), _TOKEN.findall(second)
    if max(len(a), len(b)) > MOST:
        return [(first, False)], [(second, False)]
    match = SequenceMatcher(None, a, b, autojunk=False)
    if match.quick_ratio() < 0.2 or match.ratio() < 0.2:
        return [(first, False)], [(second, False)]
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, a0, a1, b0, b1 in match.get_opcodes():
        for pieces, tokens in ((left, a[a0:a1]), (right, b[b0:b1])):
            if tag == "equal":
                pieces.append(("".join(tokens), False))
            else:
                pieces += _marked("".join(tokens))
    return left, right


def _marked(text: str) -> list[Piece]:
    """What the other text lacks, without the space around it, which nobody reads."""
    inner = text.strip()
    start = text.find(inner) if inner else len(text)
    pieces = ((text[:start], False), (inner, True), (text[start + len(inner) :], False))
    return [piece for piece in pieces if piece[0]]
