"""A prompt is what a row says it is: never words that two answers share, never a guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import BadRow, read_demonstrations, read_pairs, read_prompts
from rlaif.files.readers.conversations import PROMPT_COLUMNS, is_transcript
from rlaif.files.readers.settings import AnswerReading, PairReading, PromptReading
from rlaif.records import Message, Pair


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(path: Path, *rows: Any, **options: Any) -> tuple[list[Pair], list[BadRow]]:
    bad: list[BadRow] = []
    found = list(
        read_pairs(write(path / "rows.jsonl", *rows), PairReading(**options), on_bad=bad.append)
    )
    return found, bad


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


BOTH = {"chosen": "The answer is 4.", "rejected": "The answer is 5."}


# ---------------------------------------------------------------- the prompt's column


@pytest.mark.parametrize("column", [*PROMPT_COLUMNS, "history"])
def test_every_known_name_of_a_prompt_is_the_prompt(tmp_path: Path, column: str) -> None:
    messages = [{"from": "human", "value": "2 + 2?"}]
    for value in ("2 + 2?", messages):
        (pair,), _ = pairs(tmp_path, {"system": "Count.", column: value, **BOTH})
        assert pair.prompt.messages == (Message("system", "Count."), Message("user", "2 + 2?"))
        assert (pair.first, pair.second) == (BOTH["chosen"], BOTH["rejected"])


@pytest.mark.parametrize("extra", [{}, {"ask": "2 + 2?"}, {"system": "Count."}, {"id": 1}])
def test_a_row_without_a_known_prompt_is_refused_and_its_columns_named(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as refused:
        pairs(tmp_path, {**extra, **BOTH})
    for name in (*extra, "chosen", "rejected", "--column prompt=", "rows.jsonl:1"):
        assert name in str(refused.value)
    single = {**extra, "chosen": [says("a")], "rejected": [says("b")]}
    with pytest.raises(DataError, match=r"no prompt in it.*--column prompt="):
        pairs(tmp_path, single)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(shared=texts, a=texts, b=texts, name=st.sampled_from(["ask", "Prompt", "problem", "title"]))
def test_no_two_answers_make_a_prompt(
    tmp_path_factory: pytest.TempPathFactory, shared: str, a: str, b: str, name: str
) -> None:
    row = {name: "q", "chosen": f"{shared} {a}", "rejected": f"{shared} {b}"}
    path = write(tmp_path_factory.getbasetemp() / "generated.jsonl", row)
    with pytest.raises(DataError):
        list(read_pairs(path))


def test_two_columns_that_may_be_the_prompt_and_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two that differ, 'prompt' and 'context'.*columns"):
        pairs(tmp_path, {"prompt": "Who is it?", "context": "A man.", **BOTH})
    with pytest.raises(DataError, match="two that differ, 'question' and 'conversations'"):
        pairs(tmp_path, {"question": "q", "conversations": [user("other")], **BOTH})
    with pytest.raises(DataError, match="two that differ"):  # part of it is not all of it
        pairs(tmp_path, {"prompt": "Who is it?", "context": "A: Who is it? B: Me.", **BOTH})
    (pair,), _ = pairs(tmp_path, {"prompt": "Who is it?", "question": "Who is it?", **BOTH})
    assert pair.prompt.messages == (Message("user", "Who is it?"),)
    both = {"chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]}
    for other in ("You are a pirate.", "You are a pirate. q"):
        with pytest.raises(DataError, match="expected 'prompt' to be one of the turns of 'chosen'"):
            pairs(tmp_path, {"prompt": other, **both})
    for same in ("q", " q\n", "User: q", "<|im_start|>user\nq<|im_end|>\n"):
        (pair,), _ = pairs(tmp_path, {"prompt": same, **both})
        assert pair.prompt.messages == (Message("user", "q"),)


# ---------------------------------------------------------------- plain text is no transcript

PLAIN = [
    "System: Ubuntu 24.04, 16 GB. Why does it swap?",
    "Human: is it a noun or an adjective?",
    "Assistant: what does this word mean?",
    "System: Ubuntu\n\nHuman: me\n\nAssistant: you",
    "Explain:\n\nHuman: hi\n\nAssistant:",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_field_is_one_user_turn_whatever_it_begins_with(tmp_path: Path, text: str) -> None:
    turn = (Message("user", text),)
    (prompt,) = read_prompts(write(tmp_path / "p.jsonl", {"prompt": text}))
    assert prompt.messages == turn
    (pair,), _ = pairs(tmp_path, {"prompt": text, **BOTH})
    assert pair.prompt.messages == turn
    rated = {"annotations": {"honesty": {"Rating": "5"}}}
    ultra = {"instruction": text, "completions": [{"response": r, **rated} for r in "ab"]}
    webgpt = {"question": text, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1}
    for row in (ultra, webgpt):
        (pair,), _ = pairs(tmp_path, row)
        assert pair.prompt.messages == turn
    (answer,) = read_demonstrations(write(tmp_path / "d.jsonl", {"prompt": text, "output": "x"}))
    assert answer.prompt.messages == turn


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["System:", "Human:", "Assistant:", " Human:", "\nHuman:"]), texts)
def test_a_role_mark_alone_makes_no_transcript(mark: str, rest: str) -> None:
    text = mark + rest
    if not text.startswith("\n\n"):
        assert not is_transcript(text) or text.rstrip().endswith("\n\nAssistant:")


def test_whole_transcripts_are_read_as_turns(tmp_path: Path) -> None:
    for text in ("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q", "Human: q\n\nAssistant: "):
        (prompt,) = read_prompts(write(tmp_path / "p.jsonl", {"prompt": text}))
        assert prompt.messages == (Message("user", "q"),)
    whole = {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    }
    (pair,), _ = pairs(tmp_path, whole)
    assert (pair.prompt.messages, pair.first, pair.second) == ((Message("user", "q"),), "a", "b")


# ---------------------------------------------------------------- who speaks last


def test_a_transcript_that_ends_with_the_human_has_no_answer(tmp_path: Path) -> None:
    ends = "\n\nHuman: q\n\nAssistant: a\n\nHuman: thanks"
    whole = "\n\nHuman: q\n\nAssistant: b"
    rows = [{"chosen": ends, "rejected": whole}, {"chosen": whole, "rejected": ends}]
    rows += [{"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a\n\nHuman: x", "rejected": "b"}]
    rows += [{"text_correct": ends, "text_incorrect": whole}]
    found, bad = pairs(tmp_path, *rows)
    assert found == []
    assert [b.reason for b in bad] == ["no_single_answer"] * 4
    assert "ends with the human's turn" in bad[0].detail


def test_a_prompt_that_ends_with_the_assistant_is_left_out_everywhere(tmp_path: Path) -> None:
    talk = [user("q"), says("Well,")]
    text = "\n\nHuman: q\n\nAssistant: Well,"
    rows = [
        {"prompt": talk, "chosen": [says(" a")], "rejected": [says(" b")]},
        {"prompt": text, "chosen": " a", "rejected": " b"},
        {"chosen": [*talk, says("a")], "rejected": [*talk, says("b")]},
        {"context": talk, "response1": "a", "response2": "b", "overall_preference": 1},
    ]
    found, bad = pairs(tmp_path, *rows)
    assert found == []
    assert [b.reason for b in bad] == ["ends_with_assistant"] * 4
    left: list[BadRow] = []
    path = write(
        tmp_path / "d.jsonl", {"prompt": talk, "completion": "a"}, {"messages": [*talk, says("a")]}
    )
    assert list(read_demonstrations(path, on_bad=left.append)) == []
    path = write(tmp_path / "p.jsonl", {"prompt": talk}, {"prompt": text})
    assert list(read_prompts(path, on_bad=left.append)) == []
    assert [b.reason for b in left] == ["ends_with_assistant"] * 4


# ---------------------------------------------------------------- columns named by the user

NESTED = {
    "meta": {"question": "q", "sys": "s"},
    "corrects": ["a", "x"],
    "wrong.one": "b",
    "answers": [
        {"text": "a", "score": 2, "rank": 1},
        {"text": "b", "score": 2, "rank": 2},
        {"text": "c", "score": 0, "rank": 3},
    ],
    "p": 0.75,
}
ASK = {"prompt": "meta.question", "system": "meta.sys"}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_any_row_is_read_by_the_paths_of_its_columns(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        write(path, NESTED)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([NESTED]), path)

    def read(**columns: str) -> list[tuple[str, str, float | None]]:
        found = list(read_pairs(path, PairReading(columns={**ASK, **columns})))
        asked = (Message("system", "s"), Message("user", "q"))
        assert all(pair.prompt.messages == asked for pair in found)
        return [(pair.first, pair.second, pair.label) for pair in found]

    assert read(chosen="corrects.0", rejected="wrong.one") == [("a", "b", 1.0)]
    assert read(chosen="corrects.0", rejected="corrects.1", p_chosen="p") == [("a", "x", 0.75)]
    assert read(first="corrects.1", second="wrong.one") == [("x", "b", None)]
    assert read(first="corrects.1", second="wrong.one", label="p") == [("x", "b", 0.75)]
    scores = read(completions="answers[].text", scores="answers[].score")
    assert scores == [("a", "b", 0.5), ("a", "c", 1.0), ("b", "c", 1.0)]
    ranks = read(completions="answers[].text", ranks="answers[].rank")
    assert ranks == [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 1.0)]
    (prompt,) = read_prompts(path, PromptReading(columns=ASK))
    (answer,) = read_demonstrations(
        path, AnswerReading(columns={**ASK, "completion": "corrects.0"})
    )
    assert (
        prompt.messages == answer.prompt.messages == (Message("system", "s"), Message("user", "q"))
    )
    assert answer.text == "a"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": "nope", "chosen": "p", "rejected": "p"},
            "columns.prompt: there is no 'nope'.*"
            "got the fields: meta, corrects, wrong.one, answers, p",
        ),
        (
            {"prompt": "meta.question", "chosen": "corrects.7", "rejected": "wrong.one"},
            "no item 7 for 'corrects.7': the list has 2",
        ),
        ({"promt": "q", "chosen": "a", "rejected": "b"}, "key 'promt'.*Did you mean 'prompt'"),
        ({"prompt": "q", "chosen": "a"}, "columns: expected prompt, and one of"),
        ({"prompt": "q"}, "columns: expected prompt, and one of"),
        ({"chosen": "corrects.0", "rejected": "wrong.one"}, "no prompt in it"),
        (
            {"prompt": "meta.question", "completions": "corrects", "scores": "answers[].score"},
            "expected 'scores' to be a list of 2",
        ),
    ],
)
def test_columns_that_lead_nowhere_are_told(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        pairs(tmp_path, NESTED, columns=columns)


def test_the_config_and_the_command_line_name_columns(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rlaif.cli.app import app
    from rlaif.config import load_config
    from rlaif.files.readers import named
    from rlaif.files.readers.formats import FORMATS
    from rlaif.store import RunStore

    path = write(
        tmp_path / "rows.jsonl",
        {"ask": "What is a lock pick?", "good": "A tool.", "bad": "No idea.", "sys": "Be brief."},
    )
    for said in (
        [
            "--column",
            "prompt=ask",
            "--column",
            "chosen=good",
            "--column",
            "rejected=bad",
            "--column",
            "system=sys",
        ],
        ["--set", "pairs.columns={prompt: ask, chosen: good, rejected: bad, system: sys}"],
    ):
        out = str(tmp_path / f"run-{said[0]}")
        result = CliRunner().invoke(app, ["label", "--pairs", str(path), "--out", out, *said])
        assert result.exit_code == 0, result.output
        (pair,) = RunStore(Path(out), read_only=True).table("pairs").read()
        assert isinstance(pair, Pair)
        assert [m.content for m in pair.prompt.messages] == ["Be brief.", "What is a lock pick?"]
        assert (pair.first, pair.second) == ("A tool.", "No idea.")
    schema = load_config().model_json_schema()["$defs"]
    assert tuple(schema["PairsConfig"]["properties"]["format"]["anyOf"][0]["enum"]) == FORMATS
    for section, roles in (
        ("PairColumns", named.PAIR_ROLES),
        ("PromptColumns", named.PROMPT_ROLES),
        ("AnswerColumns", named.ANSWER_ROLES),
    ):
        assert schema[section]["properties"].keys() == set(roles)
