"""Rows of every schema with any value put wrong: pairs or a DataError, never another exception."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.errors import DataError
from rlaif.files.readers import BadRow, read_demonstrations, read_pairs, read_prompts
from rlaif.files.readers.formats import FORMATS
from rlaif.files.readers.settings import AnswerReading, PairReading, PromptReading

FILES = sorted((Path(__file__).parent / "datasets").glob("*.jsonl"))
ROWS: list[dict[str, Any]] = [
    *(json.loads(line) for file in FILES for line in file.read_text().splitlines()[:1]),
    {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
    {
        "prompt": '["q"]',
        "response_a": '["a"]',
        "response_b": '["b"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    {
        "context": [{"role": "user", "content": "q"}],
        "response1": "a",
        "response2": "b",
        "overall_preference": 1,
    },
    {
        "message_tree_id": "p",
        "message_id": "p",
        "parent_id": None,
        "role": "prompter",
        "text": "q",
        "rank": None,
        "deleted": False,
    },
    {
        "message_tree_id": "p",
        "prompt": {
            "text": "q",
            "role": "prompter",
            "replies": [
                {"text": "a", "role": "assistant", "rank": 0, "replies": []},
                {"text": "b", "role": "assistant", "rank": 1, "replies": []},
            ],
        },
    },
    {
        "info": {"post": "p", "title": "t", "subreddit": "s"},
        "choice": 1,
        "summaries": [{"text": "a"}, {"text": "b"}],
    },
    {"input": "q", "targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    {
        "text_correct": "\n\nHuman: q\n\nAssistant: a",
        "text_incorrect": "\n\nHuman: q\n\nAssistant: b",
    },
    {
        "system": "s",
        "instruction": "q",
        "input": "i",
        "history": [["q0", "a0"]],
        "output": "a",
        "chosen": "a",
        "rejected": "b",
        "rating": [1, 2],
        "status": "tie",
    },
    {"conversation": [{"input": "q", "output": "a"}], "messages": [], "label": True},
]
COLUMNS = {"prompt": "answers[].text", "chosen": "prompt", "rejected": "chosen.0.content"}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "tie", "\ud800", "\n\nHuman: x", "[", '["q", null]', "1e999"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "rank"]), inner
        )
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a row, the row itself left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in inner:
        found.append((*path, key))
        if isinstance(part, (dict, list)):
            found += places(part, (*path, key))
    return found


@st.composite
def odd_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 2))):
        *above, last = draw(st.sampled_from(places(row) or [("prompt",)]))
        here: Any = row
        for key in above:
            here = here[key]
        if draw(st.booleans()) and isinstance(here, dict):
            del here[last]
        else:
            here[last] = draw(anything)
    other = copy.deepcopy(draw(st.sampled_from([row, *ROWS])))
    return [row, other]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(odd_rows(), st.sampled_from(FORMATS))
def test_any_row_makes_pairs_or_is_told(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], format: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad: list[BadRow] = []
    pairs = PairReading(skip_bad=9)
    for pair in [
        *read_pairs(path, pairs.but(format=format), on_bad=bad.append),
        *read_pairs(path, pairs, on_bad=bad.append),
        *read_pairs(path, pairs.but(columns=COLUMNS), on_bad=bad.append),
    ]:
        assert pair.prompt.messages
        assert pair.prompt.messages[-1].role != "assistant"
        assert pair.first.strip() != pair.second.strip()
        assert pair.label is None or 0 <= pair.label <= 1
    list(read_prompts(path, PromptReading(skip_bad=9), on_bad=bad.append))
    list(read_demonstrations(path, AnswerReading(skip_bad=9), on_bad=bad.append))
    for row in bad:
        assert json.dumps([row.source, row.excerpt, row.detail], ensure_ascii=False).encode()
    for read in (read_pairs, read_prompts, read_demonstrations):
        told = error_of(read, path)
        assert not told or "odd.jsonl:" in told
        assert told.encode() is not None


def error_of(read: Any, path: Path) -> str:
    try:
        list(read(path, on_bad=lambda _: None))
    except DataError as error:
        return str(error)
    return ""
