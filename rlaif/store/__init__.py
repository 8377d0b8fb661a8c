"""A run directory: what every stage writes, and what makes it resumable.

    runs/NAME/
      .lock  manifest.json
      prompts/ completions/ pairs/ verdicts/ preferences/    NUMBER-HASH.parquet

A table is a folder of immutable Parquet shards. A shard is written aside, synced and renamed, so
that it is there as a whole or not at all; a killed stage loses at most the shard it was writing,
and `keys()` tells the next one what is done. One process writes, any number read. The shards are
plain Parquet: `datasets`, pandas, Polars and DuckDB read `NAME/*.parquet` as they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError, nearest
from rlaif.files.small import (
    ASIDE,
    Shape,
    aside,
    commit,
    explained,
    is_written_now,
    read_object,
    sync,
)
from rlaif.files.small import write_json as write_json
from rlaif.records import (
    Completion,
    Message,
    Pair,
    Preference,
    Prompt,
    Revision,
    Verdict,
    messages_to_json,
)
from rlaif.store.keyindex import KeyIndex, hash_all, hashes_of, repeated

R = TypeVar("R")

# ---------------------------------------------------------------------------- records as rows

_TEXT, _FLOAT, _COUNT = pa.string(), pa.float64(), pa.int32()
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))

# The first column is the key: no two rows that are read share one.
SCHEMAS: dict[str, pa.Schema] = {
    "prompts": pa.schema([("id", _TEXT), ("messages", _MESSAGES), ("source", _TEXT)]),
    "completions": pa.schema(
        [
            ("key", _TEXT),
            ("prompt_id", _TEXT),
            ("policy", _TEXT),
            ("index", _COUNT),
            ("text", _TEXT),
            ("finish_reason", _TEXT),
            ("tokens", _COUNT),
            ("ids", pa.list_(_COUNT)),
            ("thought", _TEXT),
        ]
    ),
    "pairs": pa.schema(
        [
            ("id", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("first", _TEXT),
            ("second", _TEXT),
            ("label", _FLOAT),
            ("source", _TEXT),
            ("thoughts", pa.list_(_TEXT)),
        ]
    ),
    "verdicts": pa.schema(
        [
            ("key", _TEXT),
            ("pair_id", _TEXT),
            ("principle", _TEXT),
            ("order", _TEXT),
            ("judge", _TEXT),
            ("p_first", _FLOAT),
            ("logprob_first", _FLOAT),
            ("logprob_second", _FLOAT),
            ("mass", _FLOAT),
            ("reason", _TEXT),
            ("score_first", _FLOAT),
            ("score_second", _FLOAT),
            ("rationales", pa.list_(_TEXT)),
            ("tokens", _COUNT),
            ("thoughts", pa.list_(_TEXT)),
            ("thoughts_cut", _COUNT),
        ]
    ),
    "revisions": pa.schema(
        [
            ("key", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("policy", _TEXT),
            ("sample", _COUNT),
            ("round", _COUNT),
            ("principle", _TEXT),
            ("response", _TEXT),
            ("critique", _TEXT),
            ("revision", _TEXT),
            ("reason", _TEXT),
            ("tokens", _COUNT),
        ]
    ),
    "preferences": pa.schema(
        [
            ("pair_id", _TEXT),
            ("prompt", _MESSAGES),
            ("prompt_source", _TEXT),
            ("first", _TEXT),
            ("second", _TEXT),
            ("label", _FLOAT),
            ("source", _TEXT),
            ("status", _TEXT),
            ("p_first", _FLOAT),
            ("principles", pa.list_(_TEXT)),
            ("p_principles", pa.list_(_FLOAT)),
            ("verdicts", _COUNT),
            ("abstained", _COUNT),
            ("reason", _TEXT),
            ("p_raw", _FLOAT),
        ]
    ),
}


def _messages(rows: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"]) for row in rows)


def _prompt_of_row(_id: str, messages: list[dict[str, Any]], source: str) -> Prompt:
    return Prompt(_messages(messages), source)


def _pair_of_row(
    _id: str,
    prompt: list[dict[str, Any]],
    prompt_source: str,
    first: str,
    second: str,
    label: float | None,
    source: str,
    thoughts: list[str] | None = None,
) -> Pair:
    told = None if thoughts is None else (thoughts[0], thoughts[1])
    return Pair(Prompt(_messages(prompt), prompt_source), first, second, label, source, told)


def _completion_of_row(*row: Any) -> Completion:
    told = list(row)
    told[7:] = tuple(told[7] or ()), told[8] or ""  # null in a shard from before there were any
    return Completion(*told)


def _verdict_of_row(*row: Any) -> Verdict:
    told = list(row)
    # null in a shard from before there were any
    told[12:] = tuple(told[12] or ()), told[13] or 0, tuple(told[14] or ()), told[15] or 0
    return Verdict(*told)


def _revision_of_row(
    key: str, prompt: list[dict[str, Any]], prompt_source: str, *told: Any
) -> Revision:
    return Revision(key, Prompt(_messages(prompt), prompt_source), *told)


def _preference_of_row(*row: Any) -> Preference:
    status, p_first, principles, p_principles, verdicts, abstained, reason, p_raw = row[7:]
    return Preference(
        pair=_pair_of_row(*row[:7]),
        status=status,
        p_first=p_first,
        principles=tuple(principles),
        p_principles=tuple(p_principles),
        verdicts=verdicts,
        abstained=abstained,
        reason=reason,
        p_raw=p_raw,
    )


@dataclass(frozen=True, slots=True)
class _Codec(Generic[R]):
    """Records to columns, and rows to records.

    A column is the attribute of its name unless `getters` says otherwise.
    """

    record: Callable[..., R]  # from one row's values, in the schema's order
    getters: Mapping[str, Callable[[R], Any]]

    def table(self, schema: pa.Schema, records: Sequence[R]) -> pa.Table:
        columns = [
            list(map(self.getters.get(name) or attrgetter(name), records)) for name in schema.names
        ]
        return pa.Table.from_pydict(dict(zip(schema.names, columns, strict=True)), schema=schema)

    def records(self, batch: pa.RecordBatch | pa.Table) -> list[R]:
        return list(itertools.starmap(self.record, zip(*_python_columns(batch), strict=True)))


def _python_columns(batch: pa.RecordBatch | pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in batch.columns]


_PROMPT_GETTERS: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda row: messages_to_json(row.prompt.messages),
    "prompt_source": attrgetter("prompt.source"),
}
_CODECS: dict[str, _Codec[Any]] = {
    "prompts": _Codec(_prompt_of_row, {"messages": lambda p: messages_to_json(p.messages)}),
    "completions": _Codec(_completion_of_row, {}),
    "pairs": _Codec(_pair_of_row, _PROMPT_GETTERS),
    "verdicts": _Codec(_verdict_of_row, {}),
    "revisions": _Codec(_revision_of_row, _PROMPT_GETTERS),
    "preferences": _Codec(
        _preference_of_row,
        {
            "pair_id": attrgetter("pair.id"),
            "prompt": lambda p: messages_to_json(p.pair.prompt.messages),
            "prompt_source": attrgetter("pair.prompt.source"),
            **{name: attrgetter(f"pair.{name}") for name in ("first", "second", "label", "source")},
        },
    ),
}

# ---------------------------------------------------------------------------- tables

# The second part is the start of the seal; `base` in its place means that this shard supersedes
# all of a lower number (see Table.replace).
_SHARD = re.compile(r"(\d{6,})-([0-9a-f]{8}|base)\.parquet")
_ROW_GROUP = 65_536  # rows decoded at a time, so that reading needs bounded memory
_HELD = 1_024  # records held at a time while a table is replaced
_BLOCK = 1 << 20  # bytes
_BEGINNINGS = 50  # times that reading begins anew beside a writer that replaces the rows


def _number(shard: Path) -> int:
    return int(shard.name.partition("-")[0])


def _is_base(shard: Path) -> bool:
    return shard.name.endswith("-base.parquet")


# Page checksums leave the footer open, where a flipped bit can exchange two columns. So a shard
# carries a SHA-256 of all its bytes in its footer's metadata, computed with zeros in its own place.
_SEAL_KEY = "rlaif.sha256"
_NO_SEAL = "0" * 64
_SEAL = re.compile(re.escape(_SEAL_KEY).encode() + rb".{1,8}?([0-9a-f]{64})", re.DOTALL)


def _read_seal(shard: Path) -> tuple[int, str, str]:
    """Where the seal stands, what it says and what it has to say; ValueError if there is none."""
    digest = hashlib.sha256()
    with shard.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - 8  # then come the footer's length and PAR1
        file.seek(max(end, 0))
        start = end - int.from_bytes(file.read(4), "little")
        if start < 0:
            raise ValueError("cut off")
        file.seek(start)
        footer = file.read()
        # The last one: the statistics before it quote texts, and a text may look like a seal.
        seal = _SEAL.search(footer, max(footer.rfind(_SEAL_KEY.encode()), 0))
        if seal is None:
            raise ValueError("no seal")
        file.seek(0)
        for offset in range(0, start, _BLOCK):
            digest.update(file.read(min(_BLOCK, start - offset)))
    digest.update(footer[: seal.start(1)] + _NO_SEAL.encode() + footer[seal.end(1) :])
    return start + seal.start(1), seal[1].decode(), digest.hexdigest()


def _put_seal(shard: Path) -> str:
    offset, _, digest = _read_seal(shard)
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(digest.encode())
    return digest


def _is_damaged(shard: Path) -> bool:
    try:
        _, said, found = _read_seal(shard)
    except ValueError:
        return True
    return said != found


def _rows_in_footer(shard: Path) -> str:
    """How many rows a damaged shard held; a shard that was cut off has lost even that."""
    try:
        return str(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError):
        return "an unknown number of"


class Superseded(DataError):
    """Rows were replaced by a writer while they were read: read them again."""


def _begins(schema: pa.Schema, found: pa.Schema) -> bool:
    """Whether a shard has a table's columns; the last may be younger than the shard."""
    columns = list(schema)[: len(found)]
    return [(f.name, f.type) for f in columns] == [(f.name, f.type) for f in found]


