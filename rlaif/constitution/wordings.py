"""The same question in other words, and the opposite question, by rules. Pure functions of texts.

A rule is applied only where it surely keeps the sense; where none does, people write the words
themselves (`paraphrases:` and `opposite:` of a principle).
"""

from __future__ import annotations

import re
from typing import Final

from rlaif.constitution import Principle

_WHICH: Final = re.compile(r"Which (?:response|answer|reply) (?P<rest>.+)\?")
_FRAMES: Final = (
    "Select the response that {}.",
    "Which answer {}?",
    "Choose the reply that {}.",
)
_ANY: Final = "Decide by this question alone: {}"
_TURNED: Final = {"more": "less", "less": "more", "fewer": "more"}
_WORD: Final = re.compile(rf"\b({'|'.join(_TURNED)})\b")
_NEGATED: Final = re.compile(r"\b(?:no|not|never|nobody|nothing|most|least)\b")
# Words in -er that compare nothing. Any other may be a comparative, which would have to be turned.
_NO_COMPARATIVE: Final = frozenset(
    {"after", "another", "answer", "danger", "either", "ever", "however", "lawyer", "letter"}
    | {"manner", "matter", "never", "number", "offer", "order", "other", "over", "paper", "power"}
    | {"rather", "reader", "together", "under", "user", "utter", "whether"}
)


def paraphrases(compare: str) -> tuple[str, ...]:
    """The question in other frames: "Which response is safer?", "Select the response that is
    safer." A question of another form is only put behind a few words."""
    found = _WHICH.fullmatch(compare)
    if found is None:
        return (_ANY.format(compare),)
    texts = [frame.format(found["rest"]) for frame in _FRAMES]
    return tuple(text for text in texts if text != compare)


def opposite(compare: str) -> str | None:
    """The question with its one comparison turned round ("more" for "less"), whose better response
    is the other one. None where there is no such word, or another comparison beside it."""
    words = {word.lower() for word in re.findall(r"\b[A-Za-z]+er\b", compare)}
    others = words - _NO_COMPARATIVE - _TURNED.keys()
    if others or len(_WORD.findall(compare)) != 1 or _NEGATED.search(compare):
        return None
    return _WORD.sub(lambda match: _TURNED[match[1]], compare)


def wordings(principle: Principle) -> tuple[str, ...]:
    """The paraphrases that a file gives, or those by rule where it gives none."""
    return principle.paraphrases or paraphrases(principle.compare)


def turned(principle: Principle) -> str | None:
    """The opposite that a file gives, or that by rule."""
    return principle.opposite or opposite(principle.compare)
