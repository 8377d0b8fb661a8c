"""Code of people's own that a config names, `module:name`: found, loaded, checked, and hashed.

A module is looked for in the working folder first, then beside the config file, then among what is
installed. `docs/extending.md` has an example of each kind.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError, RlaifError, nearest
from rlaif.files.own.keys import function_key, source_of
from rlaif.records import content_id

PATTERN = r"^[^\W\d][\w.]*:[^\W\d]\w*$"  # of `module:name`
_beside: list[str] = []  # the folders of the configs that were read


def is_named(value: str) -> bool:
    """Whether this is `module:name`, and so may be code of somebody's own."""
    return re.fullmatch(PATTERN, value) is not None


def unknown(name: str, listed: Collection[str], called: str, own: str) -> str | None:
    """What is wrong with a name that is neither `listed` nor `module:name`; None for those.

    The message is `called`, such as "unknown method", the name, the nearest that is listed, and
    `own`: how one of somebody's own is named.
    """
    if name in listed or is_named(name):
        return None
    return f"{called} '{name}'.{nearest(name, listed)} {own} (docs/extending.md)"


def look_beside(folder: Path) -> None:
    """Has modules looked for in this folder too, behind all others: that of a config file."""
    path = str(folder.resolve())
    if path not in _beside:
        _beside.append(path)
    if path not in sys.path:
        sys.path.append(path)


def looked_in() -> tuple[str, ...]:
    """The folders in which modules are looked for here, for another process to `look_in`."""
    return str(Path.cwd()), *filter(None, sys.path)


def look_in(folders: Iterable[str]) -> None:
    """Has modules looked for in these folders too, behind those of this process."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def load(name: str, what: str) -> Any:
    """What `module:name` names. `what` is it, such as `reward function`, for errors.

    ConfigError where the module cannot be imported or has nothing of that name.
    """
    module, colon, inner = name.partition(":")
    if not (module and colon and inner):
        raise ConfigError(f"a {what} is named `module:{_kind(what)}`, got '{name}'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):  # what it prints is not what a command says
            found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # people's modules do what they like
        file = getattr(sys.modules.get(module), "__file__", None) or str(
            source_file(name) or Path(here).joinpath(*module.split(".")).with_suffix(".py")
        )
        raise ConfigError(
            f"cannot import the {what} {shown(name)[1:-1]}: the module {module!r} "
            f"{did(error, file)}. It is looked for in the working folder {here}, "
            + "".join(f"then beside the config in {f}, " for f in _beside if f != here)
            + "then among what is installed"
        ) from error
    wanted = getattr(found, inner, None)
    if not callable(wanted):
        known = [k for k, v in vars(found).items() if callable(v) and not k.startswith("_")]
        raise ConfigError(
            f"{module} has no {_kind(what)} '{inner}' for the {_short(what)} {name}."
            f"{nearest(inner, known)}"
        )
    return wanted


def _kind(what: str) -> str:
    return "Class" if what == "judge" else "function"


def _short(what: str) -> str:
    return what.removesuffix(" function")


def missing(name: str, what: str) -> str | None:
    """Why no module of that name can be imported, or None. Nothing is run."""
    top = name.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    if any((f / f"{top}.py").is_file() or (f / top).is_dir() for f in (here, *map(Path, _beside))):
        return None
    with suppress(ImportError, ValueError):
        if importlib.util.find_spec(top) is not None:
            return None
    beside = "".join(f", {folder}" for folder in _beside if folder != str(here))
    return f"no module {top} for the {what} {name} (looked in {here}{beside} and in sys.path)"


def source_file(name: str) -> Path | None:
    """The file of a module in the working folder or beside the config; None for another."""
    file = Path(*name.partition(":")[0].split(".")).with_suffix(".py")
    return next((f / file for f in (Path(), *map(Path, _beside)) if (f / file).is_file()), None)


def key_of(held: Sequence[Any], name: str) -> str:
    """A hash of functions and methods of somebody's own: the source of the module that `name`
    names, and all that they hold and read, by content. What has no content to read, such as a
    connection, stands in it with its type and the name."""
    source = source_of(sys.modules.get(name.partition(":")[0]))
    return content_id("own", name, source, *(function_key(one)[0] for one in held))


def require(found: Any, members: Sequence[str], name: str, protocol: str) -> None:
    """ConfigError that names what `found`, made by `name`, lacks of a protocol."""
    lacks = [member for member in members if not hasattr(found, member)]
    if lacks:
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ConfigError(
            f"{name}: expected {protocol}, got {kind}, which has no {', '.join(lacks)}. "
            "docs/extending.md has an example"
        )


def takes_nothing(made_by: Any) -> bool:
    """Whether a class is to be called without an argument."""
    try:
        return not inspect.signature(made_by).parameters
    except (TypeError, ValueError):  # written in C
        return False


def raised(error: BaseException, name: str, what: str) -> BaseException:
    """The error to raise for what code of somebody's own raised: rlaif's own pass as they are."""
    if isinstance(error, RlaifError) or type(error).__module__.startswith("rlaif."):
        return error
    module = sys.modules.get(name.partition(":")[0])
    return ConfigError(f"the {what} {name} {did(error, getattr(module, '__file__', None) or '')}")


def shown(value: Any) -> str:
    """A value on one line, cut to what tells it apart."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # people's classes raise what they like
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def did(error: BaseException, file: str = "") -> str:
    """What a function did, and the line of its file (the last of any, else) where it did."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[2])
    written = [
        f
        for f in frames
        if not f.filename.startswith((ours, "<frozen")) and f.filename != importlib.__file__
    ]
    own = [frame for frame in written if frame.filename == file] or written
    where = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.lineno:
        where = f" in {Path(error.filename or '').name}, line {error.lineno}"
    if isinstance(error, SystemExit):
        return f"asked the process to exit ({shown(error.code)}){where}"
    said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    said = said if len(said) <= 300 else f"{said[:297]}..."
    return f"raised {type(error).__name__}{': ' * bool(said)}{said}{where}"
