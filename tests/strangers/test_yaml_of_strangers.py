"""YAML files made to hurt, or by mistake: one paragraph with line and column, at once.

Configs, constitutions and the front matter of templates are read by one reader, so each case is
tried through all of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config import load_config
from rlaif.constitution import Constitution, check
from rlaif.errors import ConfigError
from rlaif.files.templates import load_template
from rlaif.files.yamlfile import parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))

# By what is wrong: the text, and the line that is named.
FILES = {
    "aliases that grow": (BOMB, None),
    "merges that grow": (MERGES, None),
    "a chain of aliases": (CHAIN, None),
    "an alias of itself": ("a: 1\nb: &b [*b]\n", 2),
    "a mapping in itself": ("a: &a {b: *a}\n", 1),
    "an unknown alias": ("a: *nobody\n", 1),
    "lists without end": ("a: " + "[" * 20_000, 1),
    "lists in lists": ("a: " + "[" * 20_000 + "]" * 20_000, 1),
    "mappings in mappings": ("{a: " * 5_000, 1),
    "blocks in blocks": ("\n".join("  " * i + "a:" for i in range(500)), None),
    "dashes": ("- " * 5_000 + "a", 1),
    "a day that is none": ("\nname: 2020-99-99\n", 2),
    "an hour that is none": ("name: 2020-01-01T99:99:99\n", 1),
    "no int": ("name: !!int x\n", 1),
    "an empty int": ("name: !!int ''\n", 1),
    "no float": ("name: !!float x\n", 1),
    "no bool": ("name: !!bool x\n", 1),
    "no time": ("name: !!timestamp x\n", 1),
    "a float that is a list": ("name: !!float [1]\n", 1),
    "bytes": ("name: !!binary xyz\n", 1),
    "a set": ("name: !!set {a, b}\n", 1),
    "an ordered map": ("name: !!omap [a: 1]\n", 1),
    "an object": ("a: 1\nname: !!python/object:os.system x\n", 2),
    "a call": ("name: !!python/object/apply:os.system ['true']\n", 1),
    "a tag of its own": ("name: !mine x\n", 1),
    "a huge number": (f"version: {'9' * 401}\n", 1),
    "a number too long to print": (f"version: {'9' * 5000}\n", 1),
    "a huge hexadecimal number": (f"version: 0x{'f' * 5000}\n", 1),
    "octal": ("version: 010\n", 1),
    "minutes": ("version: 12:30\n", 1),
    "a key that is a list": ("? [a, b]\n: 1\n", 1),
    "a key that is a mapping": ("{a: 1}: 2\n", 1),
    "a key twice": ("name: a\nname: b\n", 2),
    "a key twice, once in quotes": ("name: a\n'name': b\n", 2),
    "an equals sign": ("name: =\n", 1),
    "a NUL": ("name: a\0b\n", 1),
    "a bell": ("name: a\nversion: \a\n", 2),
    "two documents": ("name: a\n---\nname: b\n", 2),
    "a tab": ("name:\n\t- a\n", 2),
    "a lone surrogate": ('name: "\\ud800"\n', 1),
}


def as_config(path: Path) -> None:
    load_config(str(path))


def as_constitution(path: Path) -> None:
    Constitution.load(path)


def as_front_matter(path: Path) -> None:
    path.write_text(f"---\n{path.read_text()}\n---\n=== user ===\n{{{{ first }}}}\n")
    load_template(str(path))


@pytest.mark.parametrize("read", [as_config, as_constitution, as_front_matter])
@pytest.mark.parametrize("what", FILES)
def test_each_is_one_paragraph_with_its_place(
    what: str, read: Callable[[Path], None], tmp_path: Path
) -> None:
    text, line = FILES[what]
    if read is as_front_matter and what == "two documents":
        pytest.skip("there the line ends the front matter")
    path = tmp_path / ("f.j2" if read is as_front_matter else "f.yaml")
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert time.process_time() - start < 2.0
    message = str(caught.value)
    place = re.match(rf"{re.escape(str(path))}:(\d+):(\d+): ", message)
    assert place, message
    assert len(message) < 2_000
    if line is not None:
        assert int(place[1]) == line + (read is as_front_matter), message


def test_what_aliases_and_merges_are_for_goes_on_to_work() -> None:
    text = "base: &b {x: 1, y: [1, 2]}\nsame: *b\nmore:\n  <<: *b\n  y: 3\n"
    found = parse_yaml(text, "f").data
    assert found == yaml.safe_load(text)
    assert found["more"] == {"x": 1, "y": 3}


def test_an_override_changes_one_place_where_two_share_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("policy: &p\n  model: tiny\njudge: *p\n")
    found = load_config(str(path), ["judge.model=other"])
    assert (found.policy.model, found.judge.model) == ("tiny", "other")


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!<>'\"#,\n ?|%@`~0.\t1eNé\0", max_size=60))
def test_any_text_is_read_as_pyyaml_reads_it_or_refused_with_a_place(text: str) -> None:
    found, refusal = None, ""
    try:
        found = parse_yaml(text, "f")
    except ConfigError as error:
        refusal = str(error)
    assert found is not None or re.match(r"f:\d+:\d+: ", refusal), refusal
    assert found is None or found.data == yaml.safe_load(text)


# -------------------------------------------------------------------------------- extends

BASE = "name: b\nprinciples:\n  - id: a\n    compare: Which is better?\n"


def chain(folder: Path, n: int, extends: Callable[[int], str]) -> Path:
    """Files 0 … n − 1, each extending what `extends` says; the last one."""
    (folder / "c0.yaml").write_text(BASE)
    for i in range(1, n):
        (folder / f"c{i}.yaml").write_text(f"name: c{i}\nextends: {extends(i)}\n")
    return folder / f"c{n - 1}.yaml"


def test_a_long_chain_is_refused_with_its_place(tmp_path: Path) -> None:
    last = chain(tmp_path, 1500, lambda i: f"./c{i - 1}.yaml")
    with pytest.raises(ConfigError, match=r"c\d+\.yaml:2:1: .*more than \d+ files") as caught:
        Constitution.load(last)
    assert len(str(caught.value)) < 2_000
    found, faults = check(last)
    assert found is None
    assert len(faults) == 1


def test_a_few_files_above_one_another_are_read(tmp_path: Path) -> None:
    last = chain(tmp_path, 8, lambda i: f"./c{i - 1}.yaml")
    assert [p.id for p in Constitution.load(last).principles] == ["a"]


def test_a_base_that_comes_again_and_again_is_read_once(tmp_path: Path) -> None:
    """2¹⁸ readings, were each way up gone over by itself."""
    start = time.process_time()
    for i in range(1, 19):
        text = f"name: d{i}\nextends: [./d{i - 1}.yaml, ./e{i - 1}.yaml]\n"
        (tmp_path / f"d{i}.yaml").write_text(text)
        (tmp_path / f"e{i}.yaml").write_text(text)
    for name in "de":
        (tmp_path / f"{name}0.yaml").write_text(BASE)
    found = Constitution.load(tmp_path / "d18.yaml")
    assert [p.id for p in found.principles] == ["a"]
    (tmp_path / "d0.yaml").write_text("name: d0\nprinciples: 3\n")  # a fault is told once
    with pytest.raises(ConfigError) as caught:
        Constitution.load(tmp_path / "d18.yaml")
    assert str(caught.value).count("\n") == 0
    assert time.process_time() - start < 4.0


def test_a_circle_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: [./b.yaml, ./b.yaml]\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: ./a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml:2:1: extends goes round in a circle") as caught:
        Constitution.load(tmp_path / "a.yaml")
    assert str(caught.value).count("in a circle") == 1


def test_very_many_faults_are_told_in_part(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: c\nprinciples:\n" + "  - {id: a, bad: 1}\n" * 2_000)
    with pytest.raises(ConfigError) as caught:
        Constitution.load(path)
    assert str(caught.value).count("\n") <= 41
    assert str(caught.value).endswith("more")
