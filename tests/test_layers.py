"""The layering is law: modules import lower floors only; low floors load without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "rlaif"

# Floors from the ground up. The longest matching prefix decides. `docs/architecture.md` draws them.
FLOORS = {
    "rlaif": 8,  # the package's own __init__: lazy names only
    "rlaif.errors": 0,
    "rlaif.records": 0,
    "rlaif.files": 0,
    "rlaif.training.stopping": 0,  # the command line asks it, before anything is trained
    "rlaif.statistics": 1,
    "rlaif.constitution": 1,
    "rlaif.store": 1,
    "rlaif.tiny": 1,  # beside the house: the grammar and its gold checker know only words
    "rlaif.engines": 2,
    "rlaif.judges": 3,
    "rlaif.steps": 4,
    "rlaif.training": 5,
    "rlaif.evaluation": 6,
    "rlaif.report": 6,
    "rlaif.config": 7,
    "rlaif.stages": 7,
    "rlaif.view": 7,
    "rlaif.bench": 7,
    "rlaif.cli": 8,
}


def floor(module: str) -> int:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in FLOORS:
            return FLOORS[name]
    raise AssertionError(f"{module} has no floor")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """Every rlaif module a file imports, lazy imports inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.startswith("rlaif")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlaif"):
            for alias in node.names:
                deeper = ROOT.parent.joinpath(*node.module.split("."), alias.name)
                is_module = deeper.with_suffix(".py").exists() or deeper.is_dir()
                found.append(
                    (node.lineno, f"{node.module}.{alias.name}" if is_module else node.module)
                )
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_its_own_floor_and_those_below(path: Path) -> None:
    own = module_name(path)
    high = [
        f"{path.name}:{line} imports {name} (floor {floor(name)} above {floor(own)})"
        for line, name in imports(path)
        if floor(name) > floor(own)
    ]
    assert not high


def room(module: str) -> str:
    """The folder or file of the package in which a module lives; `rlaif` is its own."""
    return ".".join(module.split(".")[:2])


def loops(edges: dict[str, set[str]]) -> list[str]:
    """One loop, as `a → b → a`, if there is any."""
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> list[str]:
        if node in path:
            return [" → ".join((*path[path.index(node) :], node))]
        if node in done:
            return []
        for name in sorted(edges.get(node, ())):
            if found := visit(name, (*path, node)):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, ()))), [])


@pytest.mark.parametrize("place", [str, room], ids=["modules", "rooms"])
def test_there_are_no_import_loops(place: Callable[[str], str]) -> None:
    """Imports inside functions count: a loop that is put off is one that a reader walks all the
    same."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        own = place(module_name(path))
        edges.setdefault(own, set()).update({place(n) for _, n in imports(path)} - {own})
    assert not loops(edges)


def test_a_loop_is_found() -> None:
    assert loops({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b → c → b"]
    assert not loops({"a": {"b", "c"}, "b": {"c"}})


LOW = sorted(module_name(p) for p in FILES if floor(module_name(p)) <= 1)


@pytest.mark.parametrize("module", [*LOW, "rlaif", "rlaif.cli", "rlaif.config"])
def test_low_floors_and_the_command_line_load_without_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
