"""YAML files that people write: read with positions, checked with every fault named at once.

A fault reads `file:line:column: what was expected, what came, the fix`. Unknown keys come with the
nearest known one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from yaml.reader import ReaderError

from rlaif.errors import ConfigError, nearest
from rlaif.files.small import read_text

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]


WIDEST = 2**63 - 1  # the largest whole number that fits 64 bits


class Written(BaseModel):
    """Base of what a file says.

    No number is infinite, too large for 64 bits, or a truth value; no name is blank; no text holds
    a NUL, where the operating system would cut it.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        types = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise ValueError(f"expected a number, got {'yes' if value else 'no'}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _says_something(cls, value: Any, info: ValidationInfo) -> Any:
        optional = cls.model_fields[str(info.field_name)].default == ""
        if isinstance(value, str) and not value.strip() and not optional:
            raise ValueError("it is empty: give it a name, or leave the key out")
        _usable(value)
        return value


def _usable(value: Any) -> None:
    """ValueError for what no setting can mean, also inside lists and mappings."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("it holds a NUL character: take it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    if isinstance(value, int) and not -WIDEST <= value <= WIDEST:
        raise ValueError("the number does not fit 64 bits")
    if isinstance(value, dict):
        for key, inner in value.items():
            _usable(key)
            _usable(inner)
    if isinstance(value, list | tuple):
        for inner in value:
            if inner == "":
                raise ValueError("one of its texts is empty: leave it out")
            _usable(inner)


@dataclass(frozen=True, slots=True)
class YamlFile:
    """What a file says, and where: `marks` maps each key path to its (line, column), from 1.

    `given` names the options that set key paths to something else than the file does.
    """

    path: str
    data: Any
    marks: Mapping[Location, tuple[int, int]]
    given: Mapping[Location, str] = field(default_factory=dict)

    def position(self, location: Location) -> tuple[int, int]:
        """(line, column) of a key path, or of its nearest parent that is in the file."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.marks:
                return self.marks[location[:end]]
        return (0, 0)

    def where(self, location: Location) -> str:
        """`file:line:column` of a key path, or the options that set it or something in it."""
        above = [location[:end] for end in range(len(location), 0, -1)]
        own = next((self.given[key] for key in above if key in self.given), None)
        inside = [name for key, name in self.given.items() if key[: len(location)] == location]
        if own or inside:
            return own or ", ".join(dict.fromkeys(inside))
        line, column = self.position(location)
        return f"{self.path}:{line}:{column}" if line else self.path


def read_yaml(path: Path) -> YamlFile:
    """Reads one YAML document; ConfigError with the position when it is not one."""
    return parse_yaml(read_text(path, ConfigError), str(path))


def parse_yaml(text: str, name: str, first_line: int = 1) -> YamlFile:
    """As `read_yaml`, from a string; `name` stands for the file in messages.

    `first_line`: where the text begins in that file.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{name}: {len(text):,} characters; a file may have {LONGEST:,}")
    marks: dict[Location, tuple[int, int]] = {(): (first_line, 1)}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        data = None
        if root is not None:
            _weigh(root, {}, set())
            _collect(root, (), marks, first_line)
            data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + first_line}:{mark.column + 1}" if mark else name
        why = error.problem or error.context
        kind = "" if isinstance(error, _Refused) else "not valid YAML: "
        raise ConfigError(f"{place}: {kind}{why}") from error
    except ReaderError as error:  # a character that YAML does not allow
        before = text[: error.position]
        line = before.count("\n") + first_line
        place = f"{name}:{line}:{len(before) - before.rfind(chr(10))}"
        raise ConfigError(
            f"{place}: not valid YAML: the character U+{ord(text[error.position]):04X}"
        ) from error
    return YamlFile(name, data, marks)


LONGEST = 4_000_000  # characters of a file
DEEPEST = 50  # lists and mappings inside one another
MOST = 100_000  # values of a file, aliases written out
_TAG = "tag:yaml.org,2002:"
_KNOWN = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "timestamp")}


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows and no file of ours may say."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; what is too deep, or no value, is an error with a position."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {DEEPEST} lists and mappings inside one another",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            if node.tag not in (_TAG + "seq", _TAG + "map"):
                raise _Refused(f"the tag {_tag(node)} is not known here: take it out", node)
            return super().construct_object(node, deep)
        if node.tag not in _KNOWN:
            hint = f"put '{node.value}' into quotes" if node.value in ("=", "<<") else "take it out"
            raise _Refused(f"the tag {_tag(node)} is not known here: {hint}", node)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            text = _short(node.value)
            raise _Refused(
                f"{text} is no {_tag(node)}: mend it, or put it in quotes", node
            ) from error
        if isinstance(value, int) and abs(value) > WIDEST:
            raise _Refused("the number does not fit 64 bits", node)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise _Refused("half a character (a lone surrogate): write the whole one", node)
        _refuse_ambiguous(node, value)
        return value


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(_TAG, "!!")


def _refuse_ambiguous(node: yaml.ScalarNode, value: Any) -> None:
    """YAML 1.1 reads 010 as 8 and 12:30 as 750: nobody means that, and nobody would see it."""
    if node.tag not in (_TAG + "int", _TAG + "float"):
        return
    plain = node.value.lstrip("+-")
    if ":" in plain or (re.fullmatch(r"0[0-9_]+", plain) and plain.strip("0_")):
        raise _Refused(
            f"'{node.value}' would be read as the number {value}: write {value}, "
            f"or '{node.value}' in quotes where text is meant",
            node,
        )


def _weigh(node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """How many values a node holds with its aliases written out, and how deep they stand."""
    if id(node) in above:
        raise _Refused("an alias (*) stands inside what it names", node)
    if id(node) in known:
        return known[id(node)]
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    above.add(id(node))
    sizes = [_weigh(part, known, above) for part in inner]
    above.discard(id(node))
    size, depth = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
    if size > MOST or depth > DEEPEST:
        raise _Refused(
            f"its aliases (*) written out, this holds {size:,} values, {depth} deep; a file may "
            f"hold {MOST:,}, {DEEPEST} deep",
            node,
        )
    known[id(node)] = size, depth
    return size, depth


def _collect(
    node: yaml.Node, at: Location, marks: dict[Location, tuple[int, int]], first_line: int
) -> None:
    """The place of every value; a key that is given twice is refused."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key must be a word, not a list or a mapping", key)
            here = (*at, key.value)
            marks[here] = (key.start_mark.line + first_line, key.start_mark.column + 1)
            if key.value in seen:  # YAML would silently keep the last one
                raise _Refused(f"the key '{key.value}' is given twice", key)
            seen.add(key.value)
            _collect(value, here, marks, first_line)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            marks[(*at, i)] = (value.start_mark.line + first_line, value.start_mark.column + 1)
            _collect(value, (*at, i), marks, first_line)


