"""A section is the object that Python takes: checked, told of in words, changed by a copy."""

from __future__ import annotations

import pickle

import pytest
from pydantic import Field

from rlaif.errors import ConfigError
from rlaif.files.settings import Section, Seed
from rlaif.files.yamlfile import parse_yaml, validate


class Inner(Section):
    """Of the test."""

    share: float = Field(default=0.5, ge=0, le=1)
    seed: Seed = 7


class Outer(Section):
    """Of the test."""

    inner: Inner = Inner()
    name: str = "a"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"share": 2.0}, "Inner: 'share': Input should be less than or equal to 1, got 2.0"),
        ({"share": True}, "Inner: share: expected a number, got yes"),
        ({"sahre": 0.1}, "Inner: unknown key 'sahre'. Did you mean 'share'?"),
        ({"seed": -1, "share": -1.0}, "'seed'.*\n.*'share'|'share'.*\n.*'seed'"),
    ],
)
def test_what_is_wrong_in_python_is_told_as_in_a_file(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        Inner(**given)  # type: ignore[arg-type]


def test_a_file_keeps_its_line_and_column() -> None:
    file = parse_yaml("name: b\ninner:\n  share: 3\n", "run.yaml")
    with pytest.raises(ConfigError, match=r"run\.yaml:3:3: 'inner\.share'"):
        validate(Outer, file)


def test_some_are_changed_by_a_copy_that_is_checked() -> None:
    first = Outer(inner=Inner(share=0.1))
    other = first.but(name="b")
    assert (other.inner, other.name, first.name) == (first.inner, "b", "a")
    assert Outer(name="b").model_fields_set == {"name"}
    assert first.but().model_fields_set == {"inner"}
    with pytest.raises(ConfigError, match="empty"):
        first.but(name="")


def test_it_is_frozen_and_goes_to_other_processes() -> None:
    one = Outer(inner=Inner(share=0.1))
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(Exception, match="frozen"):
        one.name = "b"  # type: ignore[misc]
