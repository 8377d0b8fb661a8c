"""Readers name what they leave out; what the writer writes, TRL's tools and the readers read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import BadRow, read_pairs, read_prompts
from rlaif.files.readers.settings import PairReading
from rlaif.files.writers import export_preferences
from rlaif.records import Message, Pair, Preference, Prompt, messages_to_json

HH = Path(__file__).parent.parent / "../shared/data/hh_rlhf/harmless-base-test.jsonl.gz"

ASK = "\n\nHuman: hi there \n\nAssistant: Hello!\n\nHuman: how\n\nare you?"
ASKED = (Message("user", "hi there"), Message("assistant", "Hello!"))
ASKED += (Message("user", "how\n\nare you?"),)


def hh(chosen: str = " Well.", rejected: str = " Bad.", ask: str = ASK) -> dict[str, Any]:
    return {
        "chosen": f"{ask}\n\nAssistant:{chosen}",
        "rejected": f"{ask}\n\nAssistant:{rejected}",
    }


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def jsonl(path: Path, *rows: Any) -> Path:
    """Objects as JSON; bytes as they are."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# ---------------------------------------------------------------------------- pairs


def test_a_transcript_becomes_messages_and_two_responses(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", hh(), b"", hh(chosen=" ", rejected=" No."))
    first, second = read_pairs(path)
    assert first == Pair(Prompt(ASKED, "a.jsonl:1"), "Well.", "Bad.", 1.0, "a.jsonl:1")
    assert (second.first, second.second, second.source) == ("", "No.", "a.jsonl:3")


def test_the_published_file_has_five_unusable_rows() -> None:
    if not HH.exists():
        pytest.skip("the shared hh-rlhf file is not here")
    bad: list[BadRow] = []
    pairs = list(read_pairs(HH, on_bad=bad.append))
    assert len(pairs) == 2307
    assert Counter(row.reason for row in bad) == {"unlike_prefixes": 5}
    assert [int(row.source.rpartition(":")[2]) for row in bad] == [1255, 1689, 1951, 1953, 2037]
    assert sum(not pair.first or not pair.second for pair in pairs) == 4
    assert {pair.prompt.messages[-1].role for pair in pairs} == {"user"}
    with gzip.open(HH) as lines:
        row = json.loads(next(lines))
    turns = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{turns[m.role]}: {m.content}" for m in pairs[0].prompt.messages)
    assert f"{text}\n\nAssistant: {pairs[0].first}" == row["chosen"]


TRL_ROWS = {
    "standard": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "standard, implicit prompt": {"chosen": "hi yes it is", "rejected": "hi yet it is"},
    "conversational": {"prompt": user("hi"), "chosen": says("yes"), "rejected": says("no")},
    "conversational, implicit prompt": {
        "chosen": user("hi") + says("yes"),
        "rejected": user("hi") + says("no"),
    },
    "prompt as text and as first turn": {
        "prompt": "hi",
        "chosen": user("hi") + says("yes"),
        "rejected": user("hi") + says("no"),
    },
    "transcript as prompt": {
        "prompt": "\n\nHuman: hi\n\nAssistant:",
        "chosen": " yes",
        "rejected": " no",
    },
}


@pytest.mark.parametrize("name", TRL_ROWS)
@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_trl_rows_in_all_their_forms(tmp_path: Path, name: str, form: str) -> None:
    source = stored(tmp_path, [TRL_ROWS[name], {**TRL_ROWS[name], "p_chosen": 0.75}], form)
    implicit = name == "standard, implicit prompt"
    first, second = read_pairs(source, PairReading(format="trl" if implicit else "auto"))
    assert first.prompt.messages == (Message("user", "hi"),)
    expected = (" yes it is", " yet it is") if implicit else ("yes", "no")
    assert (first.first, first.second) == expected
    assert (first.label, second.label) == (1.0, 0.75)
    assert first.source == f"{source.name}:1"


def stored(folder: Path, rows: list[dict[str, Any]], form: str) -> Path:
    rows = [{"p_chosen": None, **row} for row in rows]
    if form == "jsonl":
        return jsonl(folder / "rows.jsonl", *rows)
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        return folder / "rows.parquet"
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "rows"))
    return folder / "rows"


