"""`rlaif show`, `rlaif compare`: pairs with their verdicts, and two runs on the same pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.options import JsonOption, OutOption, RunArgument, the_run
from rlaif.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rlaif.evaluation.cases import Case
    from rlaif.evaluation.compare import Comparison
    from rlaif.evaluation.where import Where
    from rlaif.stages.stored import Stored

WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where",
        "-w",
        metavar="EXPR",
        help="Only pairs such as `margin < 0.1 and text ~ knife`: label, margin, abstained, "
        "length, known, principle, status, p(ID), principles, orders, jurors, text, prompt "
        "(docs/looking.md).",
    ),
]
MostOption = Annotated[
    int | None, typer.Option("-n", metavar="N", min=0, help="Show at most this many pairs.")
]
APART = ("principles", "orders", "jurors")


def show(
    run: RunArgument = None,
    pair: Annotated[
        str | None,
        typer.Argument(metavar="PAIR", help="A pair's id, or its beginning: all its verdicts."),
    ] = None,
    out: OutOption = None,
    where: WhereOption = None,
    apart: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Most apart first: `principles`, `orders` or `jurors`."),
    ] = None,
    most: MostOption = None,
) -> None:
    """Show one pair with every verdict, or the pairs on which opinions are farthest apart.

    Example: rlaif show runs/demo

    Example: rlaif show runs/demo --where 'principle = no-harm and margin < 0.3' -n 20

    Example: rlaif show runs/demo 3f2a
    """
    from rlaif.cli.pairs import say, whole
    from rlaif.stages.stored import Stored

    if out is not None and pair is None:
        run, pair = None, run  # the one argument is PAIR
    if apart is not None and apart not in APART:
        raise ConfigError(f"--apart {apart}: expected {', '.join(APART[:-1])} or {APART[-1]}")
    stored = Stored(the_run(run, out))
    if pair is not None:
        if where or apart or most is not None:
            raise ConfigError("PAIR shows one pair: leave --where, --apart and -n out")
        wording = {p.id: p.compare or "" for p in stored.principles}
        say(whole(_one(stored, pair), wording), typer.echo)
        return
    say(_many(stored, where, apart, most), typer.echo)


def _where(stored: Stored, text: str | None) -> Where | None:
    from rlaif.evaluation.where import parse_where

    return None if text is None else parse_where(text, [p.id for p in stored.principles])


def _one(stored: Stored, name: str) -> Case:
    """The pair of an id, or of its beginning; with or without the `~` of a mirrored one."""
    ids = stored.store.table("pairs").to_arrow(["id"])["id"].to_pylist()
    wanted = name.removeprefix("~")
    found = [i for i in ids if i.removeprefix("~").startswith(wanted)] if wanted else []
    if not found:
        raise DataError(
            f"{stored.store.root} has no pair whose id begins with '{name}', among "
            f"{len(ids):,}: `rlaif show {stored.store.root}` lists some"
        )
    if len(found) > 1:
        raise DataError(
            f"{len(found)} pairs have an id that begins with '{name}': {', '.join(found[:4])}"
            f"{' …' if len(found) > 4 else ''}: give more of it"
        )
    return stored.case(found[0])


def _many(stored: Stored, text: str | None, apart: str | None, most: int | None) -> Iterator[str]:
    from rlaif.cli.pairs import farthest, listed, short

    where, total = _where(stored, text), len(stored.store.table("pairs"))
    if not total:
        raise DataError(f"{stored.store.root}: no pairs in it: run `rlaif sample` or `rlaif label`")
    needed = apart is not None or where is None or where.needs_verdicts
    cases = stored.cases(verdicts=needed)
    if where is not None:
        cases = filter(where, cases)
    if where is not None and apart is None:
        shown, n = 20 if most is None else most, 0
        for case in cases:
            n += 1
            if n <= shown:
                yield short(case)
        yield f"{n:,} of {total:,} pairs" + (f", {shown:,} shown: -n shows more" * (n > shown))
        return
    wanted = APART if apart is None else (apart,)
    n, found = farthest(cases, wanted, most if most is not None else 5 if apart is None else 20)
    yield f"{n:,} of {total:,} pairs" if where is not None else f"{total:,} pairs"
    for name in wanted:
        if found[name]:
            yield ""
            yield from listed(name, found[name])
        elif apart is not None:
            yield f"no pair has two {name} with an opinion"
    if any(found.values()):
        yield f"\none pair with every verdict: rlaif show {stored.store.root} ID"


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run directory.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same pairs.")],
    where: WhereOption = None,
    most: MostOption = None,
    to: JsonOption = None,
) -> None:
    """Compare two runs' labels of the same pairs: agreement, κ, flips and what turned them.

    The runs may have other constitutions, judges or rules. `--where` is of run A.

    Example: rlaif compare runs/harmless runs/hhh
    """
    from rlaif.cli.pairs import comparison, say
    from rlaif.files.small import write_json
    from rlaif.store import lineage

    shown = 10 if most is None else most
    first, second = _labelled(a), _labelled(b)
    found = _compared(first, second, _where(first, where), shown)
    if not found.both:
        raise DataError(
            f"{a} and {b} have no labelled pair in common"
            + (" of those meant by --where" if where else "")
            + ": label the same pairs in both, such as with the same --pairs FILE, or a copy of "
            "the run directory"
        )
    typer.echo(f"A: {_about(first)}\nB: {_about(second)}")
    for line in lineage.differences(first.made, second.made):
        typer.echo(f"  {line}")
    typer.echo("")
    only_b = 0 if where else len(second.store.table("preferences")) - found.both
    say(comparison(found, only_b, shown), typer.echo)
    if to is not None:
        write_json(to, found.result())


def _labelled(root: Path) -> Stored:
    from rlaif.stages.stored import Stored

    stored = Stored(root)
    if not len(stored.store.table("preferences")):
        raise DataError(f"{root} has no labels yet: run `rlaif label {root}` first")
    return stored


def _compared(first: Stored, second: Stored, where: Where | None, keep: int) -> Comparison:
    from rlaif.evaluation.compare import Comparison, joined
    from rlaif.steps.executors import chunks

    found = Comparison((first.rule, second.rule), keep=keep)
    cases = first.cases(verdicts=where is not None and where.needs_verdicts)
    chosen = (c.preference for c in cases if where is None or where(c))
    batches = chunks((p for p in chosen if p is not None), 1_024)
    for mine, other in joined(batches, second.store.table("preferences").finder()):
        found.add(mine, other)
    return found


def _about(stored: Stored) -> str:
    judge = stored.manifest.get("judge") or {}
    judges = ", ".join(judge.get("jury") or {}) or judge.get("model") or "no judge"
    name = stored.constitution.get("name") or "no constitution"
    return f"{stored.store.root}: constitution {name}, judge {judges}, rule {stored.rule.name}"
