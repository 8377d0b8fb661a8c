"""What is wrong with an object that is not what a function takes: a TypeError that says what to do.

The protocols are `Judge` and `Engine`; whatever has their attributes is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlaif.constitution import Constitution, Principle
from rlaif.engines.own import ENGINE_MEMBERS
from rlaif.records import Pair

JUDGE_MEMBERS = ("name", "together", "key", "judge")


def require_judge(found: object) -> None:
    """TypeError for what is no `Judge`."""
    hint = "make one of it: PairwiseJudge(engine)"
    if isinstance(found, str):
        hint = f"load the model: PairwiseJudge(load_engine({found!r}))"
    elif not _lacks(found, ENGINE_MEMBERS) and not isinstance(found, type):
        hint = "this is an Engine; make a judge of it: PairwiseJudge(engine)"
    _require(found, "Judge", JUDGE_MEMBERS, hint)


def require_engine(found: object) -> None:
    """TypeError for what is no `Engine`."""
    hint = "load one: load_engine('tiny')"
    if isinstance(found, str):
        hint = f"load the model: load_engine({found!r})"
    elif not _lacks(found, JUDGE_MEMBERS) and not isinstance(found, type):
        hint = "this is a Judge; give the engine that it asks"
    _require(found, "Engine", ENGINE_MEMBERS, hint)


def require_pairs(found: object) -> None:
    """TypeError for what holds no pairs: a path, a single pair, dictionaries."""
    if isinstance(found, str | bytes) or not isinstance(found, Iterable):
        given = f"{found!r}" if isinstance(found, str) else _called(found)
        raise TypeError(f"expected a list of Pair, got {given}: read a file with read_pairs(path)")
    if isinstance(found, list | tuple):
        wrong = next((x for x in found if not isinstance(x, Pair)), None)
        if wrong is not None:
            raise TypeError(
                f"expected a list of Pair, got one with {_called(wrong)}: make each by "
                "Pair(Prompt.user(text), first, second), or read a file with read_pairs(path)"
            )


def require_principles(found: object) -> None:
    """TypeError for what is neither a constitution nor principles."""
    if isinstance(found, Constitution) or callable(found):
        return
    if isinstance(found, list | tuple) and all(isinstance(x, Principle) for x in found):
        return
    hint = f"Constitution.load({found!r})" if isinstance(found, str) else "Constitution.load(name)"
    raise TypeError(f"expected a Constitution or a list of Principle, got {_called(found)}: {hint}")


def _require(found: object, protocol: str, names: tuple[str, ...], hint: str) -> None:
    if isinstance(found, type):
        raise TypeError(
            f"expected a {protocol}, got the class {found.__name__} itself: make an object of it, "
            f"{found.__name__}(...)"
        )
    lacks = _lacks(found, names)
    if lacks:
        article = "an" if protocol == "Engine" else "a"
        raise TypeError(
            f"expected {article} {protocol}, got {_called(found)}, which has no "
            f"{', '.join(lacks)}: {hint}"
        )


def _lacks(found: Any, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not hasattr(found, name)]


def _called(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
