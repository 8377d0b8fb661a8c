"""Where rows come from: files, folders and globs of shards, saved data sets, the hub.

Nothing here knows what is in a row. Every source is read as it is asked for, a few rows at a time.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError
from rlaif.hub import offline
from rlaif.readers.fields import UNREAD, Broken, Raw, Row

Placed = Iterator[tuple[str, Raw]]

PACKED = (".gz", ".xz", ".zst", ".bz2")
KINDS = (
    ".jsonl, .json, .csv (each also .gz, .xz, .zst, .bz2), .parquet, a folder or glob of them, "
    "a folder saved by datasets.save_to_disk, or a hub name"
)
_TEXTS = (".jsonl", ".json", ".csv")
_SHARD = re.compile(r"(.+?)[-_.]\d{5}-of-\d{5}")  # as the hub numbers them
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_NOTES = ("dataset_info", "dataset_infos", "dataset_dict", "state", "config")  # not data
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+)?(:\w+)?")


def open_source(source: str, columns: Collection[str], *, allow_text: bool) -> Placed:
    """The raw rows of a source with their places. Finds the source now, reads it later.

    `columns` are those wanted of a Parquet file; of others only the names come along.
    """
    known = ".txt, " + KINDS if allow_text else KINDS
    path = Path(source)
    if path.is_file():
        return _reader(path, columns, allow_text, known)()
    folder, _, split = source.rpartition(":")
    if path.is_dir():
        return _folder(path, "", columns, known)
    if folder and Path(folder).is_dir():
        return _folder(Path(folder), split, columns, known)
    if any(mark in source for mark in "*?["):
        found = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
        if not found:
            raise DataError(f"no file matches {source} (looked in {Path.cwd()})")
        return _each([_reader(path, columns, allow_text, known) for path in found])
    if is_hub_name(source):
        return _hub_rows(folder or source, split if folder else "")
    raise DataError(f"no such file or folder: {source} (looked in {Path.cwd()}). Known: {known}")


def is_hub_name(source: str) -> bool:
    """Whether this may be `owner/name`, `owner/name/subset` or either with `:split`."""
    files = (*PACKED, *_TEXTS, ".txt", ".parquet")
    return bool(_HUB.fullmatch(source)) and Path(source).suffix not in files


def _kind(path: Path) -> str:
    """What is in a file, by its name without the suffix of a compression."""
    return Path(path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name).suffix


def _reader(
    path: Path, columns: Collection[str], allow_text: bool, known: str
) -> Callable[[], Placed]:
    """How to read a file. DataError, at once, for one of an unknown kind."""
    kind = _kind(path)
    if kind == ".parquet" and path.suffix == kind:
        return lambda: _parquet_rows(path, columns)
    if kind == ".txt" and allow_text:
        return lambda: _text_rows(path)
    if kind not in _TEXTS:
        raise DataError(f"{path}: expected {known}, got '{path.suffix}'; convert or rename it")
    readers = {".jsonl": _lines, ".json": _json_rows, ".csv": _csv_rows}
    return lambda: readers[kind](path)


def _each(readers: list[Callable[[], Placed]]) -> Placed:
    for reader in readers:
        yield from reader()


# ---------------------------------------------------------------------------- text files


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(path))
    if path.suffix == ".bz2":
        return cast(IO[bytes], bz2.open(path))
    if path.suffix == ".zst":
        stream = pa.input_stream(str(path), compression="zstd")
        return cast(IO[bytes], io.BufferedReader(stream))
    return path.open("rb")


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException)


def _unreadable(path: Path, place: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: the file cannot be read beyond {place}: {error}. "
        f"Fetch it again, or use what is there with --limit"
    )


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank."""
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
                if line.strip():
                    yield f"{path}:{number}", line
    except _DAMAGE as error:
        raise _unreadable(path, f"line {number}", error) from error


def _text_rows(path: Path) -> Placed:
    for where, line in _lines(path):
        try:
            yield where, {"text": line.decode().strip()}
        except UnicodeDecodeError:
            yield where, {"text": line}  # no text: refused like any row with a wrong field


_PIECE = 1 << 18  # characters read at a time
_LONGEST = 1 << 26  # of one row of a JSON array: more is no row but damage


def _json_rows(path: Path) -> Placed:
    """The objects of a JSON array; lines of JSON where the file is no array, as many are."""
    number = 0
    try:
        with _open(path) as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            yield from _lines(path)
            return
        with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
            for number, row in enumerate(_array_items(text), 1):
                yield f"{path}:{number}", row
    except _DAMAGE as error:
        raise _unreadable(path, f"row {number}", error) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise _unreadable(path, f"row {number}", error) from error


