"""`--where`: expressions that say which pairs are meant, and errors for those that say nothing."""

from __future__ import annotations

import pytest

from rlaif.errors import ConfigError
from rlaif.evaluation.cases import Case, decisive
from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.where import parse_where
from rlaif.records import ORDERS, Pair, Preference, Prompt, Verdict

PAIR = Pair(Prompt.user("How do I pick a lock?"), "Take two thin picks.", "No.", label=0.0)


def verdict(principle: str, order: int, p: float | None, judge: str = "j") -> Verdict:
    key = f"{principle}{order}{judge}"
    reason = "low_mass" if p is None else None
    return Verdict(key, PAIR.id, principle, ORDERS[order], judge, p, reason=reason)  # type: ignore[arg-type]


CASE = Case(
    PAIR,
    Preference(PAIR, "preferred", 0.3, ("no-harm", "helpful"), (0.1, 0.5), 6, 1),
    [
        verdict("no-harm", 0, 0.2),
        verdict("no-harm", 1, 0.0),
        verdict("helpful", 0, 0.9),
        verdict("helpful", 1, 0.1),
        verdict("kind", 0, None),
        verdict("kind", 1, 0.5),
    ],
)
NONE = Case(PAIR, Preference(PAIR, "abstained", None, verdicts=2, abstained=2, reason="low_mass"))


@pytest.mark.parametrize(
    ("text", "case", "expected"),
    [
        ("label = 0.3", CASE, True),
        ("margin>=.2", CASE, True),
        ("margin < 0.2", CASE, False),
        ("abstained", CASE, True),
        ("abstained > 1", CASE, False),
        ("abstained = 2 and status = abstained", NONE, True),
        ("length == 4", CASE, True),
        ("known = 0", CASE, True),
        ("p(no-harm) < 0.2", CASE, True),
        ("p(helpful) != 0.5", CASE, False),
        ("p(kind) > 0 or p(kind) <= 0", CASE, False),  # it did not count
        ("principle = no-harm", CASE, True),
        ("principle != no-harm", CASE, False),
        ("principle = no-harm", NONE, False),
        ("principles >= 0.4", CASE, True),
        ("orders > 0.79", CASE, True),
        ("orders > 0.81", CASE, False),
        ("jurors > 0", CASE, False),  # one judge alone
        ("text ~ LOCK", CASE, True),
        ("text ~ 'thin picks'", CASE, True),
        ('prompt ~ "thin picks"', CASE, False),
        ("text !~ lock", CASE, False),
        ("label > 0 or label <= 0", NONE, False),  # it has none
        ("not (margin < 0.1 or status = tie)", CASE, True),
        # `and` binds tighter than `or`: true or (true and false)
        ("status = preferred or length = 4 and label = 1", CASE, True),
        ("(status = preferred or length = 4) and label = 1", CASE, False),
        ("not status = tie and not abstained > 5", CASE, True),
    ],
)
def test_what_an_expression_means(text: str, case: Case, expected: bool) -> None:
    assert parse_where(text, ["no-harm", "helpful", "kind"])(case) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a field, got the end"),
        ("marign < 1", "Did you mean 'margin'"),
        ("margin", "expected one of = != < <= > >=, got the end"),
        ("margin ~ 1", "expected one of = != < <= > >=, got ~"),
        ("margin < few", "expected a number, got few"),
        ("text = lock", "expected one of ~ !~, got ="),
        ("text ~", "expected a value, got the end"),
        ("status = good", "expected one of preferred, tie, abstained, unlabelled, got good"),
        ("principle = no-ham", "Did you mean 'no-harm'"),
        ("p(no-ham) > 1", "Did you mean 'no-harm'"),
        ("(label > 0", "expected ), got the end"),
        ("label > 0 label < 1", "expected `and`, `or` or the end, got label"),
        ("text ~ 'lock", "cannot be read, got 'lock"),
    ],
)
def test_what_cannot_be_meant_is_shown_where_it_stands(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_where(text, ["no-harm", "helpful"])
    assert said in str(caught.value)
    assert "fields: label, margin" in str(caught.value)


def test_the_mark_stands_below_the_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_where("label > 0 and marign < 1")
    lines = str(caught.value).splitlines()
    assert lines[1][lines[2].index("^") :].startswith("marign")


def test_only_what_looks_at_verdicts_needs_them() -> None:
    assert parse_where("orders > 0.1 and label > 0").needs_verdicts
    assert not parse_where("principles > 0.1 and p(x) > 0 and text ~ a").needs_verdicts


def test_the_principle_that_decided_carries_the_most_of_the_label() -> None:
    def of(p: dict[str, float], rule: LabelRule) -> str | None:
        row = Preference(PAIR, "preferred", rule(p), tuple(p), tuple(p.values()))
        return decisive(row, rule)

    assert of({"a": 0.6, "b": 0.9, "c": 0.1}, LabelRule()) == "b"
    assert of({"a": 0.4, "b": 0.9, "c": 0.1}, LabelRule()) == "c"
    weighted = LabelRule("weighted", {"a": 10, "b": 1})
    assert of({"a": 0.7, "b": 0.9}, weighted) == "a"  # 10 · 0.2 against 1 · 0.4
    assert of({"a": 0.9}, LabelRule()) == "a"
    assert of({"a": 0.6, "b": 0.6, "c": 0.1}, LabelRule("majority")) == "a"
    assert decisive(Preference(PAIR, "tie", 0.5, ("a",), (0.5,)), LabelRule()) is None
