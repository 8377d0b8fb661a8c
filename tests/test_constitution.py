from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.constitution import Constitution, check, require, schema
from rlaif.errors import ConfigError
from rlaif.files.resources import names

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
        (GOOD + "  - id: a\n    compare: B?\n", "c.yaml:5:5: the id 'a' is given twice.*line 3"),
        (GOOD + "  - id: b\n    critique: Only half of a use.\n", r"c.yaml:5:5: .*1\.compare' is"),
        (GOOD + f"  - id: b\n    compare: {'x' * 2001}\n", "c.yaml:6:5: .*at most 2000 char"),
        (GOOD + "drop: [a]\n", "c.yaml:5:8: nothing inherited is named 'a'"),
        (GOOD + "extends: harmles\n", "c.yaml:5:1: .*Did you mean 'harmless'"),
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


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\n{text}", encoding="utf-8")
    return path


def test_a_principle_may_serve_revisions_alone() -> None:
    found = Constitution.parse("name: x\nprinciples: [{id: a, critique: C., revise: R.}]\n")
    require(found.principles, "revise")
    with pytest.raises(ConfigError, match=r"label needs compare of .* a \(compare"):
        require(found.principles, "label")


def test_extending_puts_the_bases_first_changes_by_id_and_drops(tmp_path: Path) -> None:
    base = "principles: [{id: a, compare: 'A?', critique: C.}, {id: b, compare: 'B?'}]\n"
    write(tmp_path, "base", base)
    path = write(
        tmp_path,
        "own",
        "extends: base.yaml\ndrop: [b]\nprinciples: [{id: c, compare: 'C?'}, {id: a, weight: 3}]\n",
    )
    found = Constitution.load(path)
    assert [(p.id, p.compare, p.critique, p.weight) for p in found.principles] == [
        ("a", "A?", "C.", 3.0),
        ("c", "C?", None, 1.0),
    ]
    # nothing of where the principles came from is left: the same principles, the same hash
    flat = "principles: [{id: a, compare: 'A?', critique: C., weight: 3}, {id: c, compare: 'C?'}]\n"
    assert found.hash == Constitution.parse("name: own\n" + flat).hash


def test_extending_a_shipped_name_keeps_its_verdict_columns() -> None:
    text = "name: x\nextends: harmless\nprinciples: [{id: no-harm, weight: 2}]\n"
    found, shipped = Constitution.parse(text), Constitution.load("harmless")
    assert [p.compare for p in found.principles] == [p.compare for p in shipped.principles]


def test_a_circle_is_refused_with_its_way(tmp_path: Path) -> None:
    write(tmp_path, "one", "extends: two.yaml\n")
    path = write(tmp_path, "two", "extends: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one.yaml:2:1: .*two.yaml → one.yaml → two.yaml"):
        Constitution.load(path)


def test_bases_that_differ_need_a_word_and_their_faults_keep_their_own_places(
    tmp_path: Path,
) -> None:
    write(tmp_path, "one", "principles: [{id: a, compare: 'A?'}]\n")
    write(tmp_path, "two", "principles: [{id: a, compare: 'Other?'}]\n")
    write(tmp_path, "bad", "principles:\n  - {id: b, compar: B}\n")
    text = "extends: [one.yaml, two.yaml]\n"
    with pytest.raises(ConfigError, match=r"own.yaml:2:21: two bases differ about 'a'"):
        Constitution.load(write(tmp_path, "own", text))
    settled = Constitution.load(write(tmp_path, "own", text + "principles: [{id: a, weight: 2}]\n"))
    assert [p.compare for p in settled.principles] == ["A?"]
    with pytest.raises(ConfigError) as caught:
        Constitution.load(
            write(tmp_path, "own", "extends: bad.yaml\ndrop: [z]\nprinciples: [{id: c}]\n")
        )
    lines = [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]
    assert "bad.yaml:3:13: unknown key 'compar'. Did you mean 'compare'?" in lines
    assert "own.yaml:3:8: nothing inherited is named 'z'." in lines
    assert "own.yaml:4:14: 'principles.0.compare' is missing" in lines


def test_check_knows_what_a_use_needs_and_what_would_be_paid_twice(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "c",
        "principles:\n  - {id: a, compare: 'A?', critique: C.}\n  - {id: b, compare: 'A?'}\n"
        "  - {id: c, compare: 'C?', tags: ['tiny:polit']}\n",
    )
    found, faults = check(path, "revise")
    assert found is not None
    told = [fault.removeprefix(f"{tmp_path}/") for fault in faults]
    assert "c.yaml:3:5: 'a' has no revise, which `revise` needs" in told
    assert "c.yaml:4:5: 'b' has no critique, which `revise` needs" in told
    assert "c.yaml:4:13: 'b' asks what 'a' asks: drop one, or give the other more weight" in told
    assert any("no trait 'polit' in the embedded world. Did you mean 'polite'?" in t for t in told)


@pytest.mark.parametrize("name", names("constitutions", ".yaml"))
def test_every_shipped_constitution_is_fit_for_labels_and_revisions(name: str) -> None:
    for use in ("label", "revise"):
        assert check(name, use)[1] == []  # type: ignore[arg-type]


def test_the_sixteen_are_sixteen() -> None:
    assert len(Constitution.load("sixteen").principles) == 16


def test_the_schema_takes_what_the_loader_takes_and_refuses_what_it_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    good = {"name": "x", "extends": "harmless", "principles": [{"id": "a", "compare": "A?"}]}
    assert validator.is_valid(good)
    for bad in ({**good, "nam": 1}, {"name": "x", "principles": [{"id": "a b"}]}, {}):
        assert not validator.is_valid(bad)
    described = schema()["$defs"]["Entry"]["properties"]
    assert all("description" in entry for entry in described.values())
