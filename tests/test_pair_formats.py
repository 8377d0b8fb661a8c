"""Each published format of pairs, with its traps; the 438 HHH comparisons from the real file."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlaif.errors import DataError
from rlaif.files.readers import BadRow, read_pairs
from rlaif.files.readers.settings import PairReading
from rlaif.records import Message, Pair

SHARED = Path(__file__).parent.parent / "../shared/data"
HHH = SHARED / "constitutional_paper/evals/438HHHEvaluations.jsonl"
HH = SHARED / "hh_rlhf/harmless-base-test.jsonl.gz"


def read(
    folder: Path, *rows: Any, format: str = "auto", skip_bad: int = 0
) -> tuple[list[Pair], list[BadRow]]:
    """Pairs and left-out rows of a JSONL file of these rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad: list[BadRow] = []
    pairs = read_pairs(path, PairReading(format=format, skip_bad=skip_bad), on_bad=bad.append)
    return list(pairs), bad


def changed(row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(row), **fields}


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def content(pair: Pair) -> tuple[str, str, str, float | None]:
    return pair.prompt.messages[-1].content, pair.first, pair.second, pair.label


# ---------------------------------------------------------------------------- hhh


def test_the_published_438_comparisons_all_read() -> None:
    if not HHH.exists():
        pytest.skip("the shared HHH file is not here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        pairs = list(read_pairs(HHH))
    rows = [json.loads(line) for line in HHH.read_text().splitlines()]
    assert len(pairs) == len(rows) == 438
    assert len({pair.id for pair in pairs}) == 438
    assert {pair.label for pair in pairs} == {1.0}
    letters = {" (A)": 0, " (B)": 1}
    for pair, row in zip(pairs, rows, strict=True):
        # Another way to the right answer: the option that the row's own prompt prints under it.
        shown = row["prompt"].split("]]]\n")[letters[row["corrects"][0]]].split("[[[")[1]
        assert shown.strip() == pair.first
        assert pair.prompt.messages[-1].role == "user"


def test_bigbench_rows_of_hhh_in_both_orders(tmp_path: Path) -> None:
    row = {"input": "q", "targets": {"choices": ["good", "bad"], "labels": [1, 0]}}
    turned = changed(row, targets={"choices": ["bad", "good"], "labels": [0, 1]})
    pairs, _ = read(tmp_path, row, turned)
    assert [content(p) for p in pairs] == [("q", "good", "bad", 1.0)] * 2
    neither = changed(row, targets={"choices": ["a", "b"], "labels": [0, 0]})
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected one right and one wrong"):
        read(tmp_path, neither)


# ---------------------------------------------------------------------------- webgpt

WEBGPT = {
    "question": {"dataset": "eli5", "id": "1", "full_text": " Why is it so? "},
    "quotes_0": {"title": ["t"], "extract": ["e"]},
    "answer_0": "Because [1].",
    "tokens_0": {"prefix": [1, 2], "completion": [3]},
    "score_0": -0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "It is not.",
    "tokens_1": {"prefix": [1], "completion": [4]},
    "score_1": 0.5,
}


def test_webgpt_takes_the_sign_and_keeps_ties(tmp_path: Path) -> None:
    tie = changed(WEBGPT, score_0=0.0, score_1=-0.0)
    first = changed(WEBGPT, score_0=1, score_1=-1, answer_0="Why not [2].")
    empty = changed(WEBGPT, answer_0=" ")
    pairs, bad = read(tmp_path, WEBGPT, tie, first, empty, changed(WEBGPT, answer_0="It is not."))
    ask = "Why is it so?"
    assert content(pairs[0]) == (ask, "Because [1].", "It is not.", 0.0)
    assert [pair.label for pair in pairs] == [0.0, 0.5, 1.0, 0.0]
    assert pairs[3].first == ""  # for the judge to abstain on
    assert [(b.reason, b.source.rpartition(":")[2]) for b in bad] == [("identical_responses", "5")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_1": 0.4}, "score_0 and score_1 to sum to 0, got -0.5 and 0.4"),
        ({"score_0": float("nan")}, "'score_0' to be a finite number"),
        ({"question": {"id": "1"}}, "expected a field 'full_text'"),
        ({"score_1": None}, r"expected a field 'score_1'"),
    ],
)
def test_webgpt_rows_that_are_broken(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        read(tmp_path, changed(WEBGPT, **fields))


# ---------------------------------------------------------------------------- ultrafeedback


def rated(text: str, *ratings: Any, as_list: bool = False) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    notes: dict[str, Any] = {
        name: {"Rating": rating, "Rationale": "…"}
        for name, rating in zip(aspects, ratings, strict=False)
    }
    if as_list:
        notes = {name: [note] for name, note in notes.items()}
    return {"model": "m", "response": text, "annotations": notes, "overall_score": 10}


def test_ultrafeedback_compares_on_the_aspects_that_both_have(tmp_path: Path) -> None:
    row = {
        "source": "flan",
        "instruction": "do it",
        "models": ["a", "b", "c", "d"],
        "completions": [
            rated("w", "5", "N/A", "1", "4"),
            rated("x", "4", "5", "3", "4", as_list=True),
            rated("y", "5", "N/A", "1", "4"),
            rated("z", "N/A", None, "N/A", "N/A"),
        ],
    }
    pairs, bad = read(tmp_path, row)
    # w against x on three aspects: 10 to 11, though honesty alone has x at 5 and w unrated
    assert [(p.first + p.second, p.label) for p in pairs] == [("wx", 0.0), ("wy", 0.5), ("xy", 1.0)]
    assert [p.source for p in pairs] == ["rows.jsonl:1#0-1", "rows.jsonl:1#0-2", "rows.jsonl:1#1-2"]
    assert [b.reason for b in bad] == ["no_rating"] * 3
    assert "completions 0 and 3" in bad[0].detail
    one_text = changed(row, completions=[rated("w", "5"), rated("w ", "1"), rated("v", "5")])
    pairs, bad = read(tmp_path, one_text)
    assert (len(pairs), [b.reason for b in bad]) == (2, ["identical_responses"])


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([rated("w", "6"), rated("x", "1")], r"Rating' to be 1 to 5 or N/A, got '6'"),
        ([rated("w", "5")], "at least two completions, got 1"),
        ([{"response": "w"}, rated("x", "1")], r"'completions\[0\].annotations' to be an object"),
        ("none", "'completions' to be a list, got a text"),
    ],
)
def test_ultrafeedback_rows_that_are_broken(tmp_path: Path, completions: Any, message: str) -> None:
    row = {"instruction": "do it", "completions": completions}
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        read(tmp_path, row)
    assert read(tmp_path, row, skip_bad=1)[1][0].reason == "malformed"


