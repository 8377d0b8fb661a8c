"""`rlaif export`, `rlaif report`, `rlaif init`: from a run or to a project, without a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.options import OutOption, RunArgument, one_run, the_run

if TYPE_CHECKING:
    from rlaif.records import Preference


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
            help="`preferences`, `people` (what they decided in `rlaif view`), `revisions` (to "
            "train on) or `revision-pairs`.",
        ),
    ] = "preferences",
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
    """Write TRL rows: preferences with their soft label `p_chosen`, or revisions to train on.

    Example: rlaif export runs/demo preferences.jsonl
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.exporting import export_revisions, people_preferences, revision_preferences
    from rlaif.errors import ConfigError
    from rlaif.files.writers import export_preferences
    from rlaif.store import RunStore

    if out is not None and to is None:
        run, to = None, run  # the one argument is TO
    found = one_run(run, out)
    if found is None or to is None:
        raise ConfigError("expected a run and a file: rlaif export RUN TO, or --out RUN TO")
    store, terminal, target = RunStore(found, read_only=True), Terminal(), Path(to)
    if which not in ("last", "all"):
        raise ConfigError(f"--which {which}: expected last or all")
    if what == "revisions":
        counts = export_revisions(store, target, which == "all", helpful or [])
        terminal.say(f"{', '.join(f'{n:,} {k}' for k, n in counts.items())} written to {to}")
        return
    rows: Iterable[Preference]
    if what == "preferences":
        rows = (p for batch in store.table("preferences").iter_batches() for p in batch)
    elif what == "revision-pairs":
        rows = revision_preferences(store)
    elif what == "people":
        rows = people_preferences(store)
    else:
        raise ConfigError(
            f"--what {what}: expected preferences, people, revisions or revision-pairs"
        )
    counts = export_preferences(rows, target)
    left_out = {k: v for k, v in counts.items() if k != "preferred" and v}
    text = f"{counts['preferred']:,} preferences written to {to}"
    if left_out:
        text += "; left out: " + ", ".join(f"{v:,} {k}" for k, v in left_out.items())
    terminal.say(text)


def report(run: RunArgument = None, out: OutOption = None) -> None:
    """Write report.html and summary.json of a run.

    Example: rlaif report runs/demo
    """
    from rlaif.cli.console import Terminal
    from rlaif.stages import write_report

    write_report(the_run(run, out), Terminal())


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Make a project folder with a config, a constitution and prompts to edit.

    Example: rlaif init my-project
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.init import make_project

    Terminal().say(make_project(folder))
