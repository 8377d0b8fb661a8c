from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.constitution import Constitution
from rlaif.errors import ConfigError
from rlaif.resources import names

GOOD = "name: kind\nprinciples:\n  - id: a\n    compare: Which is kinder?\n"


def test_it_reads_what_is_written() -> None:
    constitution = Constitution.parse(GOOD + "    weight: 2\n    tags: [x]\n")
    (principle,) = constitution.principles
    assert (principle.id, principle.compare, principle.weight) == ("a", "Which is kinder?", 2.0)
    assert principle.tags == ("x",)


@pytest.mark.parametrize("name", names("constitutions", ".yaml"))
def test_every_shipped_constitution_is_named_as_its_file(name: str) -> None:
    assert Constitution.load(name).name == name


def test_all_faults_are_named_at_once_with_their_places() -> None:
    text = (
        "name: kind\nversoin: 2\nprinciples:\n"
        "  - id: a b\n    compare: ''\n  - idd: x\n    compare: ok?\n    weight: -1\n"
    )
    with pytest.raises(ConfigError) as caught:
        Constitution.parse(text, "c.yaml")
    lines = str(caught.value).splitlines()
    assert "c.yaml:2:1: unknown key 'versoin'. Did you mean 'version'?" in lines
    assert "c.yaml:6:5: unknown key 'idd'. Did you mean 'id'?" in lines
    assert any(line.startswith("c.yaml:4:5: 'principles.0.id'") for line in lines)
    assert any(line.startswith("c.yaml:5:5: 'principles.0.compare'") for line in lines)
    assert any(line.startswith("c.yaml:6:5: 'principles.1.id' is missing") for line in lines)
    assert any(line.startswith("c.yaml:8:5: 'principles.1.weight'") for line in lines)
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"c.yaml:1:\d+: not valid YAML"),
        ("- a", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: x\nname: y\n", "c.yaml:2:1: the key 'name' is given twice"),
        (GOOD + "  - id: a\n    compare: Again?\n", "c.yaml:2:1: .*got twice: a"),
        ("name: x\nprinciples: []\n", "c.yaml:2:1: principles: at least one"),
        (GOOD + "    weight: .nan\n", "c.yaml:5:5: .*finite"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Constitution.parse(text, "c.yaml")


def test_a_file_that_is_missing_or_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file: nowhere/x\.yaml"):
        Constitution.load("nowhere/x.yaml")
    with pytest.raises(ConfigError, match="Did you mean 'harmless'"):
        Constitution.load("harmles")
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        Constitution.load(path)


def test_the_hash_is_of_content_not_of_layout() -> None:
    one = Constitution.parse(GOOD)
    assert one.hash == Constitution.parse("# a comment\n" + GOOD).hash
    assert one.hash != Constitution.parse(GOOD.replace("kinder", "nicer")).hash


def test_select_keeps_the_order_and_names_what_is_unknown() -> None:
    constitution = Constitution.parse(GOOD + "  - id: b\n    compare: B?\n")
    assert [p.id for p in constitution.select(["b", "a"])] == ["a", "b"]
    with pytest.raises(ConfigError, match="no principle c; it has a, b"):
        constitution.select(["c"])
