"""The command line: one command a stage. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from rlaif.cli.app import app
from rlaif.cli.last_word import FAILED, last_word

INTERRUPTED = 130  # the shell's code for Ctrl-C


def main() -> None:
    """Runs the command. An error is one paragraph, and a status that is not 0."""
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
    except KeyboardInterrupt:
        _end("stopped; the same command goes on from here", INTERRUPTED)
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
