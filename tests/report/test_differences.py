"""Two texts, told apart word by word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlaif.report.differences import MOST, differences


def test_what_the_other_lacks_is_marked() -> None:
    left, right = differences("I will help you today.", "I will not help you.")
    assert [text for text, other in left if other] == ["today"]
    assert [text for text, other in right if other] == ["not"]


def test_equal_texts_have_no_mark_and_strangers_no_marks_at_all() -> None:
    assert differences("the same", "the same") == ([("the same", False)], [("the same", False)])
    assert differences("one", "zwei") == ([("one", False)], [("zwei", False)])
    assert differences("", "") == ([], [])


def test_a_very_long_text_is_not_compared() -> None:
    long = "word " * MOST
    assert differences(long, "word") == ([(long, False)], [("word", False)])


@given(st.text(alphabet="ab c.\n"), st.text(alphabet="ab c.\n"))
def test_the_pieces_are_the_text(first: str, second: str) -> None:
    left, right = differences(first, second)
    assert "".join(text for text, _ in left) == first
    assert "".join(text for text, _ in right) == second