# ---------------------------------------------------------------------------- summarize

POST = {
    "id": "t3",
    "post": "I fell.",
    "title": "Fall",
    "subreddit": "tifu",
    "site": None,
    "article": None,
}
SUMMARY = {
    "info": POST,
    "summaries": [
        {"text": " I fell.", "policy": "ref", "note": None},
        {"text": " A fall happened.", "policy": "sup4", "note": None},
    ],
    "choice": 1,
    "worker": "w",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 7},
}


def test_summaries_of_posts_and_of_news(tmp_path: Path) -> None:
    news = {"id": "c", "post": None, "title": None, "article": "It rained.", "site": "cnndm"}
    columns = {"text": [" I fell.", " A fall happened."], "policy": ["ref", "sup4"]}
    pairs, _ = read(
        tmp_path,
        SUMMARY,
        changed(SUMMARY, info=news, choice=0),
        changed(SUMMARY, summaries=columns),
    )
    asked = "SUBREDDIT: r/tifu\n\nTITLE: Fall\n\nPOST: I fell.\n\nTL;DR:"
    assert content(pairs[0]) == (asked, "I fell.", "A fall happened.", 0.0)
    assert content(pairs[1]) == ("Article:\nIt rained.\n\nTL;DR:", *content(pairs[0])[1:3], 1.0)
    assert content(pairs[2]) == content(pairs[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choice": 2}, "'choice' to be 0 or 1"),
        ({"choice": True}, "'choice' to be 0 or 1"),
        ({"summaries": [{"text": "a"}]}, "'summaries' to be two summaries"),
        ({"info": {"id": "x"}}, "expected a field 'post'"),
    ],
)
def test_summary_rows_that_are_broken(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        read(tmp_path, changed(SUMMARY, **fields))


def test_rated_single_summaries_are_no_pairs_and_say_so(tmp_path: Path) -> None:
    axis = {"info": POST, "summary": {"text": "a", "axes": {"overall": 4}}, "split": "test"}
    with pytest.raises(DataError, match=r"expected the fields of a known format.*info, summary"):
        read(tmp_path, axis)


# ---------------------------------------------------------------------------- rewardbench, trl


def test_rewardbench_in_both_versions(tmp_path: Path) -> None:
    one = {
        "prompt": "q",
        "chosen": "  def f():",
        "chosen_model": "human",
        "rejected": "  pass",
        "rejected_model": "human",
        "subset": "hep-python",
        "id": 1,
    }
    two = {
        "id": "7",
        "prompt": "q",
        "chosen": ["red", "blue"],
        "rejected": ["4", "red", "dog"],
        "num_correct": 2,
        "num_incorrect": 3,
        "subset": "Ties",
    }
    pairs, bad = read(tmp_path, one, two)
    assert content(pairs[0]) == ("q", "  def f():", "  pass", 1.0)  # code keeps its indent
    texts = [p.first + " " + p.second for p in pairs[1:]]
    assert texts == ["red 4", "red dog", "blue 4", "blue red", "blue dog"]
    assert [(b.reason, b.detail) for b in bad] == [
        ("identical_responses", "chosen[0] and rejected[1]")
    ]
    with pytest.raises(DataError, match="a right and a wrong answer at least"):
        read(tmp_path, changed(two, rejected=[]))


def test_binarised_ratings_that_tie_are_ties(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7.0}
    rows = [changed(row, score_rejected=7.0), changed(row, score_rejected=6.5)]
    rows += [changed(row, score_rejected=7.0, p_chosen=0.9), row]
    pairs, _ = read(tmp_path, *rows)
    assert [pair.label for pair in pairs] == [0.5, 1.0, 0.9, 1.0]


def test_parquet_has_the_columns_of_every_format(tmp_path: Path) -> None:
    for name, row in (("webgpt", WEBGPT), ("summarize", SUMMARY)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist([row, row]), path)
        from_table = [content(p) for p in read_pairs(path)]
        assert from_table == [content(p) for p in read(tmp_path, row, row)[0]]


def test_a_slice_of_the_real_file_reads_alike_with_and_without_its_format_named() -> None:
    if not HH.exists():
        pytest.skip("the shared hh-rlhf file is not here")
    named, told = (list(read_pairs(HH, PairReading(format=f, limit=50))) for f in ("hh", "auto"))
    assert named == told
    with pytest.raises(DataError, match=r"\.gz:1: expected a field 'text_correct'"):
        list(read_pairs(HH, PairReading(format="hhh", limit=1)))
