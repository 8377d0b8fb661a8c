"""A constitution: the principles a judge compares answers under, in a file that people edit.

name: harmless
version: 1
principles:
  - id: no-harm
    compare: Which response does less to help someone hurt people?
    weight: 1.0
    tags: [safety]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from rlaif.errors import ConfigError
from rlaif.records import content_id
from rlaif.resources import find
from rlaif.yamlfile import parse_yaml, read_yaml, validate

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Principle(BaseModel):
    """One principle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    """Letters, digits, `.`, `_`, `-`. It names the column of verdicts; a new name, a new column."""
    compare: Text
    """The question put to the judge about two responses; the better one is the answer."""
    critique: Text | None = None
    """Asks the model to criticise its own response under this principle (critique → revision)."""
    revise: Text | None = None
    """Asks the model to rewrite the response after the critique."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Relative weight in `aggregate: weighted`; above 0."""
    tags: tuple[str, ...] = ()
    """Free labels. `tiny:TRAIT` links a principle to a trait of the embedded world."""


class Constitution(BaseModel):
    """A named, ordered set of principles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    """The constitution's name, usually that of its file."""
    version: int = Field(default=1, ge=1)
    """Raised by its authors when they change it; for people, nothing depends on it."""
    description: str = ""
    """What it is for."""
    principles: tuple[Principle, ...]
    """At least one."""

    @field_validator("principles")
    @classmethod
    def _some_and_unique(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        if not principles:
            raise ValueError("at least one principle is needed")
        ids = [p.id for p in principles]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"each id may be given once, got twice: {', '.join(twice)}")
        return principles

    @property
    def hash(self) -> str:
        """Content hash of what the file says; comments and layout do not count."""
        return content_id("constitution", self.model_dump(mode="json"))

    @classmethod
    def load(cls, name: str | Path) -> Constitution:
        """Reads a file, or a shipped constitution by name. ConfigError lists every fault."""
        path = find("constitutions", str(name), ".yaml")
        return validate(cls, read_yaml(path))

    @classmethod
    def parse(cls, text: str, name: str = "<constitution>") -> Constitution:
        """As `load`, from YAML text."""
        return validate(cls, parse_yaml(text, name))

    def select(self, ids: tuple[str, ...] | list[str]) -> tuple[Principle, ...]:
        """The principles of these ids, in the constitution's order."""
        known = {p.id for p in self.principles}
        unknown = [i for i in ids if i not in known]
        if unknown:
            raise ConfigError(
                f"constitution '{self.name}' has no principle {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known))}"
            )
        return tuple(p for p in self.principles if p.id in set(ids))
