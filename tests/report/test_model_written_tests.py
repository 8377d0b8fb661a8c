"""Model-written tests in the report: before and after with intervals, what moved first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, page, parse, text_of

from rlaif.errors import DataError
from rlaif.store import write_json


def interval(value: float, half: float, n: int = 90) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def answered(probability: float, **more: Any) -> dict[str, Any]:
    found = {"n": 90, "rows": 90, "abstained": 0, "mass_under_half": 0.0, "chance": 0.5}
    return {**found, "probability": interval(probability, 0.05), **more}


def write(run: Path, base: dict[str, Any], dpo: dict[str, Any], changes: dict[str, Any]) -> None:
    said = {
        "by": "probability",
        "policies": {"base": base, "dpo": dpo},
        "changes": {"dpo": changes},
    }
    write_json(run / "evaluation" / "model-written.json", said)


def section(html: str) -> str:
    found = re.search(r'<section id="model-written">.*?</section>', html, re.DOTALL)
    assert found
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", found[0]))
    return text.replace("\u202f", " ").replace("\u2060", "")


def test_what_moved_beyond_its_interval_stands_first(whole_run: Path) -> None:
    names = ("calm", "bold", "kind", "shy")
    base = {name: answered(0.5) for name in names}
    dpo = {
        "calm": answered(0.52),
        "bold": answered(0.6),
        "kind": answered(0.3),
        "shy": answered(0.48),
    }
    changes = {
        "calm": interval(0.02, 0.04),
        "bold": interval(0.1, 0.03),
        "kind": interval(-0.2, 0.06),
        "shy": interval(-0.02, 0.03),
    }
    write(whole_run, base, dpo, changes)
    html = page(whole_run)
    told = section(html)
    places = [told.index(f" {name} ") for name in ("kind", "bold", "calm", "shy")]
    assert places == sorted(places)
    assert "2 of 4 moved beyond" in told
    assert "2 that did not move beyond it" in told
    line = told[places[0] : places[1]].strip()
    assert line == "kind 50.0 % 45.0–55.0 30.0 % 25.0–35.0 −20 points −26.0 to −14.0 50 % 90"
    assert "answer, left out" not in told
    assert "something else" not in told
    assert 'href="#model-written"' in html


def test_what_is_odd_is_told(whole_run: Path) -> None:
    """A policy that would not answer so, questions without an answer, and a test of pronouns, which
    has no behavior and no change."""
    pronouns = {"n": 50, "abstained": 0, "female": interval(0.4, 0.1), "correlation": None}
    base = {"calm": answered(0.5, mass_under_half=0.9), "jobs": pronouns}
    unknown = {"n": 0, "abstained": 7, "probability": None, "chance": 0.5}
    write(whole_run, base, {"calm": unknown, "jobs": pronouns}, {})
    told = section(page(whole_run))
    assert "None moved beyond" in told
    assert "jobs: a woman’s pronoun 40.0 % 30.0–50.0" in told
    assert "base would mostly say something else than the answers offered in calm" in told
    assert "dpo: 7 questions without an answer" in told
    assert "calm 50.0 % 45.0–55.0 – " in told


def test_none_run_leaves_the_section_out(whole_run: Path) -> None:
    html = page(whole_run)
    assert "model-written" not in html
    assert "Model-written" not in text_of(html)


def test_names_of_tests_stay_text(whole_run: Path) -> None:
    name = HOSTILE.replace("\x00", "") + "</textarea>"
    write(whole_run, {name: answered(0.5)}, {name: answered(0.7)}, {name: interval(0.2, 0.1)})
    root = parse(page(whole_run))
    for tag in ("script", "img", "textarea"):
        assert not list(root.iter(tag))
    assert "</textarea>" in "".join(root.itertext())


@pytest.mark.parametrize("damaged", ["[]", '{"policies": 3}', '{"policies": {"base": {"x": 1}}}'])
def test_a_damaged_file_is_named(whole_run: Path, damaged: str) -> None:
    (whole_run / "evaluation" / "model-written.json").write_text(damaged)
    with pytest.raises(DataError, match=r"model-written\.json"):
        page(whole_run)
