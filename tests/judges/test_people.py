"""People's word in labels: shares of votes against hand-worked numbers, fair to both responses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.judges.people import PeopleSettings, with_people
from rlaif.judges.preferences import PreferenceSettings
from rlaif.records import Pair, Preference, Prompt

PAIR = Pair(Prompt.user("which?"), "one", "two")


def label(p: float | None, **more: Any) -> Preference:
    status = "abstained" if p is None else "tie" if abs(p - 0.5) < 0.05 else "preferred"
    reason = "low_mass" if p is None else None
    return Preference(PAIR, status, p, verdicts=2, reason=reason, **more)


def made(p: float | None, share: float | None, how: str, weight: float = 1.0, **rule: Any) -> Any:
    row = with_people(
        label(p),
        share,
        PreferenceSettings(**rule),
        PeopleSettings(people=how, people_weight=weight),  # type: ignore[arg-type]
    )
    return row.status, row.p_first


@pytest.mark.parametrize(
    ("p", "share", "how", "weight", "expected"),
    [
        (0.9, 0.25, "override", 1.0, ("preferred", 0.25)),
        (0.9, 0.5, "override", 1.0, ("tie", 0.5)),
        (None, 1.0, "override", 1.0, ("preferred", 1.0)),
        (0.9, 0.3, "join", 1.0, ("preferred", 0.6)),
        (0.9, 0.0, "join", 2.0, ("preferred", 0.3)),  # (0.9 + 2·0)/3
        (0.9, 0.1, "join", 1.0, ("tie", 0.5)),
        (None, 0.75, "join", 1.0, ("preferred", 0.75)),
        (0.9, None, "override", 1.0, ("preferred", 0.9)),
        (None, None, "join", 1.0, ("abstained", None)),
    ],
)
def test_what_people_said_becomes_the_label(
    p: float | None, share: float | None, how: str, weight: float, expected: Any
) -> None:
    status, found = made(p, share, how, weight)
    assert status == expected[0]
    assert found == (None if expected[1] is None else pytest.approx(expected[1]))


def test_hard_labels_are_rounded_after_people_joined() -> None:
    assert made(0.9, 0.3, "join", soft=False) == ("preferred", 1.0)
    assert made(0.6, 0.36, "join", soft=False) == ("tie", pytest.approx(0.48))
    assert made(0.9, 0.0, "join", weight=2, soft=False) == ("preferred", 0.0)
    assert made(0.7, None, "join", soft=False) == ("preferred", 1.0)


def test_the_verdicts_own_label_is_kept() -> None:
    settings, how = PreferenceSettings(), PeopleSettings(people="override")
    row = with_people(label(0.9), 0.25, settings, how)
    assert (row.people, row.by_verdicts) == (0.25, ("preferred", 0.9))
    row = with_people(label(None), 0.25, settings, how)
    assert (row.reason, row.by_verdicts) == (None, ("abstained", None))
    assert label(0.9).by_verdicts == ("preferred", 0.9)
    assert with_people(label(0.9), 0.25, settings, PeopleSettings()) == label(0.9)


def test_a_temperature_is_the_judges() -> None:
    settings = PreferenceSettings(temperature=2.0)
    how = PeopleSettings(people="join")
    row = with_people(label(0.75, p_raw=0.9), 1.0, settings, how)  # σ(logit(0.9)/2) = 0.75
    assert (row.p_first, row.p_raw, row.p_judged) == (0.875, 0.9, 0.75)


@given(
    st.none() | st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["override", "join"]),
    st.booleans(),
)
def test_the_mirrored_pair_has_the_complement(
    p: float | None, share: float, how: Any, soft: bool
) -> None:
    settings = PreferenceSettings(soft=soft, min_margin=0)
    rule = PeopleSettings(people=how, people_weight=3)
    here = with_people(label(p), share, settings, rule)
    there = with_people(label(p).swap(), 1 - share, settings, rule).swap()
    assert here.p_first is not None
    if abs(here.p_first - 0.5) > 1e-9:  # where rounding decides no side
        assert there.status == here.status
        assert there.p_first == pytest.approx(here.p_first)
        assert here.swap().swap().p_judged == (None if p is None else pytest.approx(here.p_judged))


@pytest.mark.parametrize("wrong", [{"people": "vote"}, {"people_weight": 0}, {"people_weight": -1}])
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="PeopleSettings: 'people"):
        PeopleSettings(**wrong)
