"""The command line: one command a stage.

Heavy imports happen inside the commands, and all others once Ctrl-C has an answer.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from rlaif.cli.interrupts import Interrupts


def main() -> None:
    """Runs the command. An error is one paragraph, and a status that is not 0; so is Ctrl-C."""
    interrupts = Interrupts(next(iter(sys.argv[1:]), ""))
    try:
        interrupts.watch()
        _run()
    finally:
        if interrupts.came:  # whatever has become of it on its way
            interrupts.end()


def _run() -> None:
    from rlaif.cli.app import app
    from rlaif.cli.last_word import FAILED, last_word

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            if isinstance(stream, TextIOWrapper):  # no letter that a terminal lacks is an error
                stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # a full disk refuses it here, where it can still be told
                sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough
        _end("", FAILED)
    except Exception as error:
        text, status = last_word(error)
        _end(f"error: {text}", status)


def _end(text: str, status: int) -> NoReturn:
    with suppress(OSError):
        if text:
            print(text, file=sys.stderr, flush=True)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and say so at length
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
