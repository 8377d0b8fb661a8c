"""`rlaif view`: a local web page over a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli.options import OutOption, RunArgument, the_run


def view(
    run: RunArgument = None,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="A second run, to compare the first with."),
    ] = None,
    out: OutOption = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where it is served; others than this machine need a token."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Its port; 0 takes a free one.")
    ] = 8765,
) -> None:
    """Show a run as a local web page: read and filter pairs, label by hand, compare two runs.

    Example: rlaif view runs/demo
    """
    from rlaif.cli.console import Terminal
    from rlaif.view.serve import serve

    runs = [the_run(run, out), *([other] if other is not None else [])]
    serve(runs, Terminal().say, host=host, port=port)
