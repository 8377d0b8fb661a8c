"""The two walks of docs/architecture.md are what the imports say: ten files and rooms at most, and
downwards."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest
from test_layers import floor

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
HUB = {"Follow one pair": None, "Follow one episode": "training/rl/ppo.py"}  # what the last are of


def walk(title: str) -> list[str]:
    """The files of a walk, in their order."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def imported(file: str) -> set[str]:
    """The files that a file imports, inside of functions and for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "rlaif" / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlaif"):
            inside = (node.module or "").split(".")[1:]
            for parts in (inside, *([*inside, alias.name] for alias in node.names)):
                path = "/".join(parts)
                found |= {f"{path}.py", f"{path}/__init__.py"}
    return found


@pytest.mark.parametrize("title", HUB)
def test_a_walk_is_short_and_each_file_imports_the_next(title: str) -> None:
    files = walk(title)
    assert 5 < len(files) <= 10
    assert len({*files}) == len(files)
    assert all((ROOT / "rlaif" / file).is_file() for file in files)
    hub = HUB[title]
    before = None
    for file in files:
        if before is not None:
            assert file in imported(before), f"{before} does not import {file}"
        if before != hub or hub is None:
            before = file


@pytest.mark.parametrize("title", HUB)
def test_a_walk_never_climbs(title: str) -> None:
    files = walk(title)
    hub = HUB[title]
    last = len(files) if hub is None else files.index(hub) + 1
    for i, file in enumerate(files):
        back = imported(file) & {*files[: min(i, last)]}
        assert not back, f"{file} imports {back}, which comes before it"


def steps(title: str) -> list[tuple[str, str]]:
    """Who imports whom along a walk."""
    files, hub = walk(title), HUB[title]
    last = len(files) if hub is None else files.index(hub) + 1
    return [(files[min(i, last) - 1], files[i]) for i in range(1, len(files))]


def module(file: str) -> str:
    """`rlaif.stages` of `stages/__init__.py`, say."""
    return "rlaif." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def climbs(ways: list[tuple[str, str]]) -> list[str]:
    """The steps that go to a floor above that from which they start."""
    return [f"{a} → {b}" for a, b in ways if floor(module(b)) > floor(module(a))]


def stays(files: list[str]) -> list[str]:
    """The rooms of a walk in their order, each as often as it is entered."""
    rooms = [file.split("/")[0] for file in files]
    return [room for i, room in enumerate(rooms) if i == 0 or rooms[i - 1] != room]


@pytest.mark.parametrize("title", HUB)
def test_a_walk_has_few_rooms_enters_none_twice_and_goes_down(title: str) -> None:
    rooms = stays(walk(title))
    assert len(rooms) <= 10
    assert len({*rooms}) == len(rooms), rooms
    assert not climbs(steps(title))


def test_a_climb_and_a_room_that_is_entered_again_are_found() -> None:
    there_and_back = ["stages/jury.py", "steps/executors.py", "stages/running.py"]
    assert climbs([*pairwise(there_and_back)]) == ["steps/executors.py → stages/running.py"]
    assert stays(there_and_back) == ["stages", "steps", "stages"]
