"""What can go wrong, split by who must act.

    RlaifError
    ├── ConfigError      the person who wrote a config, a constitution or a template
    ├── DataError        the person who owns the data or the run directory
    ├── EngineError      the machine, the model or the server; `retryable` says whether to try again
    └── TrainingError    the training run itself (diverged, refused labels)

Every message says what was expected, what came, and the fix. The command line prints the message
alone, without a traceback, and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RlaifError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(RlaifError):
    """A config, constitution or template says something that cannot be."""


class DataError(RlaifError):
    """An input or a run directory is missing, damaged, malformed or held by another writer."""


class EngineError(RlaifError):
    """A model or server cannot do what was asked. `retryable`: the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class TrainingError(RlaifError):
    """A training run cannot start or cannot go on."""


def missing_extra(package: str, extra: str, why: str) -> ConfigError:
    """The error for an optional package that is not installed, with the command to install it."""
    return ConfigError(f'{why} needs {package}: pip install "rlaif[{extra}]"')


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the list of choices when nothing is near."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Choices: {', '.join(choices)}." if choices else ""