UNUSABLE = [
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
        "unlike_prefixes",
    ),
    ({"chosen": user("a") + says("x"), "rejected": user("b") + says("y")}, "unlike_prefixes"),
    (hh(" same", " same\n"), "identical_responses"),
    ({"prompt": "q", "chosen": "", "rejected": " "}, "identical_responses"),
    ({"prompt": " ", "chosen": "x", "rejected": "y"}, "empty_prompt"),
    ({"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"}, "empty_prompt"),
    ({"prompt": [], "chosen": says("x"), "rejected": says("y")}, "empty_prompt"),
    (
        {"prompt": user("q"), "chosen": says("x") + user("?"), "rejected": says("y")},
        "no_single_answer",
    ),
    ({"prompt": user("q"), "chosen": [], "rejected": says("y")}, "no_single_answer"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_an_unusable_pair_is_reported_and_does_not_stop(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", row, hh())
    bad: list[BadRow] = []
    assert len(list(read_pairs(path, on_bad=bad.append))) == 1
    (left,) = bad
    assert (left.source, left.reason) == (f"{path}:1", reason)
    assert left.excerpt.startswith("{")
    with pytest.warns(UserWarning, match=f"1 rows left out \\({reason} 1\\)"):
        assert len(list(read_pairs(path))) == 1


MALFORMED = [
    (b'{"chosen": "a", "reje', "expected a JSON object, got text that is not JSON or is cut off"),
    (b'{"chosen": "\xff"}', "expected UTF-8, got invalid start byte at byte 12"),
    (b"[1, 2]", "expected a JSON object, got a list"),
    (b"[" * 100_000, "expected a JSON object"),
    ({"chosen": "a", "other": 1}, "expected a field 'rejected', got the fields: chosen, other"),
    ({"chosen": "a", "rejected": None}, r"chosen, rejected \(null\)"),
    ({"chosen": 3, "rejected": "b"}, "expected 'chosen' to be a text or a list.*got a number"),
    ({"chosen": "a", "rejected": says("b")}, "expected 'rejected' to be a text like 'chosen'"),
    ({"prompt": {}, "chosen": "a", "rejected": "b"}, "expected 'prompt' to be .*got an object"),
    ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, r"expected 'chosen\[0\]' to be a mess"),
    (
        {"prompt": "q", "chosen": [{"role": "bot", "content": "a"}], "rejected": says("b")},
        r"expected 'chosen\[0\].role' to be system\|user\|assistant, got 'bot'",
    ),
    (
        {"prompt": "q", "chosen": [{"role": "user"}], "rejected": says("b")},
        r"expected 'chosen\[0\].content' to be a text, got null",
    ),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 1.5}, "a number from 0 to 1"),
    (b'{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}', "got a lone surrogate"),
    ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "'chosen' to be a transcript"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED)
