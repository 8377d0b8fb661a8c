"""The command line: one command a stage. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys

from rlaif.cli.app import app
from rlaif.errors import RlaifError

INTERRUPTED = 130  # the shell's code for Ctrl-C


def main() -> None:
    """Runs the command; an error made on purpose is its message and exit code 2."""
    try:
        app()
    except RlaifError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