SHOWN = 40  # faults of a file that are told


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place of a file."""

    position: tuple[int, int]
    text: str  # with file, line and column


def validate(model: type[M], file: YamlFile) -> M:
    """The file as a `model`. ConfigError lists every fault, one a line, each with its position."""
    found, faults = examine(model, file)
    if found is None:
        raise ConfigError(told(faults))
    return found


def told(faults: Sequence[Fault]) -> str:
    """The faults, one a line; of very many the first."""
    more = [f"… and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
    return "\n".join([fault.text for fault in faults[:SHOWN]] + more)


def examine(model: type[M], file: YamlFile) -> tuple[M | None, list[Fault]]:
    """As `validate`, but tells the faults, for callers that have more of their own to tell."""
    if not isinstance(file.data, dict):
        text = f"{file.path}: expected a mapping of keys, got {_short(file.data)}"
        return None, [Fault((0, 0), text)]
    try:
        return model.model_validate(file.data), []
    except ValidationError as error:
        return None, faults_of(model, file, error)


def faults_of(model: type[BaseModel], file: YamlFile, error: ValidationError) -> list[Fault]:
    """What pydantic found wrong in the file, in its order."""
    errors = sorted(error.errors(), key=lambda e: file.position(tuple(e["loc"])))
    return [Fault(file.position(tuple(e["loc"])), _fault(model, file, e)) for e in errors]


def _fault(model: type[BaseModel], file: YamlFile, error: Any) -> str:
    location: Location = tuple(error["loc"])
    name = ".".join(str(part) for part in location)
    where = file.where(location)
    match error["type"]:
        case "extra_forbidden":
            known = known_keys(model, location[:-1])
            return f"{where}: unknown key '{location[-1]}'.{nearest(str(location[-1]), known)}"
        case "missing":
            return f"{where}: '{name}' is missing"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{where}: {name + ': ' if name else ''}{message}"
        case "unknown_name":  # it says what came
            return f"{where}: '{name}': {error['msg']}"
        case _:
            text = error["type"] == "string_type" and isinstance(error["input"], float | int | date)
            hint = ": put it in quotes" if text else ""
            if error["type"] == "literal_error":  # which lists the choices
                close = nearest(str(error["input"]), re.findall(r"'(\w+)'", error["msg"]))
                hint = f".{close}" if "Did you mean" in close else ""
            return f"{where}: '{name}': {error['msg']}, got {_short(error['input'])}{hint}"


def known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys allowed at a place inside a model, following its field types."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        known = current.model_fields.get(str(part))
        current = _inner_model(known.annotation) if known else current
    return list(current.model_fields) if current else []


def default_at(model: type[BaseModel], location: Sequence[str]) -> Any:
    """The default of a field inside a model, following the field types; None where it has none."""
    *above, last = location
    for part in above:
        inner = _inner_model(model.model_fields[part].annotation)
        if inner is None:
            raise KeyError(part)
        model = inner
    found = model.model_fields[last]
    return None if found.is_required() else found.get_default(call_default_factory=True)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _inner_model(inner)
        if found:
            return found
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
