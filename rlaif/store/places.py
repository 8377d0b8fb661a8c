"""Fields of a config that name a file, a folder or a model: whether it is there, and a run's copy.

A field says what it names where it is declared, as `Annotated[str, Place("template")]`; whatever
asks about files goes over the fields and needs no list of them. A run directory keeps a copy of
each file in `inputs/FIELD/`, and its `run.yaml` names the copies from there, by `./`. A run that
lies where it was made follows the files themselves; one that was copied, moved, or has lost them
goes on with its copies.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from rlaif.constitution import Constitution
from rlaif.errors import ConfigError, DataError
from rlaif.files import own
from rlaif.files.resources import find
from rlaif.files.settings import Kind
from rlaif.files.settings import Place as Place
from rlaif.files.templates import load_template
from rlaif.files.yamlfile import Location

INPUTS = "inputs"
# What training stages may leave in `models/` that answers prompts.
POLICIES = ("sft", "dpo", "ppo", "grpo", "rloo", "online-dpo")
ANSWERS = "answers.json"  # in evaluation/: the keys of what each policy answered the last time
BASE = "base"  # `policy.model`, from which training starts
KEPT_BYTES = 2**30  # a larger file or folder of rows is named by its path, not copied
_HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_COPYING = ".copying-"  # what a killed copy leaves; the next one replaces it
# What names something shipped or, as `module:name`, code of one's own.
_CODE = {"judge": "judge", "engine": "engine function", "reader": "reader function"}
_WORDS = {
    "rows": ("tiny", "best"),
    "model": ("tiny",),
    "policy": ("tiny", BASE, *POLICIES),
    "reward": ("model", "judge"),
    "examples": ("auto", "none"),
}
_MODEL = ("config.json", "adapter_config.json", "*.gguf")
_OF_THE_RUN = ", ".join((BASE, *POLICIES))


@dataclass(frozen=True, slots=True)
class Named:
    """A field that names something, and what it says."""

    location: Location
    kind: Kind
    value: str

    @property
    def name(self) -> str:
        """`judge.template`, say."""
        return ".".join(map(str, self.location))


def named(config: BaseModel, at: Location = ()) -> Iterator[Named]:
    """All such fields of a config that are set, the models of a server and of an engine of
    one's own left out."""
    served = getattr(config, "engine", "hf") not in ("hf", "vllm")  # these load a folder
    for name, declared in type(config).model_fields.items():
        value = getattr(config, name)
        place = next((m for m in declared.metadata if isinstance(m, Place)), None)
        if isinstance(value, BaseModel):
            yield from named(value, (*at, name))
        elif isinstance(value, tuple):
            for i, part in enumerate(value):
                if isinstance(part, BaseModel):
                    yield from named(part, (*at, name, i))
                elif place is not None:
                    yield Named((*at, name, i), place.kind, part)
        elif isinstance(value, str) and place and not (served and place.kind == "model"):
            yield Named((*at, name), place.kind, value)


def is_code(one: Named) -> bool:
    """Whether a field names code of somebody's own, `module:name`."""
    if one.kind == "reward":
        return ":" in one.value and not Path(one.value).is_dir()
    return one.kind in _CODE and own.is_named(one.value)


# ----------------------------------------------------------------------------- is it there?


def located(one: Named) -> Path | None:
    """Where it lies on this machine; None for what ships, is on the hub, or is not there."""
    path, value = Path(one.value), one.value
    match one.kind:
        case "constitution":
            with suppress(ConfigError):
                return find("constitutions", value, ".yaml")
            return None
        case "template":
            return path if path.is_file() else None
        case "examples" if value not in _WORDS["examples"]:
            return path if path.is_file() else None
        case "rows" if path.is_file() or (path.is_dir() and value not in _WORDS["rows"]):
            return path
        case "rows" if ":" in value and Path(value.rpartition(":")[0]).exists():
            return Path(value.rpartition(":")[0])
        case "rows" if _is_glob(value) and path.parent.is_dir() and any(_matches(path)):
            return path
        case "policy" if value in _WORDS["policy"]:
            return None
        case "model" | "policy" if value != "tiny" or (path / "config.json").is_file():
            return path if path.is_dir() or (path.suffix == ".gguf" and path.is_file()) else None
        case "adapter" | "reward":
            return path if path.is_dir() else None
    return None


