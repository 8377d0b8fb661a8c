"""What it is like to live in this code, measured: the table at the end of `docs/architecture.md`.

    python tools/house.py            prints the table
    python tools/house.py --write    puts it into the page

Floors, rooms and loops are counted by the tests that hold them (`tests/test_layers.py`), settings
declared twice by theirs (`tests/test_settings_once.py`).
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PACKAGE = HERE / "rlaif"
PAGE = HERE / "docs" / "architecture.md"
BEGIN, END = "<!-- tools/house.py -->\n", "<!-- end -->\n"
sys.path.insert(0, str(HERE / "tests"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method of the package, by `path:name`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}:{node.name}", node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: without the docstring, decorators and blank ones counted as they stand."""
    first = node.body[0]
    text = ast.get_docstring(node, clean=False)
    doc = (first.end_lineno or 0) - first.lineno + 1 if text is not None else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Arguments that a caller may give: not `self`, `cls` and what `*` and `**` collect."""
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names)


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Typer makes it a command, whose arguments are its options."""
    return any(".command" in ast.unparse(d) for d in node.decorator_list)


def spread(values: Sequence[int]) -> tuple[int, int, int]:
    """Median, 95th percentile and largest."""
    return (
        round(statistics.median(values)),
        round(statistics.quantiles(values, n=20, method="inclusive")[-1]),
        max(values),
    )


def rows() -> list[tuple[str, str, str]]:
    """What is measured, its value, and what it should be."""
    from test_layers import FILES, FLOORS, imports, loops, module_name, room
    from test_settings_once import twice

    places = {
        place.__name__: {
            own: {place(n) for p in FILES if place(module_name(p)) == own for _, n in imports(p)}
            - {own}
            for own in {place(module_name(path)) for path in FILES}
        }
        for place in (str, room)
    }
    rooms = sorted(
        p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    )
    rooms = [p for p in rooms if p.name != "__init__.py"]
    found = list(functions())
    length = spread([lines_of(node) for _, node in found])
    library = [node for _, node in found if not is_command(node)]
    taken = spread([arguments_of(node) for node in library])
    again = twice()
    skips = sum("# fmt: " in path.read_text() for path in HERE.rglob("rlaif/**/*.py"))
    total = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    looped = sum(bool(loops(edges)) for edges in places.values())
    return [
        ("floors", str(len(set(FLOORS.values()))), "≤ 9"),
        ("rooms at the top", str(len(rooms)), "≤ 18"),
        ("lines of Python in the package", f"{total:,}", ""),
        ("lines a function: median, p95, longest", "{}, {}, {}".format(*length), "p95 ≤ 30"),
        ("arguments: median, p95, most", "{}, {}, {}".format(*taken), "p95 ≤ 5, none above 8"),
        ("settings declared twice", f"{len(again)} places", "0"),
        ("import loops, late imports counted", str(looped), "0"),
        ("files with `# fmt:`", str(skips), "0"),
    ]


def table() -> str:
    """The table in Markdown."""
    lines = ["| measured | is | aim |", "|---|--:|---|"]
    return "\n".join([*lines, *(f"| {a} | {b} | {c} |" for a, b, c in rows())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/architecture.md")
    parser.add_argument("--most", type=int, default=0, help="also name the N longest and widest")
    asked = parser.parse_args()
    text = table()
    print(text)
    found = list(functions())
    for what, of in (("lines", lines_of), ("arguments", arguments_of)):
        for name, node in sorted(found, key=lambda f: -of(f[1]))[: asked.most]:
            print(f"{of(node):5} {what:9}  {name}{' (a command)' * is_command(node)}")
    if asked.write:
        page = PAGE.read_text()
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(page[:start] + "\n" + text + "\n" + page[end:])


if __name__ == "__main__":
    main()
