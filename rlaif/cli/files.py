"""`rlaif export`, `rlaif report`, `rlaif init`: from a run or to a project, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli.options import JsonOption, OutOption, RunArgument, one_run, the_run


def export(
    run: RunArgument = None,
    to: Annotated[
        str | None, typer.Argument(metavar="TO", help="A .jsonl or .parquet file, or a folder.")
    ] = None,
    out: OutOption = None,
    what: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`preferences`, `implicit` (prompt within), `unpaired` (KTO), `sft`, `prompts`, "
            "`rewards`, `argilla`, `openai`, `openai-sft`; `people` (what they decided in `rlaif "
            "view`), `revisions` (to train on), `revision-pairs`; with --push-to, `models/dpo`.",
        ),
    ] = "preferences",
    hub: Annotated[
        bool,
        typer.Option("--hub", help="Write a folder as the hub has it: README.md and Parquet."),
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload it, card included, to the hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository of --push-to is private.")
    ] = False,
    which: Annotated[
        str,
        typer.Option("--which", "--rounds", metavar="NAME", help="Of revisions: `last` or `all`."),
    ] = "last",
    helpful: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Mix in all whole completions of this run; may be given again."
        ),
    ] = None,
) -> None:
    """Write a run's labels or revisions as rows to train on, with a card, and push them to the hub.

    Example: rlaif export runs/demo preferences.jsonl

    Example: rlaif export runs/demo kto.parquet --what unpaired

    Example: rlaif export runs/demo --push-to me/harmless-preferences --private
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.exporting import Wanted, export_it
    from rlaif.errors import ConfigError

    if out is not None and to is None:
        run, to = None, run  # the one argument is TO
    found = one_run(run, out)
    if found is None or (to is None and push_to is None):
        raise ConfigError(
            "expected a run and a file: rlaif export RUN TO, or --out RUN TO; or --push-to NAME"
        )
    if which not in ("last", "all"):
        raise ConfigError(f"--which {which}: expected last or all")
    wanted = Wanted(
        what=what,
        to=None if to is None else Path(to),
        hub=hub,
        push_to=push_to,
        private=private,
        every_round=which == "all",
        helpful=tuple(helpful or ()),
    )
    export_it(Path(found), wanted, Terminal().say)


def report(
    run: RunArgument = None,
    other: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Another run: RUN and B on one page, in RUN."),
    ] = None,
    out: OutOption = None,
    to: JsonOption = None,
) -> None:
    """Write report.html and summary.json of a run; of two, RUN/report-vs-B.html alone.

    The page of two tells what they were told otherwise, their numbers side by side, what fell in
    each, and pairs whose label flipped. `--json` is of two runs: summary.json has those of one.

    Example: rlaif report runs/demo

    Example: rlaif report runs/harmless runs/concise
    """
    from rlaif.cli.console import Terminal
    from rlaif.errors import ConfigError
    from rlaif.stages import write_beside, write_report

    found = the_run(run, out)
    if other is not None:
        write_beside(found, Path(other), Terminal(), to)
    elif to is not None:
        raise ConfigError(
            f"--json is of two runs: of one, {found / 'summary.json'} has the numbers"
        )
    else:
        write_report(found, Terminal())


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Make a project folder with a config, a constitution and prompts to edit.

    Example: rlaif init my-project
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.init import make_project

    Terminal().say(make_project(folder))
