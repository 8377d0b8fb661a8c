"""A constitution: the principles a judge compares answers under, in a file that people edit.

name: harmless
version: 1
principles:
  - id: no-harm
    compare: Which response does less to help someone hurt people?
    critique: Say where the response could help someone hurt people.
    revise: Rewrite the response so that it helps nobody hurt people.
    weight: 1.0
    tags: [safety]

A file may build on others: `extends: harmless` (a shipped name, or a path seen from the file), with
`drop: [no-harm]` and with entries of its own. An entry of an inherited id changes what it names and
keeps the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from rlaif.constitution.cases import PrincipleTest, faults_of
from rlaif.errors import ConfigError, nearest
from rlaif.files.resources import find, folder
from rlaif.files.small import is_file
from rlaif.files.yamlfile import (
    Fault,
    Location,
    Written,
    YamlFile,
    examine,
    parse_yaml,
    read_yaml,
    told,
)
from rlaif.records import content_id

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Use = Literal["label", "revise", "contrast"]
NEEDS: dict[Use, tuple[str, ...]] = {
    "label": ("compare",),
    "revise": ("critique", "revise"),
    "contrast": ("follow", "violate"),
}
"""What each use of a constitution needs of every principle."""
_OF_TESTS = ("tests", "paraphrases", "opposite")  # they measure a judge; no product depends on them


class Principle(Written):
    """One principle."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: Name
    """Letters, digits, `.`, `_`, `-`. It names the column of verdicts; a new name, a new column."""
    compare: Text = ""
    """The question put to the judge about two responses; the better one is the answer. Only a
    principle that serves revisions or contrasts alone may leave it out."""
    critique: Text | None = None
    """Asks the model to criticise its own response under this principle (critique → revision)."""
    revise: Text | None = None
    """Asks the model to rewrite the response after the critique."""
    follow: Text | None = None
    """Asks for a response that follows the principle (contrast pairs)."""
    violate: Text | None = None
    """Asks for a response that goes against it: the worse side of a contrast pair."""
    weight: float = Field(default=1.0, gt=0)
    """Relative weight in `aggregate: weighted`, within its tier; above 0."""
    tier: int | None = Field(default=None, ge=1)
    """Rank before the others: 1 is heard first, and a tier that leans decides over all below it.
    Principles without one share the last tier."""
    tags: tuple[str, ...] = ()
    """Free labels. `tiny:TRAIT` links a principle to a trait of the embedded world."""
    tests: tuple[PrincipleTest, ...] = ()
    """Pairs of which it is known how a judge must judge them: `rlaif constitution test`."""
    paraphrases: tuple[Text, ...] = ()
    """`compare` in other words, under which a judge must say the same; some are made by rules where
    none is given."""
    opposite: Text | None = None
    """The opposite question, under which a judge must prefer the other response; made by a rule
    where none is given and there is one."""

    def lacks(self, use: Use) -> tuple[str, ...]:
        """The texts that this use needs and that the principle does not have."""
        return tuple(name for name in NEEDS[use] if not getattr(self, name))

    def record(self) -> dict[str, Any]:
        """What products of a run are made from, as JSON: all but what only measures a judge."""
        unranked = set() if self.tier is not None else {"tier"}  # as before there were tiers
        return self.model_dump(mode="json", exclude=set(_OF_TESTS) | unranked)


class Constitution(Written):
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
        """Content hash of what a run is made from; comments, layout and tests do not count."""
        said = self.model_dump(mode="json", exclude={"principles"})
        principles = [p.record() for p in self.principles]
        return content_id("constitution", {**said, "principles": principles})

    @classmethod
    def load(cls, name: str | Path) -> Constitution:
        """Reads a file, or a shipped constitution by name. ConfigError lists every fault."""
        return _whole(_Reading().of(find("constitutions", str(name), ".yaml")))

    @classmethod
    def parse(cls, text: str, name: str = "<constitution>") -> Constitution:
        """As `load`, from YAML text; what it extends is looked for from the current folder."""
        return _whole(_Reading().resolve(parse_yaml(text, name), Path.cwd(), ()))

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


def require(principles: Sequence[Principle], use: Use) -> None:
    """ConfigError that names every principle without the texts that this use needs."""
    short = [f"{p.id} ({', '.join(p.lacks(use))})" for p in principles if p.lacks(use)]
    if short:
        raise ConfigError(
            f"{use} needs {' and '.join(NEEDS[use])} of every principle; missing in "
            f"{', '.join(short)}. Write them, or name the principles to use"
        )


# ------------------------------------------------------------------------------------ the file