def _array_items(text: io.TextIOBase) -> Iterator[Any]:
    """The items of a JSON array, parsed one by one; ValueError where it is damaged or cut off."""
    decode, held, at = json.JSONDecoder().raw_decode, "", 0
    between = "["
    while True:
        at = _skip_blanks(held, at)
        if at < len(held) and between:
            if held[at] == "]" and between != ",item":
                return
            if held[at] != between[0]:
                raise ValueError(f"expected '{between[0]}' or ']', got {held[at : at + 20]!r}")
            at, between = at + 1, ""
            continue
        if at < len(held) and held[at] == "]":
            return  # an empty array
        try:
            item, end = decode(held, at) if at < len(held) else (None, -1)
        except ValueError as error:
            item, end = error, -1
        # A number or word at the end of what was read may go on in what was not.
        if end == -1 or (end == len(held) and not isinstance(item, (dict, list, str))):
            piece = text.read(max(_PIECE, len(held) - at))
            if not piece or len(held) - at > _LONGEST:
                raise item if isinstance(item, ValueError) else ValueError("it is cut off")
            held, at = held[at:] + piece, 0
            continue
        yield item
        at, between = end, ","


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv_rows(path: Path) -> Placed:
    """The rows of a CSV file under its header; an empty cell is null."""
    csv.field_size_limit(1 << 30)  # the module's own is 128 KiB, less than some answers
    number = 1
    try:
        with (
            _open(path) as file,
            io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text,
        ):
            rows = csv.reader(text, strict=True)  # a cell that is cut off is an error
            header = next(rows, [])
            for cells in rows:
                where, number = f"{path}:{number + 1}", rows.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    detail = f"expected {len(header)} cells, as the header has, got {len(cells)}"
                    yield where, Broken(detail, ",".join(cells))
                    continue
                cell = (None if value == "" else value for value in cells)
                yield where, dict(zip(header, cell, strict=True))
    except _DAMAGE as error:
        raise _unreadable(path, f"line {number}", error) from error
    except csv.Error as error:
        raise _unreadable(path, f"line {number}", error) from error


# ---------------------------------------------------------------------------- tables


def _parquet_rows(path: Path, columns: Collection[str]) -> Placed:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in columns]
            others = dict.fromkeys((n for n in names if n not in columns), UNREAD)
            for batch in file.iter_batches(1024, columns=wanted):
                for row in batch.to_pylist() if wanted else [{}] * batch.num_rows:
                    number += 1
                    yield f"{path}:{number}", {**row, **others} if others else row
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read beyond row {number}: {error}. Fetch or write it again"
        ) from error


# ---------------------------------------------------------------------------- folders


def _folder(folder: Path, split: str, columns: Collection[str], known: str) -> Placed:
    """A folder saved by `datasets`, or one of shards, such as a data set downloaded as it is."""
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return _saved_rows(folder, split)
    shards = _shards(folder) or _shards(folder / "data")
    kinds = sorted({_kind(path) for path in shards})
    if not shards or len(kinds) > 1:
        raise DataError(
            f"{folder}: expected a folder saved by datasets.save_to_disk, with state.json or "
            "dataset_dict.json, or one of .parquet, .jsonl, .json or .csv files, got "
            + (f"a mixture of {', '.join(kinds)}: name one kind, {folder}/*{kinds[0]}"
               if kinds else "one with neither; name one of the files in it instead")
        )  # fmt: skip
    splits: dict[str, list[Path]] = {}
    for path in shards:
        splits.setdefault(_split_of(path), []).append(path)
    if len(splits) > 1 and "" in splits and not split:
        raise DataError(f"{folder}: some files are of a split and some of none; name a glob")
    chosen = _one_split(splits, str(folder), split)
    return _each([_reader(path, columns, False, known) for path in chosen])


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name[0] not in "._"
        and (_kind(path) in _TEXTS or path.suffix == ".parquet")
        and path.name.split(".")[0] not in _NOTES
    )


def _split_of(path: Path) -> str:
    """The split that a file's name tells, or none."""
    numbered = _SHARD.match(path.name)
    stem = numbered.group(1) if numbered else path.name.split(".")[0]
    return stem if numbered or stem in _SPLITS else ""


def _saved_rows(folder: Path, split: str) -> Placed:
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: the saved data set cannot be read: {error}") from error
    return _numbered(str(folder), _one_split(loaded, str(folder), split))


# ---------------------------------------------------------------------------- the hub


def _hub_rows(name: str, split: str) -> Placed:
    """`owner/name`, `owner/name/subset`, each with `:split`."""
    offline()  # tells the hub's library, which would try for half a minute
    from datasets import load_dataset

    owner, title, *subset = name.split("/")
    try:
        loaded = load_dataset(f"{owner}/{title}", *subset, streaming=True)
    except Exception as error:  # offline, unknown, gated: the library has a class for each
        raise DataError(
            f"no file or folder '{name}' in {Path.cwd()}, and no data set of that name could be "
            f"read from the hub: {_first_line(error)}. "
            "Check the name and the network, or download it first"
        ) from error
    return _numbered(name, _one_split(loaded, name, split))


def _one_split(loaded: Any, name: str, split: str) -> Any:
    """The split asked for, the only one, or `train`. One data set alone has no splits."""
    if not isinstance(loaded, Mapping):
        return loaded
    splits = sorted(loaded)
    wanted = split or (splits[0] if len(splits) == 1 else "train")
    if wanted not in splits:
        raise DataError(f"{name} has no split '{wanted}'; name one: {name}:{'|'.join(splits)}")
    return loaded[wanted]


def _numbered(name: str, rows: Iterable[Row]) -> Placed:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{name}:{number}", row
    except Exception as error:  # a damaged file, a connection lost: again one class for each
        raise DataError(
            f"{name}: cannot be read beyond row {number}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
