"""A setting is declared once: in its section, whose object the code takes.

A section is a frozen pydantic class (`rlaif.files.settings.Section`). A dataclass, a
TypedDict or a signature that gives three or more of one section's fields again, each with a default
or in a TypedDict, declares them a second time: the two can come apart, and did.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "rlaif"
FEWEST = 3  # fields in common that are no accident
# What is declared twice to this day, and how many fields. The list only gets shorter: a setting is
# taken out of it by giving the code the section's object.
STILL: dict[tuple[str, str], int] = {
    ("PPOSettings", "cli.bench.ppo()"): 5,
}

Fields = dict[str, str]  # names and defaults, as they are written


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript | ast.Call):
        return name_of(node.value if isinstance(node, ast.Subscript) else node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def fields_of(node: ast.ClassDef) -> Fields:
    return {
        x.target.id: default_of(x.value)
        for x in node.body
        if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name)
    }


def default_of(value: ast.expr | None) -> str:
    """A default as it is written; that of `Field(default=…)` without the limits."""
    if isinstance(value, ast.Call) and name_of(value) == "Field":
        value = next((k.value for k in value.keywords if k.arg == "default"), None)
    return "" if value is None else ast.unparse(value)


def defaults_of(node: ast.FunctionDef) -> Fields:
    a = node.args
    several = [*a.posonlyargs, *a.args]
    last = several[len(several) - len(a.defaults) :]
    found = {x.arg: ast.unparse(d) for x, d in zip(last, a.defaults, strict=True)}
    pairs = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    return found | {x.arg: ast.unparse(d) for x, d in pairs if d is not None}


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path, node


def sections() -> dict[str, Fields]:
    """Every section with all of its fields, those of the sections that it builds on too."""
    nodes = {node.name: node for _, node in classes()}
    found: dict[str, Fields] = {}

    def add(name: str) -> bool:
        if name == "Section":
            return True
        if name not in nodes:
            return False
        above = [base for base in map(name_of, nodes[name].bases) if add(base)]
        if above:
            inherited = {k: v for base in reversed(above) for k, v in found.get(base, {}).items()}
            found[name] = inherited | fields_of(nodes[name])
        return bool(above)

    for name in nodes:
        add(name)
    return found


def elsewhere(known: set[str]) -> Iterator[tuple[str, Fields]]:
    """Dataclasses, TypedDicts and signatures that declare something, by module and name."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name not in known:
                fields = fields_of(node)
                if "TypedDict" in map(name_of, node.bases):
                    yield f"{module}.{node.name}", fields
                elif "dataclass" in map(name_of, node.decorator_list):
                    yield f"{module}.{node.name}", {k: v for k, v in fields.items() if v}
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                        yield f"{module}.{node.name}()", defaults_of(inner)
            elif isinstance(node, ast.FunctionDef) and node.name != "__init__":
                yield f"{module}.{node.name}()", defaults_of(node)


def twice() -> dict[tuple[str, str], dict[str, tuple[str, str]]]:
    """What is declared again, each by the section that has most of it: fields and both defaults."""
    known = {s: f for s, f in sections().items() if not s.endswith("Columns")}  # names of columns
    found = {}
    for name, fields in elsewhere(set(sections())):
        section = max(known, key=lambda s: len(known[s].keys() & fields.keys()))
        shared = sorted(known[section].keys() & fields.keys())
        if len(shared) >= FEWEST:
            found[section, name] = {k: (known[section][k], fields[k]) for k in shared}
    return found


def test_the_search_finds_what_is_there() -> None:
    known = sections()
    assert "Config" in known
    assert "Section" not in known
    assert sum(map(len, known.values())) > 150


def test_no_further_setting_is_declared_twice() -> None:
    found = twice()
    more = [
        f"{section} again in {name}: {', '.join(fields)}"
        for (section, name), fields in found.items()
        if len(fields) > STILL.get((section, name), 0)
    ]
    assert not more, "\n".join(more)
    fewer = [pair for pair, n in STILL.items() if len(found.get(pair, {})) < n]
    assert not fewer, f"mended: lower the number, or take it out of STILL: {fewer}"
