"""What can go wrong, split by who must act.

    RlaifError
    ├── ConfigError      the person who wrote a config, a constitution or a template
    ├── DataError        the person who owns the data or the run directory
    ├── EngineError      the machine, the model or the server; `retryable` says whether to try again
    └── TrainingError    the training run itself (diverged, refused labels)

Every message says what was expected, what came, and the fix. The command line prints the message
alone, without a traceback, and exits with 2. What nobody foresaw is one paragraph too, and exits
with 1; RLAIF_TRACEBACK=1 shows where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DISTRIBUTION = "rlaif-toolkit"  # on PyPI `rlaif` is somebody else's package


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
    wanted = " ".join(f'"{one}"' for one in _wanted(extra) or [package.lower()])
    return ConfigError(f"{why} needs {package}: pip install {wanted}")


def _wanted(extra: str) -> list[str]:
    """What `extra` asks for, such as `vllm>=0.24`, read off the installed distribution.

    The package itself is named, not `rlaif-toolkit[vllm]`: that is right from a checkout and from
    a wheel, published or not.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        return []
    found = (line.split(";") for line in lines if extra in line.partition("extra ==")[2])
    return [requirement.strip() for requirement, *_ in found]


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the list of choices when nothing is near."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Choices: {', '.join(choices)}." if choices else ""


def require_finite(**numbers: float | None) -> None:
    """ConfigError that names a number which is infinite or not a number; None is no number.

    Comparisons do not find them: NaN is neither below nor above any limit.
    """
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, got {value}")


def require_finite_fields(settings: DataclassInstance) -> None:
    """The same of every field of a dataclass."""
    require_finite(**{f.name: getattr(settings, f.name) for f in fields(settings)})
