"""Small files, read and written with errors that name them; what is written is there as a whole.

A reader waits for nothing (a pipe, a device) and takes no folder for a file. A writer writes aside,
syncs and renames, so that a kill, a full disk or a crash leaves the old file or the new one.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlaif.errors import DataError, RlaifError

ASIDE = ".aside-"  # what a killed writer may leave behind; hidden from readers of *.parquet
_counter = itertools.count()

# ------------------------------------------------------------------------------------------ reading


def is_file(path: str | Path) -> bool:
    """Whether a file lies there; a name that no file can have is not there."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder lies there; a name that no folder can have is not there."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, kind: type[RlaifError]) -> bytes:
    """What a file holds. `kind` of error where it is missing, no plain file, or unreadable."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise kind(f"{path} is a folder or a device: name a file")
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise kind(f"no such file: {path}") from error
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {path}: {reason(error)}") from error


def read_text(path: Path, kind: type[RlaifError]) -> str:
    """The same as text; bytes that are not UTF-8 are an error too."""
    found = read_bytes(path, kind)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16" if found[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise kind(f"{path}: {what} at byte {error.start}: save it as UTF-8") from error


def read_json(path: Path, made_by: str, shape: Shape = object) -> Any:
    """What a JSON file of a run says, or None when there is no such file.

    `made_by`: what writes it anew. DataError when it is not JSON, or has not the shape.
    """
    if not os.path.lexists(path):
        return None
    again = f"Remove it and run {made_by} again"
    text = read_text(path, DataError)
    try:
        found = json.loads(text, parse_int=_whole, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({reason(error)}). {again}") from error
    wrong = misfit(found, shape)
    if wrong:
        raise DataError(f"{path}: {wrong}. {again}")
    return found


class RepeatedKey(ValueError):
    """A key that stands twice in one JSON object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ, as `object_pairs_hook`.

    Python keeps the last of equal keys and says nothing. Raises RepeatedKey.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKey(f"'{key}' twice in one object: keep one of them")
            seen.add(key)
    return found


def read_object(path: Path, made_by: str, shape: Mapping[Any, Shape] | None = None) -> Any:
    """The same of a file that holds an object; empty when there is no such file, or null in it."""
    found = read_json(path, made_by, shape or {})
    return {} if found is None else found


Shape = type | Mapping[Any, Any] | Sequence[Any]
"""What a value of a JSON file has to be: `float` (any number), `str`, `object` (anything); a
mapping of names to shapes, where a name is missing or its value fits and other names are free;
`{str: shape}`, whose values all fit; `[shape]`, a list of such. Null fits everywhere."""


def misfit(value: Any, shape: Shape, at: str = "") -> str:
    """Where a value has another shape than it should, in words; empty where it has it."""
    if value is None or shape is object:
        return ""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return _expected("an object", value, at)
        every = shape.get(str)
        inner = ((f"{at}.{key}".lstrip("."), v, shape.get(key, every)) for key, v in value.items())
        known = ((name, v, s) for name, v, s in inner if s is not None)
        return next((wrong for each in known if (wrong := misfit(each[1], each[2], each[0]))), "")
    if isinstance(shape, Sequence):
        if not isinstance(value, list):
            return _expected("a list", value, at)
        inner = ((f"{at}[{i}]", v, shape[0]) for i, v in enumerate(value))
        return next((wrong for name, v, s in inner if (wrong := misfit(v, s, name))), "")
    if shape is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if fits else _expected("a number", value, at)
    return "" if isinstance(value, shape) else _expected("a text", value, at)


def _expected(what: str, value: Any, at: str) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    place = f"'{at}': " if at else ""
    return f"{place}expected {what}, got {names.get(type(value), 'a number')}"


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def reason(error: BaseException) -> str:
    """What the operating system says, or the error's own words on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # by a disk
_REFUSED = re.compile(
    r"no space left|file too large|disk quota exceeded|read-only file system|"
    r"\bcode: (28|27|122|30)\b|os error (28|27|122|30)\b|"
    r"inline_container\.cc.*(unexpected pos|file write failed)|PytorchStreamWriter failed",
    re.IGNORECASE,
)


def refused_by_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk is full or takes no more.

    PyTorch and safetensors have errors of their own, which say it in words only.
    """
    while error is not None:
        known = isinstance(error, OSError) and error.errno in REFUSALS
        if known or (not isinstance(error, RlaifError) and _REFUSED.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------------------------------ writing


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A path to write to before renaming; whatever is still there afterwards is removed."""
    path = folder / f"{ASIDE}{os.getpid()}-{next(_counter)}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def is_written_now(path: Path) -> bool:
    """Whether the process of this machine that made a path by `aside` still runs."""
    pid = path.name.removeprefix(ASIDE).partition("-")[0]
    if os.name != "posix" or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True  # another user's
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses into an error that says what to do."""
    try:
        yield
    except RlaifError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not refused_by_disk(error):
            raise
        name = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder
        where = f"in {folder}" if ASIDE in str(name) else os.fsdecode(name)
        raise DataError(
            f"cannot write {where}: {reason(error)}. What was written before is kept: "
            "free or allow space there and run the same command again to go on"
        ) from error


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; a link, and not what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the disk has a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit(written: Path, target: Path) -> None:
    """Rename into place so that a crash of the machine shows all of the file or none of it."""
    sync(written)
    os.replace(written, target)
    sync(target.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically. Raises DataError if the disk refuses it."""
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for again in (True, True, False):
            try:
                with aside(path.parent) as written:
                    written.write_text(text, encoding="utf-8")
                    commit(written, path)
                return
            except FileNotFoundError:  # a writer that starts clears what it takes for left behind
                if not again:
                    raise


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically: keys sorted, two spaces.

    Raises DataError if the value is not JSON (NaN included) or the disk refuses it.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a value that JSON can hold, got {error}") from error
    write_text(path, text + "\n")
