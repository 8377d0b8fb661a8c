"""`rlaif config`: configs checked, and their JSON Schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rlaif.cli.options import App

app = App(help="Check configs; print their JSON Schema.", no_args_is_help=True)


@app.command("check")
def check_config(
    names: Annotated[list[str], typer.Argument(help="Files, or shipped names.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print it with every option written out.")
    ] = False,
) -> None:
    """Check configs; every fault is named with file, line and column, and every file they name that
    is not there.

    Example: rlaif config check config.yaml --resolved
    """
    from rlaif.cli.console import Terminal
    from rlaif.config import load_config, to_yaml
    from rlaif.errors import ConfigError
    from rlaif.store.places import missing, named

    for name in names:
        found = load_config(name)
        faults = [f"{one.name}: {why}" for one in named(found) if (why := missing(one))]
        if faults:
            raise ConfigError(f"{name} names what cannot be used:\n  " + "\n  ".join(faults))
        Terminal().say(to_yaml(found).rstrip() if resolved else f"{name}: fine")


@app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of config files, for editors.

    Example: rlaif config schema > rlaif.schema.json
    """
    from rlaif.config import schema

    typer.echo(json.dumps(schema(), indent=2))
