"""One table of a run: a folder of immutable Parquet shards, appended to, replaced and read."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import DataError, nearest
from rlaif.files.small import aside, commit, explained, sync
from rlaif.store.keyindex import KeyIndex, hash_all, hashes_of, repeated
from rlaif.store.schemas import CODECS, SCHEMAS, Codec
from rlaif.store.shards import is_damaged, live, name_of, number, shards_of

R = TypeVar("R")
T = TypeVar("T")

_ROW_GROUP = 65_536  # rows decoded at a time, so that reading needs bounded memory
_HELD = 1_024  # records held at a time while a table is replaced
_BEGINNINGS = 50  # times that reading begins anew beside a writer that replaces the rows


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
        self._codec: Codec[R] = CODECS[self.name]
        self._key = self.schema.names[0]
        self._check_writable = check_writable
        self._last: int | None = None  # the highest number given to a shard

    # reading

    def keys(self) -> set[str]:
        """The keys of all rows: what is done."""
        return set(itertools.chain.from_iterable(self.key_batches()))

    def key_batches(self) -> Iterator[list[str]]:
        """The same, some at a time and as they stand: a key may come twice."""
        yield from self._anew(lambda: self._keys_in(self._live()))

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
        self._put([rows])

    def replace(self, records: Iterable[R]) -> None:
        """Put records in the place of all rows. A kill at any moment leaves the old or the new.

        For tables computed as a whole from others. The rename of a single file is the switch: a
        base shard supersedes all of a lower number, which are then removed. After a kill between
        the two the next writer removes them; until then programs that take all files of the folder,
        and not `files()`, see both.
        Raises as `append` does.
        """
        self._check_writable()
        self._make_folder()
        self._put(_chunks(records, _HELD), base=True)
        self._remove_superseded()

    def _put(self, chunks: Iterable[Sequence[R]], *, base: bool = False) -> None:
        """Writes the next shard."""
        with aside(self.folder) as written:
            self._write(written, chunks)
            with explained(self.folder):
                name = name_of(self._next(), written, base=base)
                commit(written, self.folder / name)

    def _write(self, path: Path, chunks: Iterable[Sequence[R]]) -> None:
        with explained(self.folder):
            writer = pq.ParquetWriter(
                path,
                self.schema,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=[n for n in self.schema.names if n != self._key],
            )
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

    # shards

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            with explained(self.folder):
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)

    def _live(self) -> list[Path]:
        return live(shards_of(self.folder))

    def _next(self) -> int:
        """The next free number; there is one writer, so that the folder is listed only once."""
        if self._last is None:
            self._last = max(map(number, shards_of(self.folder)), default=0)
        self._last += 1
        return self._last

    def _remove_superseded(self) -> None:
        shards = shards_of(self.folder)
        for shard in set(shards) - set(live(shards)):
            shard.unlink(missing_ok=True)

    def set_damaged_aside(self) -> None:
        """Moves damaged shards out, with a warning, so that their rows are done again."""
        for shard in filter(is_damaged, shards_of(self.folder)):
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

    def refuse_damaged(self) -> None:
        """DataError if a shard's bytes are not those that were written."""
        for shard in self._live():
            try:
                damaged = is_damaged(shard)
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

    def refuse_foreign(self) -> None:
        """DataError if a shard holds another table's rows: its bytes may be whole all the same."""
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
        """The rows of all shards, those whose key was seen before left out."""
        return self._anew(lambda: self._batches_in(self._live(), columns, size))

    def _anew(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What `read` yields; it begins anew, before the first of it is out, where a writer
        replaced the rows meanwhile."""
        for left in range(_BEGINNINGS, -1, -1):
            begun = False
            try:
                for batch in read():
                    begun = True
                    yield batch
                return
            except Superseded:
                if begun or not left:
                    raise

    def _keys_in(self, shards: Sequence[Path]) -> Iterator[list[str]]:
        for shard in shards:
            for batch in self._scan(shard, [self._key]):
                yield batch.column(0).to_pylist()

    def _batches_in(
        self, shards: Sequence[Path], columns: list[str], size: int
    ) -> Iterator[pa.RecordBatch]:
        twice = repeated(hash_all(self._keys_in(shards)))
        seen: set[str] = set()  # of the keys that may stand twice: most tables have none
        for shard in shards:
            for batch in self._scan(shard, columns, size):
                if twice:
                    batch = self._first_rows(batch, twice, seen)
                if batch.num_rows:
                    yield batch

    def _first_rows(self, batch: pa.RecordBatch, twice: set[int], seen: set[str]) -> pa.RecordBatch:
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
        self._index = KeyIndex(hash_all(table._keys_in(shards)))
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


def _rows_in_footer(shard: Path) -> str:
    """How many rows a damaged shard held; a shard that was cut off has lost even that."""
    try:
        return str(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError):
        return "an unknown number of"
