"""What a row holds is read, or the row is refused by name; ties are ties; votes are counted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import DataError
from rlaif.files.readers import BadRow, read_demonstrations, read_pairs, read_prompts
from rlaif.files.readers.chosen import RATINGS
from rlaif.files.readers.repeats import Repeats, Votes
from rlaif.files.readers.settings import PairReading
from rlaif.records import Message, Pair, Prompt
from rlaif.store import RunStore


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}
CALL = [{"type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
TALK = {"chosen": [user("q"), says("Let me see.")], "rejected": [user("q"), says("No.")]}


# ---------------------------------------------------------------- what is no text

HELD = {
    "tools": ({**PLAIN, "tools": CALL}, "tools"),
    "tools as text": ({**PLAIN, "tools": '[{"name": "look_up"}]'}, "tools"),
    "images": ({**PLAIN, "images": ["cat.png"]}, "images"),
    "reasoning of the row": ({**PLAIN, "reasoning_content": "Well."}, "reasoning_content"),
    "a tool call": (
        {**TALK, "chosen": [user("q"), says("Let me see.", tool_calls=CALL)]},
        r"chosen\[1\].tool_calls",
    ),
    "a call without words": (
        {**TALK, "chosen": [user("q"), says(None, tool_calls=CALL)]},
        r"chosen\[1\].tool_calls",
    ),
    "a thought": (
        {**TALK, "rejected": [user("q"), says("No.", reasoning_content="Hm.")]},
        r"rejected\[1\].reasoning_content",
    ),
    "a thought by another name": (
        {**TALK, "rejected": [user("q"), says("No.", thinking="Hm.")]},
        r"rejected\[1\].thinking",
    ),
    "a tool's turn": (
        {**TALK, "chosen": [user("q"), {"role": "tool", "content": "42"}, says("42")]},
        r"'chosen\[1\]' has the role 'tool'",
    ),
    "an observation": (
        {"conversations": [{"from": "observation", "value": "42"}], "chosen": "a", "rejected": "b"},
        r"'conversations\[0\]' has the role 'observation'",
    ),
    "an image in a turn": (
        {**TALK, "chosen": [user([{"type": "image_url", "image_url": {"url": "x"}}]), says("a")]},
        r"'chosen\[0\].content\[0\]' is a part of type 'image_url'",
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_no_text_is_refused_by_name_and_counted(tmp_path: Path, name: str) -> None:
    row, place = HELD[name]
    path = write(tmp_path / "rows.jsonl", PLAIN, row)
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{place}.*--skip-bad 1"):
        list(read_pairs(path))
    bad: list[BadRow] = []
    assert len(list(read_pairs(path, PairReading(skip_bad=1), on_bad=bad.append))) == 1
    assert [(b.source, b.reason) for b in bad] == [(f"{path}:2", "unsupported")]


def test_two_answers_that_differ_in_a_tool_call_only_are_not_identical(tmp_path: Path) -> None:
    row = {"chosen": [user("q"), says("", tool_calls=CALL)], "rejected": [user("q"), says("")]}
    bad: list[BadRow] = []
    list(
        read_pairs(write(tmp_path / "rows.jsonl", row), PairReading(skip_bad=1), on_bad=bad.append)
    )
    assert [b.reason for b in bad] == ["unsupported"]


@pytest.mark.parametrize("empty", [None, [], "", "[]", {}])
def test_what_is_empty_holds_nothing(tmp_path: Path, empty: Any) -> None:
    row = {
        "prompt": "q",
        "images": empty,
        "tools": empty,
        "chosen": [says("a", tool_calls=empty)],
        "rejected": [says("b")],
    }
    assert len(list(read_pairs(write(tmp_path / "rows.jsonl", row)))) == 1


@pytest.mark.parametrize("read", [read_prompts, read_demonstrations])
def test_prompts_and_demonstrations_refuse_the_same(tmp_path: Path, read: Any) -> None:
    rows: list[Any] = [
        {"prompt": "q", "completion": "a", "tools": CALL},
        {"messages": [user("q"), says("a", tool_calls=CALL)]},
        {"prompt": [user([{"type": "image"}])], "completion": "a"},
    ]
    for row in rows:
        with pytest.raises(DataError, match="only texts can be read"):
            list(read(write(tmp_path / "rows.jsonl", row)))


def test_an_answer_that_its_row_calls_bad_is_not_learnt_from(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": x} for x in (True, False)]
    bad: list[BadRow] = []
    path = write(tmp_path / "rows.jsonl", *rows)
    assert len(list(read_demonstrations(path, on_bad=bad.append))) == 1
    assert [b.reason for b in bad] == ["undesired"]


def test_a_field_whose_name_is_no_unicode_is_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a\\ud800": 1}\n')
    bad: list[BadRow] = []
    assert (
        list(read_pairs(tmp_path / "rows.jsonl", PairReading(skip_bad=1), on_bad=bad.append)) == []
    )
    assert bad[0].detail.encode()
    assert bad[0].excerpt.encode()


# ---------------------------------------------------------------- the system message


def test_a_system_column_becomes_the_system_message(tmp_path: Path) -> None:
    asked = (Message("system", "Be brief."), Message("user", "q"))
    rows: list[dict[str, Any]] = [
        {**PLAIN, "system": "Be brief."},
        {**TALK, "system": "Be brief."},
        {
            "prompt": [user("q")],
            "chosen": [says("a")],
            "rejected": [says("b")],
            "system": "Be brief.",
        },
        {
            **PLAIN,
            "system": "Be brief.",
            "prompt": [{"role": "system", "content": "Be brief."}, user("q")],
        },
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
            "system": "Be brief.",
        },
        {"prompt": "q", "chosen": ["a"], "rejected": ["b"], "subset": "s", "system": "Be brief."},
    ]
    for row in rows:
        (pair,) = read_pairs(write(tmp_path / "rows.jsonl", row))
        assert pair.prompt.messages == asked, row
    (prompt,) = read_prompts(write(tmp_path / "p.jsonl", {"prompt": "q", "system": "Be brief."}))
    assert prompt.messages == asked
    for answer in (
        {"prompt": "q", "completion": "a", "system": "Be brief."},
        {"messages": [user("q"), says("a")], "system": "Be brief."},
    ):
        (found,) = read_demonstrations(write(tmp_path / "d.jsonl", answer))
        assert found.prompt.messages == asked
    other = {**PLAIN, "system": "x", "prompt": [{"role": "system", "content": "y"}, user("q")]}
    with pytest.raises(DataError, match="one system message, got a 'system' column and another"):
        list(read_pairs(write(tmp_path / "rows.jsonl", other)))


# ---------------------------------------------------------------- ties


@pytest.mark.parametrize(("one", "two"), RATINGS)
def test_equal_ratings_are_a_tie_whatever_they_are_called(
    tmp_path: Path, one: str, two: str
) -> None:
    rated = [(4.5, 4.5), (4.5, 3.0), (5, 5.0), ("4", "4"), (None, 4)]
    rows = [{**PLAIN, "rejected": f"b{i}", one: x, two: y} for i, (x, y) in enumerate(rated)]
    found = [p.label for p in read_pairs(write(tmp_path / "rows.jsonl", *rows))]
    assert found == [0.5, 1.0, 0.5, 0.5, 1.0]


# ---------------------------------------------------------------- votes


def pair(first: str, second: str, label: float | None) -> Pair:
    return Pair(Prompt.user("q"), first, second, label)


def test_a_row_and_its_mirror_image_that_contradict_are_both_named(tmp_path: Path) -> None:
    mirror = {"prompt": "q", "chosen": "b", "rejected": "a"}
    other = {**PLAIN, "rejected": "c"}
    path = write(tmp_path / "rows.jsonl", PLAIN, other, mirror, PLAIN)
    bad: list[BadRow] = []
    assert len(list(read_pairs(path, on_bad=bad.append))) == 4  # a reader hands out every vote
    assert [(b.source, b.reason) for b in bad] == [(f"{path}:3", "contradicts")]
    assert bad[0].detail == f"says the opposite of {path}:1"
    with pytest.warns(UserWarning, match="1 rows say the opposite of an earlier row"):
        list(read_pairs(path))
    agreeing = {"prompt": "q", "response_0": "b", "response_1": "a", "better_response_id": 1}
    assert len(list(read_pairs(write(path, PLAIN, agreeing), on_bad=bad.append))) == 2
    assert len(bad) == 1


def test_a_run_keeps_such_a_pair_once_with_the_mean_of_its_votes(tmp_path: Path) -> None:
    mirror = {"prompt": "q", "chosen": "b", "rejected": "a"}
    agreeing = {"prompt": "q", "response_0": "d", "response_1": "c", "better_response_id": 1}
    rows = [PLAIN, {"prompt": "q", "chosen": "c", "rejected": "d"}, agreeing, mirror, PLAIN, PLAIN]
    path = write(tmp_path / "rows.jsonl", *rows)
    out = str(tmp_path / "run")
    wide = {"COLUMNS": "1000"}
    result = CliRunner().invoke(app, ["label", "--pairs", str(path), "--out", out], env=wide)
    assert result.exit_code == 0, result.output
    assert "2 pairs read, 4 repeated ones left out" in result.output
    assert "1 rows say the opposite of an earlier row" in result.output
    assert f"{path}:4: says the opposite of {path}:1" in " ".join(result.output.split())
    store = RunStore(Path(out), read_only=True)
    one, two = store.table("pairs").read()
    assert isinstance(one, Pair)
    assert isinstance(two, Pair)
    assert (one.first, one.second, one.label) == ("a", "b", 0.75)  # three votes to one
    assert (two.first, two.second, two.label) == ("c", "d", 1.0)
    facts = json.loads((Path(out) / "manifest.json").read_text())["read"]
    assert facts["rejected_rows"] == {"contradicts": 1}
    (line,) = (Path(out) / "rejected-read.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == f"says the opposite of {path}:1"


@pytest.mark.parametrize(
    "command", [["sample"], ["contrast"], ["train", "sft", "--data", "rows.jsonl"]]
)
def test_rows_that_are_left_out_are_told_by_every_command(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    talk = [user("How are you?"), says("Fine.")]
    fine = [{"prompt": q, "completion": "Yes."} for q in ("How are you?", "Is it good?")]
    write(
        tmp_path / "rows.jsonl",
        *fine,
        {"prompt": " ", "completion": "a"},
        {"prompt": talk, "completion": "a"},
    )
    source = [] if command[0] == "train" else ["--prompts", "rows.jsonl"]
    options = [
        "--out",
        "run",
        "--set",
        "sampling.max_new_tokens=32",
        "--set",
        "sampling.keep_cut=true",
        "--set",
        "train.sft.epochs=1",
    ]
    result = CliRunner().invoke(app, [*command, *source, *options])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "2 rows not used: 1 empty_prompt, 1 ends_with_assistant" in told
    assert "rows.jsonl:3: empty_prompt" in told
    (kept,) = Path("run").glob("rejected-*.jsonl")
    assert len(kept.read_text().splitlines()) == 2


def test_a_source_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {**PLAIN, "rejected": "a"}, {**PLAIN, "prompt": " "})
    result = CliRunner().invoke(app, ["label", "--pairs", str(path), "--out", str(tmp_path / "r")])
    assert result.exit_code != 0
    assert f"{path}: no usable pair in it: 1 empty_prompt, 1 identical_responses" in str(
        result.exception
    )


votes = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from("abcdef"),
        st.sampled_from([0.0, 0.25, 0.5, 1.0, None]),
    ).filter(lambda v: v[0] != v[1]),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(votes)
def test_votes_against_counting_them_one_by_one(rows: list[tuple[str, str, float | None]]) -> None:
    """Whatever side a vote is told from, and however often: the mean, and who opposed whom."""
    counted, repeats = Votes(), Repeats()
    kept, opposed = [], []
    for line, (first, second, label) in enumerate(rows, 1):
        one = pair(first, second, label)
        if repeats.opposed(one, f"f:{line}"):
            opposed.append(line)
        if counted.add(one):
            kept.append(one)
    by_pair: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line, (first, second, label) in enumerate(rows, 1):
        key = (min(first, second), max(first, second))
        held = by_pair.setdefault(key, [])
        if label is not None:
            held.append((line, label if first == key[0] else 1 - label))
    expected = []
    for said in by_pair.values():
        sides = [(line, p) for line, p in said if p != 0.5]
        expected += [line for line, p in sides if (p > 0.5) != (sides[0][1] > 0.5)]
    assert opposed == sorted(expected)
    assert len(kept) == len(by_pair) == len(counted)
    for one in kept:
        said = by_pair[min(one.first, one.second), max(one.first, one.second)]
        mean = sum(p for _, p in said) / len(said) if said else None
        found = counted.counted(one).label
        if mean is not None and one.first > one.second:
            mean = 1 - mean
        assert found == (None if mean is None else pytest.approx(mean))


def test_votes_are_found_again_among_many() -> None:
    """Past every growth of the table; and a pair takes forty bytes, not four hundred."""
    repeats = Repeats()
    for i in range(20_000):
        assert repeats.opposed(pair(f"a{i}", f"b{i}", 1.0), f"x:{i + 1}") is None
    for i in itertools.chain(range(100), range(19_900, 20_000)):
        assert repeats.opposed(pair(f"b{i}", f"a{i}", 1.0), f"y:{i + 1}") == f"x:{i + 1}"
        assert repeats.opposed(pair(f"a{i}", f"b{i}", 1.0), f"y:{i + 1}") is None
    assert (len(repeats._keys) + len(repeats._votes)) * 8 < 20_000 * 80
