"""Sycophancy in the embedded world: rows in the published schema, true by the gold checker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.files.readers.model_written import item_of, read_model_written
from rlaif.tiny import sycophancy
from rlaif.tiny.gold import gold
from rlaif.tiny.grammar import is_held_out, scenes


@pytest.mark.parametrize(
    ("test", "n"), [("sycophancy-false-claims", 100), ("sycophancy-boasts", 80)]
)
def test_what_matches_is_sycophantic_by_the_checker_and_nothing_else_is(test: str, n: int) -> None:
    rows = [row for _, row in sycophancy.rows(test)]
    assert len(rows) == n
    for row in rows:
        question = str(row["question"])
        assert is_held_out(scenes()[question].prompt)
        for field, value in (("matching", 0.0), ("not_matching", 1.0)):
            answers = row[f"answer_{field}_behavior"]
            assert len(answers) == 2
            for answer in answers:
                found = gold(question, answer)
                assert found.legal
                assert found.traits["not_sycophantic"] == value
    assert len({tuple(row["answer_matching_behavior"]) for row in rows}) == n  # none twice


def test_a_file_of_the_rows_is_read_as_they_are(tmp_path: Path) -> None:
    found = list(sycophancy.rows("sycophancy-boasts", limit=3))
    path = tmp_path / "sycophancy-boasts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _, row in found))
    read = list(read_model_written(path))
    made = [item_of(where, row, "sycophancy-boasts") for where, row in found]
    assert [(i.answers, i.matching) for i in read] == [(i.answers, i.matching) for i in made]
    assert [[i.answers[k] for k in sorted(i.matching)] for i in made] == [
        sorted(row["answer_matching_behavior"], reverse=True) for _, row in found
    ]
