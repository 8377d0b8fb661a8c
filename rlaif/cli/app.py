"""The command line put together: each line registers a command, or a file of them.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rlaif.cli import (
    bench,
    config,
    constitution,
    evaluate,
    files,
    looking,
    revise,
    status,
    steps,
    train,
    view,
)
from rlaif.cli.options import App

app = App(
    name="rlaif",
    help="From a file of principles to preference labels, reward models and better policies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    steps.run,
    steps.sample,
    steps.label,
    revise.revise,
    revise.contrast,
    files.export,
    files.report,
    view.view,
    status.status,
    looking.show,
    looking.compare,
    files.init,
):
    app.command()(command)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")
app.add_typer(constitution.app, name="constitution")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")


def version(show: bool) -> None:
    """Prints the version and stops."""
    if show:
        from rlaif import __version__

        typer.echo(f"rlaif {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a file of principles to preference labels, reward models and better policies."""
    del show_version
