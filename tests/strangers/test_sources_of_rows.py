"""The same rows out of every kind of source, and no source that ends early without a word."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config import load_config
from rlaif.errors import DataError
from rlaif.files.readers import BadRow, read_pairs, read_prompts
from rlaif.files.readers.settings import PairReading
from rlaif.store.places import Named, keep, missing

ROWS = [
    {
        "prompt": f"q{i}, «x»\nor",
        "chosen": f'"a" {i}',
        "rejected": f"b\r\n{i}",
        "score_chosen": i,
        "score_rejected": 2,
    }
    for i in range(5)
]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], folder: Path) -> bytes:
    with (folder / "out.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = (folder / "out.csv").read_bytes()
    (folder / "out.csv").unlink()
    return data


def told(source: Path | str) -> list[Any]:
    return [(p.prompt.messages[0].content, p.first, p.second, p.label) for p in read_pairs(source)]


EXPECTED = [
    (r["prompt"], r["chosen"], r["rejected"], 0.5 if r["score_chosen"] == 2 else 1.0) for r in ROWS
]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", ["jsonl", "json", "json with a mark", "json lines", "csv"])
def test_text_files_packed_and_not(tmp_path: Path, form: str, packing: str) -> None:
    data = {
        "jsonl": as_jsonl(ROWS),
        "json": json.dumps(ROWS, indent=2).encode(),
        "json with a mark": b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode(),
        "json lines": as_jsonl(ROWS),
        "csv": as_csv(ROWS, tmp_path),
    }[form]
    path = tmp_path / f"rows.{form.split()[0]}{packing}"
    path.write_bytes(PACKERS[packing](data))
    assert told(path) == EXPECTED


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_file_that_is_cut_off_is_never_taken_for_a_shorter_one(
    tmp_path: Path, form: str, packing: str
) -> None:
    rows = [{"prompt": f"{i} " * 50, "chosen": "a", "rejected": f"b{i}"} for i in range(3_000)]
    data = {
        "jsonl": as_jsonl(rows),
        "json": json.dumps(rows).encode(),
        "csv": as_csv(rows, tmp_path),
    }[form]
    packed = PACKERS[packing](data)
    path = tmp_path / f"rows.{form}{packing}"
    path.write_bytes(packed[: int(len(packed) * 0.9)])
    if packing == "" and form == "csv":
        path.write_bytes(packed[: packed.rindex(b",")])  # a last row without its last cell
        assert len(list(read_pairs(path, PairReading(skip_bad=1), on_bad=lambda _: None))) == 2_999
        quoted = b'prompt,chosen,rejected\nq,a,"b\nq,a,c\n'  # cut off inside a cell
        (tmp_path / "quoted.csv").write_bytes(quoted)
        with pytest.raises(DataError, match=r"quoted.csv: the file cannot be read beyond line"):
            list(read_pairs(tmp_path / "quoted.csv"))
    found = []
    with pytest.raises(DataError, match=r"rows\..*(beyond|cut off|expected 3 cells)"):
        found.extend(read_pairs(path))
    assert len(found) < 3_000


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.one_of(
                st.text(max_size=20),
                st.integers(),
                st.none(),
                st.lists(st.text(max_size=5), max_size=3),
            ),
            max_size=3,
        ),
        max_size=8,
    ),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([(",", ":"), (" , ", " : ")]),
    st.integers(1, 40),
)
def test_a_json_array_is_read_piece_by_piece_as_a_whole(
    rows: list[Any], indent: int | None, separators: Any, piece: int
) -> None:
    """However the pieces fall: inside a number, an escape, between two rows."""
    import io

    from rlaif.files.readers import sources

    text = json.dumps(rows, indent=indent, separators=separators)
    before, sources._PIECE = sources._PIECE, piece
    try:
        assert list(sources._array_items(io.StringIO(text))) == rows
        if rows:
            with pytest.raises(ValueError, match=r".+"):
                list(sources._array_items(io.StringIO(text.rstrip()[:-1])))
    finally:
        sources._PIECE = before


@pytest.mark.parametrize("text", ["[1 2]", "[,]", '[{"a": 1},]', '[{"a": 1} {"a": 2}]', "[nul]"])
def test_a_damaged_array_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=r"rows.json"):
        list(read_pairs(tmp_path / "rows.json"))


def test_items_of_an_array_that_are_no_objects_are_malformed_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(["text", ROWS[0]]))
    bad: list[BadRow] = []
    assert (
        len(list(read_pairs(tmp_path / "rows.json", PairReading(skip_bad=1), on_bad=bad.append)))
        == 1
    )
    assert (bad[0].source, bad[0].detail) == (
        f"{tmp_path}/rows.json:1",
        "expected a JSON object, got a text",
    )


def test_csv_rows_that_do_not_fit_their_header_or_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,chosen,rejected\nq,a,b\nq,a\nq,a,b,c\nq,\xff,b\nq,,b\n" + b"q,x,y\n")
    bad: list[BadRow] = []
    found = list(read_pairs(path, PairReading(skip_bad=9), on_bad=bad.append))
    assert [(p.first, p.source) for p in found] == [("a", "rows.csv:2"), ("x", "rows.csv:7")]
    assert [b.source.rpartition(":")[2] for b in bad] == ["3", "4", "5", "6"]
    assert bad[0].detail == "expected 3 cells, as the header has, got 2"
    long = "x" * 300_000  # more than the csv module's own limit
    path.write_text(f"prompt,chosen,rejected\nq,{long},b\n")
    assert [p.first for p in read_pairs(path)] == [long]


# ---------------------------------------------------------------- folders and globs


def shards(folder: Path, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        for i, part in enumerate((rows[:2], rows[2:])):
            if not part:
                continue
            name = folder / f"{split}-{i:05d}-of-00002.{form}"
            if form == "parquet":
                pq.write_table(pa.Table.from_pylist(part), name)
            elif form.startswith("jsonl"):
                name.write_bytes(PACKERS[form.removeprefix("jsonl")](as_jsonl(part)))
            else:
                name.write_bytes(as_csv(part, folder))


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.zst", "csv"])
def test_a_folder_of_shards_has_splits(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "set", tmp_path / "snapshot" / "data"):
        shards(folder, form)
    (tmp_path / "set" / "README.md").write_text("# a card")
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    (tmp_path / "set" / "_SUCCESS.json").write_text("{}")
    for source in (tmp_path / "set", tmp_path / "snapshot"):
        assert told(source) == EXPECTED  # `train`, as of a saved data set
        assert told(f"{source}:test") == EXPECTED[:1]
        with pytest.raises(DataError, match=r"no split 'dev'; name one: .*:test\|train"):
            told(f"{source}:dev")
    assert told(f"{tmp_path}/set/train-*.{form}") == EXPECTED
    assert told(f"{tmp_path}/s*/**/test-*") == EXPECTED[:1] * 2
    for pattern in ("set/train-*", "s*/**/test-*"):
        assert missing(Named(("pairs", "path"), "rows", f"{tmp_path}/{pattern}")) is None
    monkeypatch.chdir(tmp_path)  # run.yaml names such a pattern so that it is found from anywhere
    nested = load_config(overrides=["pairs={path: s*/**/test-*}"])
    kept = keep(nested, tmp_path / "run", {})
    assert kept.data["pairs"]["path"] == f"{tmp_path}/s*/**/test-*"
    where = [p.source for p in read_pairs(f"{tmp_path}/set/train-*")]
    numbered = where[3].rpartition(":")[2]
    assert where[3].startswith("train-00001-of-00002")
    assert numbered.isdigit()
    with pytest.raises(DataError, match="no file matches"):
        told(f"{tmp_path}/set/dev-*.{form}")


def test_a_folder_of_other_files_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(as_jsonl(ROWS))
    assert told(tmp_path) == EXPECTED * 2
    (tmp_path / "c.csv").write_bytes(as_csv(ROWS, tmp_path))
    with pytest.raises(DataError, match=r"a mixture of \.csv, \.jsonl: name one kind"):
        told(tmp_path)
    (tmp_path / "c.csv").unlink()
    (tmp_path / "test.jsonl").write_bytes(as_jsonl(ROWS))
    with pytest.raises(DataError, match="some files are of a split and some of none"):
        told(tmp_path)
    assert told(f"{tmp_path}:test") == EXPECTED
    (tmp_path / "notes.md").write_text("x")
    for source in (f"{tmp_path}/*", f"{tmp_path}/notes.md"):
        with pytest.raises(DataError, match=r"notes.md: expected \.jsonl, .*got '\.md'"):
            told(source)


def test_columns_that_are_not_read_are_still_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"ask": "q", "good": "a", "bad": "b", "vectors": [1.0, 2.0]}])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="got the fields: ask, good, bad, vectors"):
        list(read_pairs(tmp_path / "rows.parquet"))
    with pytest.raises(DataError, match="got the fields: ask, good, bad, vectors"):
        list(read_prompts(tmp_path / "rows.parquet"))


# ---------------------------------------------------------------- the hub


def test_hub_names_have_subsets_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str, streaming: bool) -> dict[str, Any]:
        assert streaming
        asked.append(names)
        return {"train": ROWS, "test": ROWS[:1]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert told("owner/set") == EXPECTED
    assert told("owner/set:test") == EXPECTED[:1]
    assert told("owner/set/subset:test") == EXPECTED[:1]
    assert asked == [("owner/set",), ("owner/set",), ("owner/set", "subset")]
    for name in ("owner/set", "owner/set:test", "owner/set/subset:test"):
        assert missing(Named(("pairs", "path"), "rows", name)) is None
    for name in ("owner/set.jsonl.zst", "owner/set.csv", "a/b/c/d"):
        with pytest.raises(DataError, match="no such file or folder"):
            told(name)
        assert "no such file" in str(missing(Named(("pairs", "path"), "rows", name)))


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("form", ["json", "csv", "jsonl.zst", "jsonl.xz"])
def test_large_files_of_every_kind_are_streamed(tmp_path: Path, form: str) -> None:
    rows = [{"prompt": f"{i} " * 800} for i in range(8_000)]
    data = {
        "json": json.dumps(rows).encode(),
        "csv": as_csv(rows, tmp_path),
        "jsonl.zst": as_jsonl(rows),
        "jsonl.xz": as_jsonl(rows),
    }[form]
    path = tmp_path / f"rows.{form}"
    path.write_bytes(PACKERS[Path(form).suffix](data))
    size = len(data)
    del data, rows
    tracemalloc.start()
    count = sum(1 for _ in read_prompts(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert peak < size / 3  # of which xz takes 8 MiB for its dictionary
