"""Where rows come from: files, folders and globs of shards, saved data sets, the hub.

Nothing here knows what is in a row. Every source is read as it is asked for, a few rows at a time.
"""

from __future__ import annotations

import csv
import glob
import io
import lzma
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError
from rlaif.files.hub import offline
from rlaif.files.readers.fields import UNREAD, Broken, Raw, Row, item_at

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


_ARROW_NAMES = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def _open(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked. OSError where a stream, or what follows it, is damaged.

    Arrow unpacks, since Python's `gzip` and `bz2` take what is no stream for the end of the file.
    """
    if path.suffix in PACKED and path.stat().st_size == 0:
        raise OSError("it is empty, which no packed file is")
    if path.suffix == ".xz":
        return io.BufferedReader(_Xz(path), _PIECE)
    if path.suffix in _ARROW_NAMES:
        stream = pa.input_stream(str(path), compression=_ARROW_NAMES[path.suffix])
        return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, stream)))
    return path.open("rb")


class _Xz(io.RawIOBase):
    """The streams of an .xz file one after the other, with the padding that may be behind each.

    Python's `lzma` takes whatever is no stream for the end of the file. Padding is zeros, by fours
    (section 2.2 of the .xz format). So is a lost part of a disk, but of 512 bytes or more.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._stream = lzma.LZMADecompressor()
        self._packed = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._stream.eof and not self._next_stream():
                return 0
            if self._stream.needs_input and not self._packed:
                self._packed = self._file.read(_PIECE)
                if not self._packed:
                    raise EOFError("the file ends inside a compressed stream")
            data = self._stream.decompress(self._packed, len(buffer))
            self._packed = b""
        buffer[: len(data)] = data
        return len(data)

    def _next_stream(self) -> bool:
        """Goes over padding to the next stream, or to the end of the file."""
        rest, zeros = self._stream.unused_data, 0
        while True:
            found = rest.lstrip(b"\0")
            zeros += len(rest) - len(found)
            rest = found or self._file.read(_PIECE)
            if found or not rest:
                break
        if zeros % 4 or zeros >= 512:
            raise OSError(
                f"{zeros} zero bytes follow a compressed stream, where padding is fewer than 512 "
                "by fours. If nothing is lost, pack it anew: xz -dc FILE | xz > NEW"
            )
        if rest:
            self._stream, self._packed = lzma.LZMADecompressor(lzma.FORMAT_XZ), rest
        return bool(rest)


_DAMAGE = (EOFError, lzma.LZMAError, OSError, pa.ArrowException)


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
            for row in _array_items(text):
                number += 1
                yield f"{path}:{number}", row
    except _DAMAGE as error:
        raise _unreadable(path, f"row {number}", error) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise _unreadable(path, f"row {number}", error) from error


def _array_items(text: io.TextIOBase) -> Iterator[Any]:
    """The items of a JSON array, parsed one by one.

    ValueError where it is damaged, cut off, or followed by more than white space.
    """
    held, at = "", 0
    between, first = "[", True
    while True:
        at = _skip_blanks(held, at)
        if at < len(held) and between:
            if held[at] == "]" and between == ",":
                break
            if held[at] != between:
                raise ValueError(f"expected '{between}' or ']', got {held[at : at + 20]!r}")
            at, between, first = at + 1, "", between == "["
            continue
        if at < len(held) and held[at] == "]" and first:
            break  # an empty array
        try:
            item, end = item_at(held, at) if at < len(held) else (None, -1)
        except ValueError as error:
            item, end = error, -1
        # A number or word at the end of what was read may go on in what was not.
        if end == -1 or (end == len(held) and not isinstance(item, (dict, list, str, Broken))):
            piece = text.read(max(_PIECE, len(held) - at))
            if not piece or len(held) - at > _LONGEST:
                raise item if isinstance(item, ValueError) else ValueError("it is cut off")
            held, at = held[at:] + piece, 0
            continue
        yield item
        at, between = end, ","
    _refuse_more(held[at + 1 :], text)


def _refuse_more(held: str, text: io.TextIOBase) -> None:
    while (at := _skip_blanks(held, 0)) == len(held):
        held = text.read(_PIECE)
        if not held:
            return
    raise ValueError(
        f"expected nothing behind the end of the array, got {held[at : at + 20]!r}; where nothing "
        "is damaged, put all rows into one array, or each on a line (.jsonl)"
    )


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
            _refuse_repeated(path, header)
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


def _refuse_repeated(path: Path, names: Iterable[str]) -> None:
    """DataError for columns that one name may mean. Those without a name are nobody's."""
    first: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(names, 1):
        bare = name.strip("\ufeff \t\r\n")
        if bare and bare in first:
            other, its = first[bare]
            raise DataError(
                f"{path}: expected columns of different names, got {its!r} as column {other} and "
                f"{name!r} as column {number}: which one is meant? Rename or remove one of them"
            )
        first[bare] = (number, name)


# ---------------------------------------------------------------------------- tables


def _parquet_rows(path: Path, columns: Collection[str]) -> Placed:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_joined(path, file.metadata)
            names = file.schema_arrow.names
            _refuse_repeated(path, names)
            wanted = [name for name in names if name in columns]
            others = dict.fromkeys((n for n in names if n not in columns), UNREAD)
            for batch in file.iter_batches(1024, columns=wanted):
                for row in batch.to_pylist() if wanted else [{}] * batch.num_rows:
                    number += 1
                    yield f"{path}:{number}", {**row, **others} if others else row
    except (pa.ArrowException, OSError, ValueError) as error:  # such as a structure's equal names
        raise DataError(
            f"{path}: cannot be read beyond row {number}: {error}. Fetch or write it again"
        ) from error


def _refuse_joined(path: Path, footer: pq.FileMetaData) -> None:
    """DataError where the file is several, of which the last footer points into the first one.

    Between the last column and the footer there may be indexes; of a joined file there is also as
    much as the files before the last one hold, so that their end lies no further from the start.
    """
    groups = (footer.row_group(i) for i in range(footer.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    last = max((_start(chunk) + chunk.total_compressed_size for chunk in chunks), default=4)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = int.from_bytes(data[-8:-4], "little")
        between = len(data) - 8 - size - last
        if between > 0 and (at := data.find(b"PAR1PAR1", 0, between + 4)) > 0:
            raise DataError(
                f"{path}: expected one Parquet file, got another Parquet file behind it, from byte "
                f"{at + 4} on. Read them as two files (a glob), or write them as one table"
            )


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    """Where a column's pages begin; its dictionary, if any, is in front."""
    first = chunk.dictionary_page_offset if chunk.has_dictionary_page else 0
    return int(first or chunk.data_page_offset)


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
            + (
                f"a mixture of {', '.join(kinds)}: name one kind, {folder}/*{kinds[0]}"
                if kinds
                else "one with neither; name one of the files in it instead"
            )
        )
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
        loaded = _one_split(load_from_disk(str(folder)), str(folder), split)
        for file in loaded.cache_files:
            _refuse_cut(Path(file["filename"]))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: the saved data set cannot be read: {error}") from error
    return _numbered(str(folder), loaded)


def _refuse_cut(path: Path) -> None:
    """OSError unless a stream of Arrow's messages has its mark of the end, at the file's end.

    Arrow takes a stream without the mark, and one with more behind it, for a whole one.
    """
    with pa.memory_map(str(path)) as file:
        messages, last, size = pa.ipc.MessageReader.open_stream(file), 0, file.size()
        try:
            while True:
                messages.read_next_message()
                last = file.tell()
        except StopIteration:
            end = file.tell()
    if end == last or end != size:
        got = "none" if end == last else f"{size - end} bytes behind it"
        raise OSError(f"{path}: expected a mark of the end in the last of {size} bytes, got {got}")


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
