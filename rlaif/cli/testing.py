"""`rlaif constitution test`: the tests of a constitution, and what a judge says when asked
otherwise."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.options import JsonOption, on_a_run
from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from rlaif.config import Config
    from rlaif.stages.run import Reporter, Run

Json = dict[str, Any]


@on_a_run("judge", "method", "examples", "pairs", "column", argument="constitution")
def command(
    config: Config,
    run: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="A run: its judge and pairs are taken, and its verdicts are not made again.",
        ),
    ] = None,
    invariance: Annotated[
        bool,
        typer.Option(
            "--invariance",
            help="Then ask about pairs in other words, the opposite, by other names and layouts.",
        ),
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pairs of --invariance, drawn at random.")
    ] = 50,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another template for --invariance, too; may be repeated."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run the tests in a constitution's file; tell how a judge's answers depend on the wording.

    Ends with status 1 where a test fails.

    Example: rlaif constitution test harmless --judge tiny

    Example: rlaif constitution test harmless --invariance --out runs/demo
    """
    from rlaif.store import write_json

    if template and not invariance:
        raise ConfigError("--template is of --invariance: give that, too")
    told = _tested(config, run, (limit, template or []) if invariance else None)
    if json_file is not None:
        write_json(json_file, told)
    if any(row["outcome"] == "fail" for row in told["tests"]):
        raise typer.Exit(1)


def _tested(config: Config, out: str | None, asked: tuple[int, list[str]] | None) -> Json:
    """Runs the tests, and asks otherwise where `asked` says about how many pairs and by which
    further templates. Without a run, nothing is kept."""
    from rlaif.cli.console import Terminal
    from rlaif.cli.first import check, needs_torch
    from rlaif.stages.asking import require_one_judge
    from rlaif.stages.run import Run
    from rlaif.store import RunStore, missing_run

    if out is not None and not Path(out).exists():
        raise missing_run(Path(out), "leave out --out, and nothing is kept")
    check(config, ["run_tests"])
    require_one_judge(config, "a constitution is tested on")
    terminal = Terminal()
    with ExitStack() as stack:
        root = out or stack.enter_context(tempfile.TemporaryDirectory(prefix="rlaif-"))
        store = stack.enter_context(RunStore(root, command="constitution test"))
        heavy = needs_torch(config, ["run_tests"])
        run = stack.enter_context(Run(config, store, terminal, local_models=heavy))
        return _told(run, terminal, asked)


def _told(run: Run, terminal: Reporter, asked: tuple[int, list[str]] | None) -> Json:
    from rlaif.cli.console import Terminal
    from rlaif.stages.testing import measure_invariance, pairs_of, run_tests

    if asked is None and not any(p.tests for p in run.principles()):
        raise ConfigError(
            f"constitution '{run.constitution.name}' has no tests: write `tests:` under a "
            "principle (docs/constitutions.md), or measure how its wording matters by --invariance"
        )
    out = Terminal().out
    rows = run_tests(run)
    found: Json = {"constitution": run.constitution.name, "tests": rows}
    if rows:
        out.print(_tests_table(rows))
        counts = Counter(row["outcome"] for row in rows)
        terminal.say(
            f"{len(rows)} tests: " + ", ".join(f"{n} {what}" for what, n in counts.items())
        )
    if asked is not None:
        limit, templates = asked
        measured = measure_invariance(run, pairs_of(run, limit), templates)
        out.print(_cards_table(measured))
        terminal.say(_summary(measured))
        found["invariance"] = measured
    return found


def _tests_table(rows: list[Json]) -> Table:
    from rich.table import Table

    table = Table()
    for head in ("principle", "test", "outcome", "P(better)", "prompt"):
        table.add_column(head, no_wrap=head != "prompt")
    for row in rows:
        p = "–" if row["p_better"] is None else f"{row['p_better']:.3f}"
        why = f" ({row['reason']})" if row["reason"] else ""
        said = (row["principle"], str(row["test"]), row["outcome"] + why, p, row["prompt"])
        table.add_row(*said)
    return table


def _cards_table(measured: Json) -> Table:
    """What turned the answers round, a principle after the other."""
    from rich.table import Table

    table = Table(caption="flipped: of clear answers, with 95 % intervals over prompts")
    for head in ("principle", "asked", "as", "flipped", "of", "abstained"):
        table.add_column(head, no_wrap=head in ("principle", "asked"))
    for name, card in measured["principles"].items():
        table.add_row(name, "position", "both orders", *_share(card["position"]), "")
        for text, row in card["variants"].items():
            lost = sum(row["abstained"].values())
            table.add_row("", row["kind"], text, *_share(row["flipped"]), str(lost or ""))
    return table


def _share(found: Json | None) -> tuple[str, str]:
    if found is None:
        return "–", "0"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]", str(found["n"])


def _summary(measured: Json) -> str:
    """All principles together, by kind."""
    parts = []
    for kind, row in measured["kinds"].items():
        lost, flipped = sum(row["abstained"].values()), row["flipped"]
        text = "none could be judged" if flipped is None else f"flipped {flipped['value']:.1%}"
        parts.append(f"{kind}: {text}" + f", {lost} of {row['asked']} abstained" * bool(lost))
    return f"{measured['pairs']} pairs; " + "; ".join(parts)