def missing(one: Named) -> str | None:
    """Why what a field names cannot be used, or None. A name on the hub is not looked up."""
    value = one.value
    if one.kind == "run" or value in _WORDS.get(one.kind, ()):
        return None
    try:
        if one.kind == "constitution":
            Constitution.load(value)
        elif one.kind == "template":
            load_template(value)
        elif one.kind == "examples":
            _read_examples(value)
    except (ConfigError, DataError) as error:
        return str(error)
    if one.kind in ("constitution", "template", "examples"):
        return None
    if one.kind in _CODE:
        return own.missing(value, _CODE[one.kind]) if is_code(one) else None
    if is_code(one):
        return own.missing(value, "reward function")
    path = located(one)
    if path is None and _is_nested_glob(one):
        return None
    if path is None:
        what = {"rows": "file or folder", "policy": f"policy ({_OF_THE_RUN}) or folder"}
        on_hub = one.kind in ("rows", "model", "policy") and _maybe_on_hub(one)
        here = f"no such {what.get(one.kind, 'folder')}: {value} (looked in {Path.cwd()})"
        return None if on_hub else here
    needed = {
        "model": _MODEL,
        "policy": _MODEL,
        "reward": ("config.json",),
        "adapter": ("adapter_config.json",),
    }.get(one.kind)
    if needed and path.is_dir() and not any(any(path.glob(name)) for name in needed):
        return f"no model in {value}: expected a folder with {' or '.join(needed)}"
    return None


def _read_examples(value: str) -> None:
    from rlaif.files.readers.examples import read_examples

    read_examples(find("prompts", value, ".yaml"))


def _maybe_on_hub(one: Named) -> bool:
    from rlaif.files.readers.sources import is_hub_name

    if one.kind == "rows":  # a data set's name has an owner
        return is_hub_name(one.value)
    name, _, split = one.value.partition(":")
    return not split and bool(_HUB.fullmatch(name))


# ------------------------------------------------------------------------------ a run's copies


@dataclass
class Kept:
    """What a run keeps of its inputs: `data` is the config for `run.yaml`, `files` the record."""

    data: dict[str, Any]
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # since the run took them last
    too_large: list[str] = field(default_factory=list)

    def record(self, root: Path) -> dict[str, Any]:
        """For the manifest. `at` is where the run lies: elsewhere it no longer follows `from`."""
        return {"at": str(root.resolve()), "files": self.files}


def keep(config: BaseModel, root: Path, before: Mapping[str, Any]) -> Kept:
    """Copies the files that a config names into a run directory.

    `before` is the record of an earlier call. Raises what reading a constitution raises, and
    DataError where a copy cannot be written.
    """
    kept = Kept(config.model_dump(mode="json"))
    known: Mapping[str, Mapping[str, str]] = before.get("files") or {}
    for one in named(config):
        value = _keep(one, root, known.get(one.name) or {}, kept)
        _put(kept.data, one.location, value)
    return kept


def _keep(one: Named, root: Path, known: Mapping[str, str], kept: Kept) -> str:
    """The value of a field in run.yaml; its file is copied, and recorded, where there is one."""
    if one.kind == "run":
        return "."
    if is_code(one):
        _keep_module(one, root)
        return one.value
    path = located(one)
    if path is None:
        return str(Path(one.value).absolute()) if _is_nested_glob(one) else one.value
    inside = _inside(path, root)
    if inside is not None and (one.kind != "constitution" or inside.startswith(INPUTS)):
        split = _split_of(one)
        if known.get("kept") == f"./{inside}":  # the copy itself: it stands alone from now on
            kept.files[one.name] = {k: v for k, v in known.items() if k != "from"}
        return f"./{inside}{split}"
    if one.kind in ("model", "policy", "adapter", "reward"):
        return str(path.resolve())
    return _copied(one, path, root, known, kept)


def _copied(one: Named, path: Path, root: Path, known: Mapping[str, str], kept: Kept) -> str:
    split = _split_of(one)
    absolute = str(path.absolute() if _is_glob(path.name) else path.resolve())
    if one.kind == "rows" and _size(path) > KEPT_BYTES:
        kept.too_large.append(one.value)
        return absolute + split
    found = digest(one.kind, path)
    shipped = one.kind == "constitution" and not Path(one.value).is_file()
    origin = one.value if shipped else absolute + split
    if known.get("from") == origin and known.get("digest") not in (None, found):
        kept.changed.append(one.value)
    value = f"./{INPUTS}/{one.name}/{path.name}{split}"
    target = root / INPUTS / one.name
    if known.get("digest") != found or known.get("kept") != value or not target.is_dir():
        try:
            _copy(one.kind, path, target)
        except OSError as error:
            raise DataError(
                f"cannot keep a copy of {one.value} in {target}: {error.strerror or error}"
            ) from error
    kept.files[one.name] = {"from": origin, "kept": value, "digest": found}
    return value


