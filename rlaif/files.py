"""Small files, read and written with errors that name them; what is written is there as a whole.

A reader waits for nothing (a pipe, a device) and takes no folder for a file. A writer writes aside,
syncs and renames, so that a kill, a full disk or a crash leaves the old file or the new one.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import stat
from collections.abc import Iterator
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


def read_json(path: Path, made_by: str) -> Any:
    """What a JSON file of a run says, or None when there is no such file.

    `made_by`: what writes it anew. DataError when it is not JSON.
    """
    if not os.path.lexists(path):
        return None
    text = read_text(path, DataError)
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not JSON ({reason(error)}). Remove it and run {made_by} again"
        ) from error


def read_object(path: Path, made_by: str) -> dict[str, Any]:
    """The same of a file that holds an object; empty when there is no such file."""
    found = read_json(path, made_by)
    if found is None and not os.path.lexists(path):
        return {}
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object. Remove it and run {made_by} again")
    return found


def reason(error: BaseException) -> str:
    """What the operating system says, or the error's own words on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


# ------------------------------------------------------------------------------------------ writing


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A path to write to before renaming; whatever is still there afterwards is removed."""
    path = folder / f"{ASIDE}{os.getpid()}-{next(_counter)}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write in {folder}: {reason(error)}. What was written before is kept: "
            "free or allow space there and run the same command again to go on"
        ) from error


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