class Table(Generic[R]):
    """One kind of record in a run directory: append, ask for the keys, read.

    Reading never yields a key twice (the first row wins) and keeps one batch of rows and eight
    bytes a key in memory. Every method raises DataError if a shard turns out to be damaged.
    """

    def __init__(self, folder: Path, check_writable: Callable[[], None]) -> None:
        self.name = folder.name
        self.folder = folder
        self.schema = SCHEMAS[self.name]
        self._codec: _Codec[R] = _CODECS[self.name]
        self._key = self.schema.names[0]
        self._check_writable = check_writable
        self._last: int | None = None  # the highest number given to a shard

    # reading

    def keys(self) -> set[str]:
        """The keys of all rows: what is done."""
        return set(itertools.chain.from_iterable(self.key_batches()))

    def key_batches(self) -> Iterator[list[str]]:
        """The same, some at a time and as they stand: a key may come twice."""
        for shard in self._live():
            for batch in self._scan(shard, [self._key]):
                yield batch.column(0).to_pylist()

    def __len__(self) -> int:
        """The number of rows, each key counted once. Reads the key column."""
        hashes = hash_all(self.key_batches())
        return len(self.keys()) if repeated(hashes) else len(hashes)

    def files(self) -> list[Path]:
        """The Parquet files that hold the rows now, in their order, for readers such as DuckDB.

        A writer that replaces the rows may remove them meanwhile.
        """
        return self._live()

    def finder(self) -> Callable[[Sequence[str]], dict[str, R]]:
        """A function that finds rows by key, among those that are there now.

        It keeps twelve bytes a row and a few row groups in memory. Keys that stand close together
        in the table are found fastest.
        """
        return _Finder(self).find

    def iter_batches(self, size: int = 16_384) -> Iterator[list[R]]:
        """The records in the order they were written, at most `size` at a time."""
        for batch in self._batches(self.schema.names, size):
            yield self._codec.records(batch)

    def read(self) -> list[R]:
        """All records in the order they were written."""
        return list(itertools.chain.from_iterable(self.iter_batches()))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows as an Arrow table, all columns or those named."""
        wanted = list(self.schema.names if columns is None else columns)
        for name in wanted:
            if name not in self.schema.names:
                hint = nearest(name, self.schema.names)
                raise DataError(f"the table '{self.name}' has no column '{name}'.{hint}")
        needed = list(dict.fromkeys([self._key, *wanted]))
        batches = list(self._batches(needed, _ROW_GROUP))
        schema = pa.schema([self.schema.field(name) for name in needed])
        return pa.Table.from_batches(batches, schema=schema).select(wanted)

    # writing

    def append(self, records: Iterable[R]) -> None:
        """Add records as one shard: all of them or, on any error or interrupt, none.

        Raises DataError if the run is not open for writing, a record cannot be stored, or the
        disk refuses.
        """
        rows = list(records)
        self._check_writable()
        if not rows:
            return
        self._make_folder()
        with aside(self.folder) as written:
            digest = self._write(written, [rows])
            with explained(self.folder):
                commit(written, self.folder / f"{self._next():06d}-{digest[:8]}.parquet")

    def replace(self, records: Iterable[R]) -> None:
        """Put records in the place of all rows. A kill at any moment leaves the old or the new.

        For tables computed as a whole from others. The rename of a single file is the switch: a
        base shard supersedes all of a lower number, and takes the place of an older base shard
        that stands alone. What is superseded is removed afterwards, here or by the next writer.
        Raises as `append` does.
        """
        self._check_writable()
        self._make_folder()
        live = self._live()
        alone = len(live) == 1 and _is_base(live[0])
        number = _number(live[0]) if alone else self._next()
        with aside(self.folder) as written:
            self._write(written, _chunks(records, _HELD))
            with explained(self.folder):
                commit(written, self.folder / f"{number:06d}-base.parquet")
        self._remove_superseded()

    def _write(self, path: Path, chunks: Iterable[Sequence[R]]) -> str:
        """Write and seal a shard; returns its digest."""
        with explained(self.folder):
            writer = pq.ParquetWriter(
                path,
                self.schema,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=[n for n in self.schema.names if n != self._key],
            )
            writer.add_key_value_metadata({_SEAL_KEY: _NO_SEAL})
        try:
            for rows in chunks:
                try:
                    table = self._codec.table(self.schema, rows)
                except (pa.ArrowException, UnicodeError) as error:
                    raise DataError(
                        f"a row of '{self.name}' cannot be stored: {error}; "
                        "texts have to be valid Unicode and numbers of the declared type"
                    ) from error
                with explained(self.folder):
                    writer.write_table(table, row_group_size=_ROW_GROUP)
        finally:
            with explained(self.folder):  # closing writes the footer: a full disk refuses it too
                writer.close()
        with explained(self.folder):
            return _put_seal(path)

    # shards

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            with explained(self.folder):
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)

    def _shards(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _SHARD.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_number(path), path.name))

    def _live(self) -> list[Path]:
        shards = self._shards()
        base = max((_number(shard) for shard in shards if _is_base(shard)), default=0)
        return [shard for shard in shards if _number(shard) >= base]

    def _next(self) -> int:
        """The next free number; there is one writer, so that the folder is listed only once."""
        if self._last is None:
            self._last = max(map(_number, self._shards()), default=0)
        self._last += 1
        return self._last

    def _remove_superseded(self) -> None:
        live = set(self._live())
        for shard in self._shards():
            if shard not in live:
                shard.unlink(missing_ok=True)

    def _set_damaged_aside(self) -> None:
        """Before the first write: what cannot be trusted is moved out, so that it is done again."""
        for shard in filter(_is_damaged, self._shards()):
            kept = self.folder / "damaged" / f"{shard.name}.damaged"  # no reader takes it for data
            message = (
                f"damaged shard: {shard} is cut off or has wrong bytes; moved to {kept}. "
                f"Its rows ({_rows_in_footer(shard)} in all) are missing now and will be done again"
            )
            with explained(self.folder):
                kept.parent.mkdir(exist_ok=True)
                os.replace(shard, kept)
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        self._remove_superseded()

    def _refuse_damaged(self) -> None:
        for shard in self._live():
            try:
                damaged = _is_damaged(shard)
            except FileNotFoundError:  # superseded meanwhile by a writer
                continue
            if damaged:
                raise _damage(shard, "it is cut off or has wrong bytes")

    @contextmanager
    def _opened(self, shard: Path) -> Iterator[Any]:
        try:
            with pq.ParquetFile(shard, page_checksum_verification=True) as file:
                yield file
        except FileNotFoundError as error:
            raise Superseded(f"{shard} was replaced while it was read; read again") from error
        except (pa.ArrowException, OSError) as error:
            raise _damage(shard, str(error)) from error

    def _scan(self, shard: Path, columns: list[str], size: int = _ROW_GROUP) -> Iterator[Any]:
        with self._opened(shard) as file:
            for batch in file.iter_batches(size, columns=columns):
                yield self._completed(batch, columns)

    def _completed(self, rows: Any, columns: Sequence[str]) -> Any:
        """Rows of a shard that is older than some of the columns: those are null in it."""
        if len(rows.schema.names) == len(columns):
            return rows
        schema = pa.schema([self.schema.field(name) for name in columns])
        known = set(rows.schema.names)
        return type(rows).from_arrays(
            [
                rows.column(f.name) if f.name in known else pa.nulls(rows.num_rows, f.type)
                for f in schema
            ],
            schema=schema,
        )

    def _refuse_foreign(self) -> None:
        """The bytes of a shard may be whole, and be those of another table."""
        for shard in self._live():
            try:
                found = pq.read_schema(shard)
            except FileNotFoundError:
                continue
            if not _begins(self.schema, found):
                owner = next((n for n, known in SCHEMAS.items() if _begins(known, found)), None)
                whose = f"is of the table '{owner}', not" if owner else "is no shard of the table"
                raise DataError(
                    f"{shard} {whose} '{self.name}': expected the columns "
                    f"{', '.join(self.schema.names)}, got {', '.join(found.names)}. Move it away"
                )

    def _batches(self, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
        """The rows of all shards, those whose key was seen before left out.

        Beside a writer that replaces them, before the first row was read, it begins anew.
        """
        for left in range(_BEGINNINGS, -1, -1):
            begun = False
            try:
                for batch in self._batches_of_now(columns, size):
                    begun = True
                    yield batch
                return
            except Superseded:
                if begun or not left:
                    raise

    def _batches_of_now(self, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
        shards = self._live()
        twice = repeated(hash_all(self.key_batches()))
        seen: set[str] = set()  # of the keys that may stand twice: most tables have none
        for shard in shards:
            for batch in self._scan(shard, columns, size):
                if twice:
                    batch = self._first_ones(batch, twice, seen)
                if batch.num_rows:
                    yield batch

    def _first_ones(self, batch: pa.RecordBatch, twice: set[int], seen: set[str]) -> pa.RecordBatch:
        keys = batch.column(self._key).to_pylist()
        new = []
        for i, (key, found) in enumerate(zip(keys, hashes_of(keys).tolist(), strict=True)):
            if found in twice:
                if key in seen:
                    continue
                seen.add(key)
            new.append(i)
        return batch.take(pa.array(new, pa.int64()))


class _Finder(Generic[R]):
    """Rows of a table by key, as it was when this was made. It reads one row group at a time."""

    def __init__(self, table: Table[R]) -> None:
        self._table = table
        self._groups: list[tuple[Path, int]] = []
        starts = [0]
        shards = table._live()
        for shard in shards:
            with table._opened(shard) as file:
                for i in range(file.num_row_groups):
                    self._groups.append((shard, i))
                    starts.append(starts[-1] + file.metadata.row_group(i).num_rows)
        self._starts = np.array(starts)
        self._index = KeyIndex(hash_all(table.key_batches()))
        self._read = lru_cache(maxsize=8)(self._read_group)

    def find(self, keys: Sequence[str]) -> dict[str, R]:
        """The rows of those keys that are there, by key."""
        if not len(self._index):
            return {}
        wanted, found = set(keys), dict[str, R]()
        numbers = self._index.candidates(keys)
        groups = np.searchsorted(self._starts, numbers, "right") - 1
        for group in np.unique(groups).tolist():
            inside = numbers[groups == group] - self._starts[group]
            rows = self._read(group).take(pa.array(inside))
            for key, row in zip(
                rows.column(0).to_pylist(), self._table._codec.records(rows), strict=True
            ):
                if key in wanted:
                    found.setdefault(key, row)  # the first row wins, as in reading
        return found

    def _read_group(self, number: int) -> pa.Table:
        shard, group = self._groups[number]
        with self._table._opened(shard) as file:
            return self._table._completed(file.read_row_group(group), self._table.schema.names)


def _chunks(records: Iterable[R], size: int) -> Iterator[list[R]]:
    iterator = iter(records)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _damage(shard: Path, why: str) -> DataError:
    return DataError(
        f"damaged shard {shard}: {why}. Run the stage that wrote it again: "
        "it sets the shard aside and does its rows again"
    )


# ---------------------------------------------------------------------------- the run directory


_MANIFEST: dict[str, Shape] = {
    "run": {"versions": {str: str}, "target_trait": str},
    "constitution": {"name": str, "principles": [{"id": str, "compare": str, "tags": [str]}]},
    "judge": {"jury": {str: {}}},
    "read": {},
    "inputs": {"at": str, "files": {str: {str: str}}},
    "stages": {str: {"rejected_rows": {str: float}, "without_pair": {str: float}}},
}


class RunStore:
    """A run directory, open for writing inside `with RunStore(path) as run:`.

    `command` names the holder to others who try to write. `read_only` takes no lock and needs an
    existing directory.
    """

    def __init__(self, path: str | Path, *, command: str = "", read_only: bool = False) -> None:
        self.root = Path(path)
        self.command = command or " ".join(sys.argv)
        self.read_only = read_only
        self._tables: dict[str, Table[Any]] = {}
        self._lock: int | None = None
        if read_only and not self.root.is_dir():
            raise missing_run(self.root)

    @classmethod
    def open_readonly(cls, path: str | Path) -> RunStore:
        """A run to look at, beside its writer or without one.

        Raises DataError if there is no such directory.
        """
        return cls(path, read_only=True)

    def __enter__(self) -> RunStore:
        """Create the directory and take the writer's lock.

        Raises DataError if another process writes there (naming it) or the directory cannot be
        made. A dead writer's lock vanishes with it; the files it left half-written are removed.
        """
        if not self.read_only:
            with explained(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock = self._take_lock()
                for leftover in itertools.chain(
                    self.root.glob(ASIDE + "*"), self.root.glob(f"*/{ASIDE}*")
                ):
                    if not is_written_now(leftover):
                        leftover.unlink(missing_ok=True)
            for table in self._tables.values():
                table._last = None  # others may have written since
            self._tables.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; reading goes on to work."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)  # the file stays: removing it could race with a taker
            os.close(self._lock)
            self._lock = None

    @overload
    def table(self, name: Literal["prompts"]) -> Table[Prompt]: ...
    @overload
    def table(self, name: Literal["completions"]) -> Table[Completion]: ...
    @overload
    def table(self, name: Literal["pairs"]) -> Table[Pair]: ...
    @overload
    def table(self, name: Literal["verdicts"]) -> Table[Verdict]: ...
    @overload
    def table(self, name: Literal["revisions"]) -> Table[Revision]: ...
    @overload
    def table(self, name: Literal["preferences"]) -> Table[Preference]: ...
    def table(self, name: str) -> Table[Any]:
        """The table of that name, its shards checked byte for byte when it is first asked for.

        A damaged shard is moved to `NAME/damaged/` with a warning, so that its rows are done
        again; a read-only run raises DataError instead.
        """
        if name not in SCHEMAS:
            raise DataError(f"no table named '{name}'.{nearest(name, SCHEMAS)}")
        if name not in self._tables:
            table: Table[Any] = Table(self.root / name, self._check_writable)
            try:
                if self._lock is None:
                    table._refuse_damaged()
                else:
                    table._set_damaged_aside()
                table._refuse_foreign()
            except OSError as error:
                raise DataError(
                    f"cannot read {error.filename or table.folder}: {error.strerror or error}; "
                    "check its permissions and the disk"
                ) from error
            self._tables[name] = table
        return self._tables[name]

    def path(self, *parts: str) -> Path:
        """A path inside the run directory."""
        return self.root.joinpath(*parts)

    def read_manifest(self) -> dict[str, Any]:
        """What the stages said about themselves; empty before the first. Raises DataError."""
        found = read_object(self.path("manifest.json"), "the last stage", _MANIFEST)
        return {name: section for name, section in found.items() if section is not None}

    def update_manifest(self, section: str, value: Mapping[str, Any]) -> None:
        """Put `value` in the place of a section, atomically. Raises DataError as `append` does."""
        self._check_writable()
        write_json(self.path("manifest.json"), {**self.read_manifest(), section: dict(value)})

    def _check_writable(self) -> None:
        if self._lock is None:
            raise DataError(
                f"{self.root} is not open for writing: use `with RunStore(path) as run:`"
            )

    def _take_lock(self) -> int:
        path = self.path(".lock")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if not path.is_symlink() and not path.is_dir():
                raise
            what = "a link" if path.is_symlink() else "a folder"
            raise DataError(f"{path} is {what} and no lock of ours: remove it") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DataError(f"{path} is no plain file and no lock of ours: remove it")
            _lock(handle, self.root)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "command": self.command,
                "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            }
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        return handle


def missing_run(root: Path, hint: str = "`rlaif run` makes one") -> DataError:
    """The error for a run directory that is not there, with those that may be meant."""
    if os.path.lexists(root):
        return DataError(f"{root} is no run directory: it is no folder")
    beside = (root.parent, root.parent / "runs", Path("runs"))
    runs = {f.parent.name: f.parent for at in beside for f in at.glob("*/manifest.json")}
    close = get_close_matches(root.name, runs, n=1, cutoff=0.5)
    if close:
        meant = f" (did you mean {runs[close[0]]}?)"
    else:
        some = sorted(str(path) for path in runs.values())[:5]
        meant = f" (there are {', '.join(some)})" if some else ""
    return DataError(f"there is no run directory {root}{meant}: {hint}")


def _lock(handle: int, root: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(_held_by(root, root / ".lock")) from None
    except OSError as error:
        raise DataError(
            f"{root} is on a file system without locks ({error.strerror}); "
            "use a run directory on a local disk"
        ) from error


def _held_by(root: Path, lock: Path) -> str:
    try:
        holder = json.loads(lock.read_bytes())
        who = (
            f"process {holder['pid']} on {holder['host']} "
            f"(`{holder['command']}`, since {holder['started']})"
        )
    except (ValueError, KeyError, TypeError):  # taken, but its holder has not signed it yet
        who = "another process"
    return (
        f"{root} is already being written by {who}. "
        "Wait until it ends, stop it, or use another run directory"
    )