def test_a_malformed_row_stops_unless_it_may_be_skipped(
    tmp_path: Path, row: Any, message: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", hh(), row, hh(" Other."))
    with pytest.raises(DataError, match=f"{path}:2: .*{message}.*--skip-bad 1"):
        list(read_pairs(path))
    bad: list[BadRow] = []
    assert len(list(read_pairs(path, PairReading(skip_bad=1), on_bad=bad.append))) == 2
    assert [(left.source, left.reason) for left in bad] == [(f"{path}:2", "malformed")]
    assert len(bad[0].excerpt) <= 120
    jsonl(path, row, hh(), row)
    with pytest.raises(DataError, match=f"{path}:3: .*after 1 skipped.*--skip-bad 2"):
        list(read_pairs(path, PairReading(skip_bad=1)))


def test_unusable_rows_do_not_use_up_what_may_be_skipped(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[hh("x", "x")] * 5, b"{", hh())
    assert len(list(read_pairs(path, PairReading(skip_bad=1), on_bad=lambda _: None))) == 1


def test_a_format_that_is_asked_for_is_not_guessed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", hh())
    (as_text,) = read_pairs(path, PairReading(format="trl"))
    assert (as_text.prompt.messages, as_text.first) == (ASKED, " Well.")  # not stripped
    plain = jsonl(tmp_path / "b.jsonl", {"chosen": "q a", "rejected": "q b"})
    with pytest.raises(DataError, match=r"b\.jsonl:1: expected 'chosen' to be a transcript"):
        list(read_pairs(plain, PairReading(format="hh")))
    with pytest.raises(ConfigError, match=r"no pair format 'hhx'\. Did you mean 'hh"):
        read_pairs(path, PairReading(format="hhx"))


def test_the_limit_counts_pairs_and_reads_no_further(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", hh("x", "x"), hh(), hh(" Other."), b"{")
    assert len(list(read_pairs(path, PairReading(limit=2), on_bad=lambda _: None))) == 2
    with pytest.raises(ConfigError, match=r"'limit': .*got 0"):
        PairReading(limit=0)


# ---------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "no such file or folder: .*none.jsonl"),
        ("some.xlsx", r"expected .jsonl, .*got '.xlsx'"),
        ("some.txt", r"expected .jsonl, .*got '.txt'"),
        ("folder", "expected a folder saved by datasets.save_to_disk"),
        ("not.parquet", "cannot be read beyond row 0"),
        ("not.jsonl.gz", "cannot be read beyond line 0"),
    ],
)
def test_a_wrong_source_is_explained(tmp_path: Path, name: str, message: str) -> None:
    for file in ("some.xlsx", "some.txt", "not.parquet", "not.jsonl.gz"):
        (tmp_path / file).write_text("chosen,rejected\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        list(read_pairs(tmp_path / name))


def test_a_cut_off_gz_names_the_line_it_reaches(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"prompt": f"{i} " * 50}).encode() + b"\n" for i in range(4000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines))
    assert len(list(read_prompts(path))) == 4000
    path.write_bytes(gzip.compress(lines)[:-4000])
    found: list[Prompt] = []
    with pytest.raises(DataError, match="cannot be read beyond line") as cut:
        found.extend(read_prompts(path))
    assert f"line {len(found)}:" in str(cut.value)
    assert 0 < len(found) < 4000


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"prompt": f"{i} " * 100}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in read_prompts(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 2


def test_a_saved_folder_with_splits_takes_the_one_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {
        name: datasets.Dataset.from_list([{"prompt": name, "chosen": "a", "rejected": "b"}])
        for name in ("train", "test", "extra")
    }
    folder = str(tmp_path / "splits")
    datasets.DatasetDict(parts).save_to_disk(folder)
    assert [p.prompt.messages[0].content for p in read_pairs(folder)] == ["train"]
    assert [p.prompt.messages[0].content for p in read_pairs(folder + ":test")] == ["test"]
    with pytest.raises(DataError, match=r"no split 'dev'; name one: .*:extra\|test\|train"):
        read_pairs(folder + ":dev")
    datasets.DatasetDict({"only": parts["test"]}).save_to_disk(folder + "1")
    assert len(list(read_pairs(folder + "1"))) == 1


def test_a_hub_name_without_a_network_is_explained() -> None:
    pytest.importorskip("datasets")
    code = """
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_pairs
try:
    read_pairs("owner/some-data-v1.0:test")
except DataError as error:
    print(error)
"""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "no file or folder 'owner/some-data-v1.0'" in done.stdout
    assert "Check the name and the network" in done.stdout


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", hh())
    code = f"""
import sys
from rlaif.files.readers import read_pairs
import rlaif.store, rlaif.files.writers
assert len(list(read_pairs({str(path)!r}))) == 1
assert not {{"torch", "datasets", "transformers"}} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# ---------------------------------------------------------------------------- prompts


def test_prompts_come_as_text_or_messages(tmp_path: Path) -> None:
    talk = [Message("system", "s"), Message("user", "q")]
    rows = [{"prompt": "q"}, {"prompt": messages_to_json(talk)}, {"messages": user("q")}]
    rows += [{"text": "q", "id": 7}, {"prompt": f"{ASK}\n\nAssistant:"}]
    path = jsonl(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + json.dumps(rows[0]).encode(), *rows[1:])
    one = (Message("user", "q"),)
    found = list(read_prompts(path))
    assert [p.messages for p in found] == [one, tuple(talk), one, one, ASKED]
    assert found[4].source == "p.jsonl:5"


def test_a_text_that_only_mentions_turns_is_one_turn(tmp_path: Path) -> None:
    text = "Explain this:\n\nHuman: hi\n\nAssistant: hello"
    (prompt,) = read_prompts(jsonl(tmp_path / "p.jsonl", {"prompt": text}))
    assert prompt == Prompt.user(text, "p.jsonl:1")


def test_prompts_from_a_text_file_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("first\r\n\n  Grüße \n\nlast".encode())
    found = list(read_prompts(tmp_path / "p.txt"))
    assert [(p.messages[0].content, p.source) for p in found] == [
        ("first", "p.txt:1"),
        ("Grüße", "p.txt:3"),
        ("last", "p.txt:5"),
    ]
    rows = [{"prompt": "a", "size": 1}, {"prompt": "b", "size": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert [p.messages[0].content for p in read_prompts(tmp_path / "p.parquet")] == ["a", "b"]
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: expected 'text' to be .*, got no UTF-8"):
        list(read_prompts(tmp_path / "bad.txt"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " \n"}, "empty_prompt"),
        ({"messages": []}, "empty_prompt"),
        ({"messages": user("")}, "empty_prompt"),
        ({"messages": user("q") + says("a")}, "ends_with_assistant"),
    ],
)
def test_an_unusable_prompt_is_reported(tmp_path: Path, row: Any, reason: str) -> None:
    bad: list[BadRow] = []
    path = jsonl(tmp_path / "p.jsonl", row, {"prompt": "q"})
    assert len(list(read_prompts(path, on_bad=bad.append))) == 1
    assert [left.reason for left in bad] == [reason]


def test_a_prompt_row_without_a_prompt_names_its_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"ask": "q"})
    with pytest.raises(DataError, match="expected a field 'prompt', got the fields: ask"):
        list(read_prompts(path))


# ---------------------------------------------------------------------------- the writer

TALK = Prompt((Message("system", "s"), *ASKED))
PREFERENCES = [
    Preference(Pair(TALK, "one", "two\nlines ≻"), "preferred", 0.25, ("a",), (0.25,), 2),
    Preference(Pair(Prompt.user("q"), "x", "y"), "preferred", 0.9, ("a",), (0.9,), 2),
    Preference(Pair(Prompt.user("q"), "x", "z"), "tie", 0.5, ("a",), (0.5,), 2),
    Preference(Pair(Prompt.user("q"), "x", "w"), "abstained", None, abstained=2),
]
ROWS = [
    {
        "prompt": messages_to_json(p.pair.prompt.messages),
        "chosen": says(p.chosen),
        "rejected": says(p.rejected),
        "p_chosen": p.p_chosen,
        "pair_id": p.pair.id,
    }
    for p in PREFERENCES[:2]
]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
@pytest.mark.parametrize("conversational", [True, False])
def test_an_export_is_read_back(tmp_path: Path, name: str, conversational: bool) -> None:
    path = tmp_path / "deep" / name
    for _ in range(2):  # the second replaces the first
        counts = export_preferences(iter(PREFERENCES), path, conversational=conversational)
        assert counts == {"preferred": 2, "tie": 1, "abstained": 1}
    assert [p.name for p in path.parent.iterdir()] == [name]
    first, second = read_pairs(path)
    assert first.prompt.messages == TALK.messages
    assert (first.first, first.second, first.label) == ("two\nlines ≻", "one", 0.75)
    assert {first.id.lstrip("~"), second.id.lstrip("~")} == {
        p.pair.id.lstrip("~") for p in PREFERENCES[:2]
    }


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_an_export_is_loaded_by_datasets_as_trl_wants_it(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    path = str(tmp_path / name)
    export_preferences(PREFERENCES, path)
    if name == "out":
        loaded = datasets.load_from_disk(path)
    else:
        kind = {"out.jsonl": "json", "out.parquet": "parquet"}[name]
        cache = str(tmp_path / "cache")
        loaded = datasets.load_dataset(kind, data_files=path, split="train", cache_dir=cache)
    assert loaded.to_list() == ROWS


def test_trl_recognises_an_export_as_preferences(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.data_utils")
    export_preferences(PREFERENCES, tmp_path / "out.jsonl")
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert trl.is_conversational(row)
        del row["prompt"], row["p_chosen"], row["pair_id"]
        whole = {side: json.loads(line)["prompt"] + row[side] for side in row}
        assert trl.extract_prompt(whole) == {"prompt": json.loads(line)["prompt"], **row}


def test_an_export_that_cannot_be_is_refused_and_leaves_what_was_there(tmp_path: Path) -> None:
    old = jsonl(tmp_path / "old.jsonl", {"a": 1})
    with pytest.raises(DataError, match="no preferred pair among 1 ties and 1 abstentions"):
        export_preferences(PREFERENCES[2:], old)
    bad = Preference(Pair(Prompt.user("q"), "\ud800", "y"), "preferred", 0.9)
    for name in ("old.jsonl", "new.parquet", "new"):
        with pytest.raises(DataError, match="not valid Unicode"):
            export_preferences([bad], tmp_path / name)
    with pytest.raises(DataError, match=r"expected .jsonl, .parquet or a folder"):
        export_preferences(PREFERENCES, tmp_path / "out.csv")
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="no saved data set"):
        export_preferences(PREFERENCES, tmp_path / "mine")
    with pytest.raises(DataError, match="cannot write"):
        export_preferences(PREFERENCES, old / "below.jsonl")
    assert old.read_text() == '{"a": 1}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "old.jsonl"]
