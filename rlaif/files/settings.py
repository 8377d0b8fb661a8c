"""What settings are: a section of a config, and the object that the code takes.

A part's section stands beside its code (`engines/settings.py`, `training/settings.py`, …) and loads
no torch; `rlaif.config` only composes them. So a setting has one name, one default and one
explanation, in YAML and in Python:

    train_dpo(..., DPOSettings(beta=0.05))
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from rlaif.errors import ConfigError
from rlaif.files.own import PATTERN
from rlaif.files.yamlfile import Written, YamlFile, faults_of, told

Kind = Literal[
    "run",
    "constitution",
    "template",
    "examples",
    "rows",
    "model",
    "policy",
    "adapter",
    "reward",
    "judge",
    "engine",
    "reader",
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's generators take no other


@dataclass(frozen=True, slots=True)
class Place:
    """What a field of a config names."""

    kind: Kind


class _Told(type(BaseModel)):  # type: ignore[misc]  # pydantic's metaclass has no public name
    """Makes a section from named arguments; a wrong one is told as in a file, as a ConfigError.

    A nested section, and a file's, are checked by pydantic itself and do not come by here.
    """

    def __call__(cls: Any, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as error:
            file = YamlFile(cls.__name__, fields, {})
            raise ConfigError(told(faults_of(cls, file, error))) from None


# by **, as pydantic's plugin for mypy makes no signatures where it sees a metaclass of one's own
class Section(Written, **{"metaclass": _Told}):
    """Base of every section: frozen, unknown keys refused, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def but(self, **changes: Any) -> Self:
        """The same settings with some changed, checked as ever."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | changes)


def one_of(names: Collection[str], unknown: Callable[[str], str | None]) -> tuple[Any, Any]:
    """What checks a field against a list of names, `module:name` being allowed beside them, and
    tells editors which there are. `unknown` says what is wrong with a name, if anything is."""

    def check(name: str) -> str:
        if said := unknown(name):
            raise PydanticCustomError("unknown_name", "{said}", {"said": said})
        return name

    choices = [{"enum": list(names)}, {"pattern": PATTERN}]
    return AfterValidator(check), WithJsonSchema({"type": "string", "anyOf": choices})
