"""Columns of one name and keys that are repeated are refused, not taken by the last of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.constitution import Constitution
from rlaif.constitution.published import import_constitution
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import BadRow, read_demonstrations, read_pairs, read_prompts
from rlaif.files.readers.fields import Broken, item_at
from rlaif.files.readers.settings import AnswerReading, PairReading, PromptReading

GOOD = '{"prompt": "q", "chosen": "a", "rejected": "b"}'
REPEATED = {
    "chosen": '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}',
    "with an escape": '{"prompt": "q", "chosen": "a", "rejected": "b", "ch\\u006fsen" : "c"}',
    "the same value": '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "a"}',
    "content": '{"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "content": "c"}],'
    ' "rejected": [{"role": "assistant", "content": "b"}]}',
    "deep": '{"prompt": "q", "chosen": "a", "rejected": "b", "meta": {"x": [{"y": 1, "y": 2}]}}',
}


@pytest.mark.parametrize("row", REPEATED.values(), ids=REPEATED)
@pytest.mark.parametrize("form", ["lines", "array", "lines of .json"])
def test_a_row_of_repeated_keys_is_malformed(tmp_path: Path, row: str, form: str) -> None:
    path = tmp_path / ("rows.jsonl" if form == "lines" else "rows.json")
    rows = [GOOD, row, GOOD]
    path.write_text("[" + ",\n".join(rows) + "]" if form == "array" else "\n".join(rows) + "\n")
    for read in (read_pairs, read_prompts, read_demonstrations):
        with pytest.raises(DataError, match=r"rows\.jsonl?:[12]: "):
            list(read(path))
    with pytest.raises(DataError, match=r":2: expected different keys, got '\w+' twice in one obj"):
        list(read_pairs(path))
    bad: list[BadRow] = []
    assert len(list(read_pairs(path, PairReading(skip_bad=1), on_bad=bad.append))) == 2
    assert [(b.reason, b.excerpt[:14]) for b in bad] == [("malformed", '{"prompt": "q"')]


@settings(max_examples=200)
@given(
    st.recursive(
        st.one_of(st.integers(), st.text(max_size=4), st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.text(max_size=3),
    st.integers(1, 9),
)
def test_json_without_repetition_is_read_as_ever(value: object, key: str, cut: int) -> None:
    text = json.dumps({"a": value})
    assert item_at("  " + text + " x", 2) == ({"a": value}, 2 + len(text))
    twice = f'{{"b": {text}, {json.dumps(key)}: 1, {json.dumps(key)}: {text}}}'
    item, end = item_at(twice + " ", 0)
    assert isinstance(item, Broken)
    assert (item.content, end) == (twice, len(twice))
    with pytest.raises(ValueError, match=r".+"):
        item_at(twice[:-cut], 0)


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("prompt,chosen,rejected,chosen", "'chosen' as column 2", "'chosen' as column 4"),
        ("prompt,chosen, chosen,rejected", "'chosen' as column 2", "' chosen' as column 3"),
        ("prompt,chosen,\ufeffprompt,x", "'prompt' as column 1", r"'\\ufeffprompt' as colum"),
        ('note,"chosen\n",chosen,note', r"'chosen\\n' as column 2", "'chosen' as column 3"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_of_one_name_are_refused(
    tmp_path: Path, header: str, first: str, second: str, mark: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{mark}{header}\nq,a,b,c\n", encoding="utf-8")
    match = f"rows.csv: .*{first} and {second}.*Rename or remove"
    for found in (
        read_pairs(path, PairReading(skip_bad=9)),
        read_prompts(path, PromptReading(skip_bad=9)),
        read_demonstrations(path, AnswerReading(skip_bad=9)),
    ):
        with pytest.raises(DataError, match=match):
            list(found)


def test_columns_without_a_name_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,,\nq,a,b,,\n")  # as spreadsheets do
    assert [p.first for p in read_pairs(tmp_path / "rows.csv")] == ["a"]


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for name in ("chosen", "chosen "):
        table = pa.table([["q"], ["a"], ["b"], ["c"]], names=["prompt", "chosen", "rejected", name])
        pq.write_table(table, path)
        with pytest.raises(DataError, match=rf"'chosen' as column 2 and '{name}' as column 4"):
            list(read_pairs(path))
    parts = [pa.array(["assistant"]), pa.array(["a"]), pa.array(["c"])]
    chosen = pa.StructArray.from_arrays(parts, names=["role", "content", "content"])
    names = ["prompt", "chosen", "rejected"]
    pq.write_table(pa.table([pa.array(["q"]), chosen, pa.array(["b"])], names=names), path)
    with pytest.raises(DataError, match=r"rows\.parquet: .*duplicate field names"):
        list(read_pairs(path))


def test_repeated_keys_of_constitutions_are_refused(tmp_path: Path) -> None:
    text = "name: x\nprinciples:\n  - {id: a, compare: be kind, compare: be rude}\n"
    with pytest.raises(ConfigError, match=r"line 3.*compare|compare.*twice"):
        Constitution.parse(text, "c.yaml")
    path = tmp_path / "principles.json"
    path.write_text('{"a": {"prompt": "x", "edit_request": "y", "prompt": "z"}}')
    with pytest.raises(DataError, match=r"principles\.json: .*'prompt' twice in one object"):
        import_constitution(path)
