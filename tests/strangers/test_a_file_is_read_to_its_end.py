"""What stands behind the first whole part of a file is read, or told: never left out in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import DataError
from rlaif.files.readers import read_pairs

Pack = Callable[[bytes], bytes]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS: dict[str, Pack] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


def rows(first: int, count: int) -> list[dict[str, str]]:
    ids = range(first, first + count)
    return [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in ids]


def lines(first: int, count: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(first, count)).encode()


def read(path: Path) -> list[str]:
    return [pair.first for pair in read_pairs(path)]


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


DAMAGE: dict[str, Pack] = {
    "a bit of its head flipped": flipped,
    "its first block lost": lambda stream: stream[512:],
    "zeros in its place": lambda stream: bytes(len(stream)),
    "cut off in its head": lambda stream: stream[:3],
    "cut off at its end": lambda stream: stream[:-3],
    "something else in its place": lambda stream: b"not a stream at all"[: len(stream)],
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("more", [False, True], ids=["last", "a whole one behind it"])
def test_a_damaged_second_stream_is_told(
    tmp_path: Path, suffix: str, damage: str, more: bool
) -> None:
    pack = PACKERS[suffix]
    behind = pack(lines(2000, 5)) if more else b""
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(pack(lines(0, 1000)) + DAMAGE[damage](pack(lines(1000, 1000))) + behind)
    with pytest.raises(DataError, match=rf"rows\.jsonl\.{suffix}: .* cannot be read beyond line "):
        read(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_whole_streams_one_after_the_other_are_one_file(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    path = tmp_path / f"rows.jsonl.{suffix}"
    data = lines(0, 300)
    parts = [data[i : i + 997] for i in range(0, len(data), 997)]
    path.write_bytes(b"".join(map(pack, [b"", *parts, b""])))  # as pbzip2 and pzstd write them
    assert read(path) == [f"good {i}" for i in range(300)]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"rows\.jsonl\.\w+: .* beyond line 0: it is empty"):
        read(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 127)), min_size=1, max_size=5))
def test_padding_that_xz_allows_is_no_end(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("xz") / "rows.jsonl.xz"
    count = sum(n for n, _ in parts)
    data, first = b"", 0
    for n, quads in parts:
        data, first = data + lzma.compress(lines(first, n)) + bytes(4 * quads), first + n
    path.write_bytes(data)
    assert read(path) == [f"good {i}" for i in range(count)]
    path.write_bytes(data + bytes(3))
    with pytest.raises(DataError, match="zero bytes"):
        read(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("behind", ["\n[{}]", ",\n{}]", "]", "{}", " x", "\x00", "\n[", "\n[]"])
def test_what_follows_an_array_is_told(tmp_path: Path, behind: str, suffix: str) -> None:
    pack = PACKERS.get(suffix[1:], bytes)
    for found in (rows(0, 1000), []):
        text = json.dumps(found) + behind.replace("{}", json.dumps(rows(1000, 1))[1:-1])
        path = tmp_path / f"rows.json{suffix}"
        path.write_bytes(pack(text.encode()))
        with pytest.raises(
            DataError, match=rf"rows.json\S*: .* beyond row {len(found)}: .*end of the array"
        ):
            read(path)
        path.write_bytes(pack((json.dumps(found) + " \r\n\t" * 100_000).encode()))
        assert len(read(path)) == len(found)


def test_an_object_round_the_rows_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for indent in (None, 1):
        path.write_text(json.dumps({"version": 1, "data": rows(0, 3)}, indent=indent))
        with pytest.raises(DataError, match=r"rows\.json:1: "):
            read(path)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("sizes", [(1000, 2000), (2000, 1000), (1000, 1000), (5, 0)])
def test_two_parquet_files_in_one_are_told(
    tmp_path: Path, sizes: tuple[int, int], index: bool
) -> None:
    """The footer is the second one's, the rows that it points to the first one's."""
    joined, first = b"", 0
    for n in sizes:
        table = pa.Table.from_pylist(
            rows(first, n),
            pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")]),
        )
        path = tmp_path / f"{n}.parquet"
        pq.write_table(table, path, write_page_index=index)
        assert len(read(path)) == n
        joined, first = joined + path.read_bytes(), first + n
    path = tmp_path / "joined.parquet"
    path.write_bytes(joined)
    with pytest.raises(DataError, match=r"joined\.parquet: .* another Parquet file"):
        read(path)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, bytes, list[int]]:
    """A saved data set's file of rows, what is in it, and where its messages end."""
    from datasets import Dataset

    Dataset.from_list(rows(0, 3000)).save_to_disk(str(tmp_path / "set"))
    (path,) = (tmp_path / "set").glob("*.arrow")
    ends = []
    with pa.memory_map(str(path)) as file:
        messages = pa.ipc.MessageReader.open_stream(file)
        while True:
            try:
                messages.read_next_message()
            except StopIteration:
                break
            ends.append(file.tell())
    assert len(read(path.parent)) == 3000
    return path, path.read_bytes(), ends


def test_a_saved_data_set_cut_off_between_its_batches_is_told(
    saved: tuple[Path, bytes, list[int]],
) -> None:
    path, whole, ends = saved
    damaged: list[Any] = [whole[:end] for end in ends]
    damaged += [whole + whole, whole + bytes(8), whole[: ends[-2]] + bytes(len(whole) - ends[-2])]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(DataError, match=path.name):
            read(path.parent)