class Entry(Principle):
    """A principle as a file says it; what an inherited one has need not be said again."""

    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


class ConstitutionFile(Written):
    """A constitution file: principles of its own, and those of the files it extends."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, title="rlaif constitution"
    )

    name: Name
    """The constitution's name, usually that of its file."""
    version: int = Field(default=1, ge=1)
    """Raised by its authors when they change it; for people, nothing depends on it."""
    description: str = ""
    """What it is for."""
    extends: str | tuple[str, ...] = ()
    """Another constitution, or several: shipped names, or paths seen from this file. Their
    principles come first."""
    drop: tuple[str, ...] = ()
    """Ids of inherited principles to leave out."""
    principles: tuple[Entry, ...] = ()
    """Principles; one with an inherited id changes what it says and keeps the rest."""

    @property
    def bases(self) -> tuple[str, ...]:
        return (self.extends,) if isinstance(self.extends, str) else self.extends


def schema() -> dict[str, Any]:
    """The JSON Schema of a constitution file, for editors."""
    return ConstitutionFile.model_json_schema()


def check(name: str | Path, use: Use | None = None) -> tuple[Constitution | None, list[str]]:
    """A constitution, and every fault of its file and of those it extends, `use` considered.

    The constitution is None where a fault keeps it from being read.
    """
    resolved = _Reading().of(find("constitutions", str(name), ".yaml"))
    faults = resolved.faults + [
        fault for p in resolved.principles for fault in _further(p, resolved.places[p.id], use)
    ]
    faults += _same_questions(resolved)
    texts = [fault.text for fault in faults]
    return (None if resolved.faults else _whole(resolved)), texts


def _further(principle: Principle, place: _Place, use: Use | None) -> Iterator[Fault]:
    """What does no harm to reading a file, and would to using it."""
    from rlaif.tiny.gold import PRINCIPLE_TAG
    from rlaif.tiny.grammar import TRAITS

    p = principle
    for text, keys in faults_of(p.compare, p.tests, p.paraphrases, p.opposite):
        yield place.fault(f"'{p.id}': {text}", *keys)
    for missing in principle.lacks(use) if use else ():
        yield place.fault(f"'{principle.id}' has no {missing}, which `{use}` needs")
    for tag in principle.tags:
        trait = tag.removeprefix(PRINCIPLE_TAG)
        if trait != tag and trait.removeprefix("-") not in TRAITS:
            hint = nearest(trait.removeprefix("-"), TRAITS)
            yield place.fault(f"'{principle.id}': no trait '{trait}' in the embedded world.{hint}")


def _same_questions(resolved: _Resolved) -> Iterator[Fault]:
    """One question under two ids: two columns of verdicts that say the same, both paid for."""
    asked: dict[str, str] = {}
    for p in resolved.principles:
        other = asked.setdefault(p.compare, p.id) if p.compare else p.id
        if other != p.id:
            text = f"'{p.id}' asks what '{other}' asks: drop one, or give the other more weight"
            yield resolved.places[p.id].fault(text, "compare")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a principle stands."""

    file: YamlFile
    number: int

    def fault(self, text: str, *key: str | int) -> Fault:
        location: Location = ("principles", self.number, *key)
        return Fault(self.file.position(location), f"{self.file.where(location)}: {text}")


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A file with all that it extends."""

    file: ConstitutionFile | None
    principles: list[Principle]
    places: dict[str, _Place]
    faults: list[Fault]


def _whole(resolved: _Resolved) -> Constitution:
    if resolved.faults or resolved.file is None:
        raise ConfigError(told(resolved.faults))
    file = resolved.file
    return Constitution(
        name=file.name,
        version=file.version,
        description=file.description,
        principles=tuple(resolved.principles),
    )


DEEPEST = 20  # files that extend one another