def _copy(kind: Kind, path: Path, target: Path) -> None:
    """The file, folder or files of a pattern as all that lies in `target`, whole or not at all."""
    aside = target.with_name(f"{_COPYING}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if kind == "constitution":
            (aside / path.name).write_text(_flat(Constitution.load(path)), encoding="utf-8")
        elif path.is_dir():
            shutil.copytree(path, aside / path.name)
        else:
            for file in _matches(path):
                shutil.copyfile(file, aside / file.name)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flat(constitution: Constitution) -> str:
    """One file with all that a constitution inherits."""
    data = constitution.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    if Constitution.parse(text).hash != constitution.hash:
        raise DataError(f"constitution '{constitution.name}' cannot be written and read back")
    return text


def _keep_module(one: Named, root: Path) -> None:
    """The file of code of one's own; it is found again by `seen_from`."""
    source = own.source_file(one.value)
    whole = "." not in one.value.partition(":")[0]  # a package is not copied in part
    if whole and source is not None and _inside(source, root) is None:
        _copy(one.kind, source, root / INPUTS / one.name)


def digest(kind: Kind, path: Path) -> str:
    """Of what a file, a folder or the files of a pattern say."""
    if kind == "constitution":
        return Constitution.load(path).hash
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else _matches(path)
        found = hashlib.sha256()
        for file in filter(Path.is_file, files):
            with file.open("rb") as content:
                inner = hashlib.file_digest(content, "sha256").hexdigest()
            found.update(f"{file.relative_to(path.parent)}\0{inner}\0".encode())
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return found.hexdigest()[:20]


def seen_from(
    root: Path, config: BaseModel, data: dict[str, Any], record: Mapping[str, Any]
) -> None:
    """Puts into `data`, the config of a run's `run.yaml`, what its `./` mean in `root`."""
    here = record.get("at") == str(root.resolve())
    files: Mapping[str, Mapping[str, str]] = record.get("files") or {}
    for one in named(config):
        known = files.get(one.name) or {}
        if one.kind == "run":
            _put(data, one.location, str(root))
        elif is_code(one) and (root / INPUTS / one.name).is_dir():
            sys.path.append(str((root / INPUTS / one.name).resolve()))
        elif one.value.startswith("./"):
            followed = here and known.get("kept") == one.value
            for value in (known.get("from") if followed else None, str(root / one.value)):
                if value and located(Named(one.location, one.kind, value)) is not None:
                    _put(data, one.location, _short(value))
                    break


def unread(record: Mapping[str, Any], root: Path) -> list[str]:
    """Files that changed since a run took them, by the names that people know them by."""
    if record.get("at") != str(root.resolve()):
        return []
    found = []
    for name, known in (record.get("files") or {}).items():
        if "from" not in known:
            continue
        kind: Kind = "rows"
        if name.rpartition(".")[2] == "constitution":
            kind = "constitution"
        path = located(Named((name,), kind, known["from"]))
        try:
            if path is not None and digest(kind, path) != known.get("digest"):
                found.append(_short(known["from"]))
        except (ConfigError, DataError):
            found.append(_short(known["from"]))
    return found


def _split_of(one: Named) -> str:
    """`:split`, where a folder of rows is named with one."""
    plain = one.kind != "rows" or Path(one.value).exists() or _is_glob(one.value)
    return "" if plain or ":" not in one.value else ":" + one.value.rpartition(":")[2]


def _short(path: str) -> str:
    """A path as people in this folder would write it."""
    with suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path


def _inside(path: Path, root: Path) -> str | None:
    with suppress(ValueError):
        return path.resolve().relative_to(root.resolve()).as_posix()
    return None


def _is_glob(value: str) -> bool:
    return any(c in value for c in "*?[")


def _is_nested_glob(one: Named) -> bool:
    """A pattern over several folders, whose files are read where they lie and not copied."""
    above = str(Path(one.value).parent)
    return one.kind == "rows" and _is_glob(above) and any(glob.iglob(one.value, recursive=True))


def _matches(path: Path) -> list[Path]:
    """The file, or those of a pattern."""
    if path.is_file() or not _is_glob(path.name):
        return [path]
    return sorted(path.parent.glob(path.name))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else _matches(path)
    return sum(file.stat().st_size for file in files if file.is_file())


def _put(data: Any, location: Location, value: str) -> None:
    *above, last = location
    for part in above:
        data = data[part]
    data[last] = value