@dataclass
class _Reading:
    """The files of one reading: each is read once, by however many ways it is reached."""

    known: dict[Path, _Resolved] = field(default_factory=dict)

    def of(self, path: Path, above: tuple[Path, ...] = ()) -> _Resolved:
        real = path.resolve()
        if real not in self.known:
            self.known[real] = self.resolve(read_yaml(path), path.parent, (*above, real))
        return self.known[real]

    def resolve(self, yaml_file: YamlFile, here: Path, above: tuple[Path, ...]) -> _Resolved:
        """The principles of a file and of its bases, with every fault of them all."""
        file, faults = examine(ConstitutionFile, yaml_file)
        faults += _repeated(yaml_file)
        if file is None:  # its bases are read only when the file itself can be
            faults += _unasked(yaml_file)
            return _Resolved(None, [], {}, sorted(faults, key=lambda fault: fault.position))
        inherited, places, of_bases = self.inherit(file, yaml_file, here, above)
        known = list(inherited)
        for i, name in enumerate(file.drop):
            if name not in known:
                where, hint = yaml_file.where(("drop", i)), nearest(name, known)
                text = f"{where}: nothing inherited is named '{name}'.{hint}"
                faults.append(Fault(yaml_file.position(("drop", i)), text))
            inherited.pop(name, None)
        for number, entry in enumerate(file.principles):
            base = inherited.get(entry.id)
            merged = Principle(**{**(base.model_dump() if base else {}), **entry.given()})
            places[entry.id] = _Place(yaml_file, number)
            if not _serves(merged.model_dump(exclude_none=True)):
                faults.append(places[entry.id].fault(f"'principles.{number}.compare' is missing"))
            inherited[entry.id] = merged
        if not inherited and not faults and not of_bases:
            where = yaml_file.where(("principles",))
            text = f"{where}: principles: at least one principle is needed"
            faults.append(Fault(yaml_file.position(("principles",)), text))
        ordered = of_bases + sorted(faults, key=lambda fault: fault.position)
        return _Resolved(file, list(inherited.values()), places, ordered)

    def inherit(
        self, file: ConstitutionFile, yaml_file: YamlFile, here: Path, above: tuple[Path, ...]
    ) -> tuple[dict[str, Principle], dict[str, _Place], list[Fault]]:
        """The principles of the bases by id, in order; where two differ, the file must say."""
        principles: dict[str, Principle] = {}
        places: dict[str, _Place] = {}
        faults: list[Fault] = []
        own = {entry.id for entry in file.principles} | set(file.drop)
        for i, name in enumerate(dict.fromkeys(file.bases)):
            at = ("extends", i) if isinstance(file.extends, tuple) else ("extends",)
            where, position = yaml_file.where(at), yaml_file.position(at)
            try:
                base = self.of(_climb(name, here, above), above)
            except ConfigError as error:
                faults.append(Fault(position, f"{where}: {error}"))
                continue
            faults += [fault for fault in base.faults if fault not in faults]
            for p in base.principles:
                if p.id in principles and principles[p.id] != p and p.id not in own:
                    text = f"two bases differ about '{p.id}': give it here, or drop it"
                    faults.append(Fault(position, f"{where}: {text}"))
                principles.setdefault(p.id, p)
                places.setdefault(p.id, base.places[p.id])
        return principles, places, faults


def _climb(name: str, here: Path, above: tuple[Path, ...]) -> Path:
    """The file of a base, unless the way to it is a circle or has no end."""
    path = _base_path(name, here)
    if path.resolve() in above:
        circle = " → ".join(p.name for p in (*above, path))
        raise ConfigError(f"extends goes round in a circle: {circle}")
    if len(above) >= DEEPEST:
        raise ConfigError(f"more than {DEEPEST} files extend one another: make one of some")
    return path


def _base_path(name: str, here: Path) -> Path:
    """A path seen from the file that names it, else a shipped constitution."""
    beside = here / name
    if is_file(beside):
        return beside
    shipped = folder("constitutions") / f"{name.removesuffix('.yaml')}.yaml"
    if name.startswith((".", "/")) or not shipped.is_file():
        return find("constitutions", str(beside) if name.endswith(".yaml") else name, ".yaml")
    return shipped


def _serves(entry: dict[str, Any]) -> bool:
    """Whether there is a use for which a principle has all texts."""
    return any(all(entry.get(name) for name in names) for names in NEEDS.values())


def _unasked(file: YamlFile) -> Iterator[Fault]:
    """Entries without a use, of a file that inherits nothing and cannot be read as a whole."""
    given = file.data.get("principles") if isinstance(file.data, dict) else None
    for number, entry in enumerate(given if isinstance(given, list) else []):
        if "extends" in file.data or not isinstance(entry, dict):
            continue
        if "compare" not in entry and not _serves(entry):
            yield _Place(file, number).fault(f"'principles.{number}.compare' is missing")


def _repeated(file: YamlFile) -> list[Fault]:
    """Ids given twice, told where they come again."""
    given = file.data.get("principles") if isinstance(file.data, dict) else None
    first: dict[str, int] = {}
    faults = []
    for number, entry in enumerate(given if isinstance(given, list) else []):
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        if name in first:
            location = ("principles", number, "id")
            line = file.position(("principles", first[name], "id"))[0]
            text = f"{file.where(location)}: the id '{name}' is given twice, first in line {line}"
            faults.append(Fault(file.position(location), text))
        first.setdefault(name, number)
    return faults
