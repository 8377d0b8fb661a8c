"""Two runs on one page: what differs, the numbers of both, the labels that flipped."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import (
    PRINCIPLES,
    judge,
    make_labelled_run,
    make_whole_run,
    share,
    tiny_pairs,
    write_labels,
    write_training,
)
from test_report import HOSTILE, parse, text_of
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.moved import change_of_shares
from rlaif.records import Message, Pair, Prompt
from rlaif.report.beside import beside, numbers
from rlaif.report.build import build_beside, build_report
from rlaif.report.data import Run
from rlaif.report.sections import as_interval
from rlaif.store import RunStore, write_json

Json = dict[str, Any]
GENTLE = PRINCIPLES[2] | {"compare": "Which response is gentler to the people around the asker?"}
ROWS = {"rule": {"aggregate": "mean"}, "judge": {"model": "tiny", "shots": None}}


def cli(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def made(run: Path, **changes: Json) -> None:
    """What the manifest says that labels and evaluation were made from."""
    facts = {**ROWS, "principles": {p["id"]: p["compare"] for p in PRINCIPLES}, **changes}
    evaluated = {**facts, "policy": {"model": "tiny"}, "evaluate": {"seed": 11}}
    with RunStore(run) as store:
        store.update_manifest("made", {"preferences": facts, "evaluation": evaluated})


def edit(run: Path, name: str, change: Json) -> None:
    path = run / "evaluation" / f"{name}.json"
    write_json(path, {**json.loads(path.read_text()), **change})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of the same pairs: B has a principle reworded, one less, and another judge's view;
    its policy is less harmless, and further from the base."""
    a = make_whole_run(tmp_path / "first")
    made(a)
    rng = random.Random(5)
    pairs, asked = tiny_pairs(320, rng), [PRINCIPLES[0], GENTLE]
    b = tmp_path / "second"
    verdicts = judge(pairs, asked, random.Random(99), bias=0.1)
    # As a judge who errs: what it says of every fifth pair is turned round.
    turned = {pair.id for pair in pairs[::5]}
    verdicts = [v if v.pair_id not in turned or v.p_first is None else _turned(v) for v in verdicts]
    write_labels(b, pairs, asked, verdicts, target="harmless")
    write_training(b, rng)
    principles = {p["id"]: p["compare"] for p in asked}
    made(b, principles=principles, judge={"model": "tiny", "shots": 4})
    dpo = json.loads((b / "evaluation/policies.json").read_text())["dpo"]
    dpo["traits"]["harmless"] = share(0.52, 209)
    dpo["kl"] = {"value": 0.92, "stderr": 0.03}
    edit(b, "policies", {"dpo": dpo})
    (b / "run.yaml").write_text("policy: {model: tiny}\njudge: {model: tiny, shots: 4}\n")
    return a, b


def _turned(verdict: Any) -> Any:
    return replace(verdict, p_first=1 - verdict.p_first)


def page(a: Path, b: Path) -> str:
    return build_beside(beside(Run(a), Run(b))).read_text(encoding="utf-8")


def row(html: str, title: str, after: str = "Policy dpo") -> str:
    found = re.search(rf"<tr[^>]*><td>{title}</td>.*?</tr>", html.split(after)[1], re.DOTALL)
    assert found, title
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", found[0])).strip().replace("\u2060", "")


def test_what_differs_is_told_and_words_are_marked(two: tuple[Path, Path]) -> None:
    html = page(*two)
    told = text_of(html)
    assert "the labels: principle refuse-harm is left out" in told
    assert "the labels: principle gentle was reworded" in told
    assert "the judge changed (shots none → 4)" in told
    assert told.count("refuse-harm is left out") == 1  # not again of the evaluation
    assert "<mark>safer</mark>" in html
    assert "<mark>gentler</mark>" in html
    assert "The same in both: no-harm." in told
    assert "judge.shots" in told
    assert "judge.min_mass" in told  # an option that only A's config has
    assert "policy.model" not in told


def test_numbers_stand_side_by_side_with_a_change_worked_by_hand(two: tuple[Path, Path]) -> None:
    """82 % and 52 % of 209, normal ends: the halves are 5.21 and 6.77 points, their hypotenuse 8.54
    about the difference of −30. Of KL 1.96 √(0.04² + 0.03²) = 0.098 about 0.30."""
    html = page(*two)
    told = row(html, "harmless").replace("\u202f", " ")
    assert told == "harmless 82.0 % 76.8–87.2 52.0 % 45.2–58.8 −30 points −38.5 to −21.5"
    assert '<tr class="target"><td>harmless' in html
    kl = row(html, "KL from base, nats a response")
    assert kl.endswith("0.62 0.54–0.70 0.92 0.86–0.98 +0.30 +0.20 to +0.40")
    assert "no trained policy" not in html
    places = [html.index(x) for x in ("A: What training", "B: What training", 'id="differences"')]
    assert places == sorted(places)


def test_what_was_measured_in_two_ways_has_no_change(two: tuple[Path, Path]) -> None:
    a, b = two
    assert row(page(a, b), "win rate over base").count("to") == 0
    made(b)  # the same principles, judge and prompts, as far as is recorded
    edit(b, "winrate", {"value": 0.6, "low": 0.55, "high": 0.65})
    assert "−11" in row(page(a, b), "win rate over base")
    with RunStore(b) as store:
        about = {**store.read_manifest()["run"], "target_trait": "polite"}
        store.update_manifest("run", about)
    found = dict(numbers((Run(a), Run(b))))["Labels"]
    (right,) = (n for n in found if n.what == "right, as far as known")
    assert all(right.values)
    assert right.change is None  # labels of other aims are right about other things


def test_flips_are_those_of_the_labels(two: tuple[Path, Path]) -> None:
    a, b = (Run(path) for path in two)
    sides = [np.sign(run.preferred - 0.5) for run in (a, b)]
    wanted = int((sides[0] * sides[1] < 0).sum())
    assert wanted > 20
    found = beside(a, b)
    assert found.comparison.flip_count == wanted
    told = text_of(page(*two))
    assert f"and {wanted} flipped" in told
    assert f"The 8 of {wanted} whose labels lie farthest apart" in told
    first = found.comparison.flips[0]
    assert f"p(first): A {first.p[0]:.2f}" in told
    assert told.count("response, preferred by A") == 8
    assert told.count("response, preferred by B") == 8
    assert " ".join(first.pair.first.split()[:3]) in told


def test_hostile_text_stays_text_on_the_page_of_two(tmp_path: Path) -> None:
    hostile = HOSTILE + "</textarea></style></title>"
    written = hostile.replace("\x00", "")  # a principle holds no NUL
    prompts = [Prompt((Message("user", f"{hostile} {i}"),), hostile) for i in range(4)]
    pairs = [Pair(prompt, f"{hostile} a", f"{hostile} b") for prompt in prompts]
    rng, runs = random.Random(0), [tmp_path / "<b>one", tmp_path / "<b>two"]
    for run, id_ in zip(runs, ("no-harm", "other"), strict=True):
        words = {"id": id_, "compare": f"{written} {run.name}", "tags": [written]}
        asked = [PRINCIPLES[0] | words]
        verdicts = judge(pairs, [asked[0] | {"tags": []}], rng)
        lean = 0.9 if run == runs[0] else 0.1
        write_labels(run, pairs, asked, [replace(v, p_first=lean, reason=None) for v in verdicts])
        write_training(run, rng)
        edit(run, "winrate", {"by_principle": {hostile: share(0.2, 90)}})
        (run / "run.yaml").write_text(json.dumps({"constitution": f"{hostile}{run.name}"}))
        made(run, principles={id_: run.name}, judge={"model": f"{hostile}{run.name}"})
        with RunStore(run) as store:
            about = {"name": hostile, "principles": asked}
            store.update_manifest("constitution", about)
            store.update_manifest("judge", {"model": hostile, "template": "<script>"})
    html = page(*runs)
    root = parse(html)
    assert beside(*map(Run, runs)).comparison.flip_count == 4
    for tag in ("script", "img", "textarea"):
        assert not list(root.iter(tag))
    assert len(list(root.iter("style"))) == 1
    assert all(a.get("href", "").startswith("#") for a in root.iter("a"))
    for element in root.iter():
        assert not [name for name in element.attrib if name.startswith("on")]
    assert "{{ 7 * 7 }}" in html
    assert "\x00" not in html
    assert "<b>one" in "".join(root.itertext())


def test_the_page_of_two_loads_nothing_and_its_links_lead_somewhere(two: tuple[Path, Path]) -> None:
    html = page(*two)
    root = parse(html)
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"url\(|@import|<script|javascript:", html)
    for element in root.iter("a"):
        target = element.attrib["href"].removeprefix("#")
        assert root.find(f".//*[@id='{target}']") is not None
    for svg in root.iter("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden")
    assert "nan" not in text_of(html)
    assert len(html.encode()) < 150_000


def test_the_command_writes_one_page_in_the_first_run(two: tuple[Path, Path]) -> None:
    a, b = two
    alone = build_report(a).read_text()
    before = {p: p.read_bytes() for run in two for p in run.rglob("*") if p.is_file()}
    found = cli("report", a, b, "--json", a.parent / "numbers.json")
    assert found.exit_code == 0, found.output
    assert "report-vs-second.html" in "".join(found.output.split())
    after = {p: p.read_bytes() for run in two for p in run.rglob("*") if p.is_file()}
    assert after.keys() - before.keys() == {a / "report-vs-second.html"}
    assert all(after[p] == content for p, content in before.items())
    assert build_report(a).read_text() == alone
    said = json.loads((a.parent / "numbers.json").read_text())
    (harmless,) = (n for n in said["numbers"] if (n["of"], n["what"]) == ("Policy dpo", "harmless"))
    ends = [as_interval(share(v, 209)) for v in (0.82, 0.52)]
    assert harmless["change"] == change_of_shares(*ends).as_dict()  # type: ignore[arg-type]
    assert said["labels"]["flipped"] > 20
    with pytest.raises(ConfigError, match="--json is of two runs"):
        cli("report", a, "--json", a.parent / "x.json")
    assert not (a.parent / "x.json").exists()


def test_a_second_run_that_cannot_be_compared_is_refused_first(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    a, _ = two
    (tmp_path / "link").symlink_to(a)
    with RunStore(tmp_path / "empty"):
        pass
    (tmp_path / "empty" / "run.yaml").write_text("policy: {model: tiny}\n")
    other = make_labelled_run(tmp_path / "hh", 20, 2)
    refused: list[tuple[Path, Path, type[Exception], str]] = [
        (a, tmp_path / "none", DataError, "there is no run directory .*none"),
        (a, a, ConfigError, "are the same run"),
        (a, tmp_path / "link", ConfigError, "are the same run"),
        (a, tmp_path / "empty", DataError, "empty has no labels yet: run `rlaif label"),
        (tmp_path / "empty", a, DataError, "empty has no labels yet"),
        (a, other, DataError, "nothing in common"),
    ]
    for first, second, kind, why in refused:
        with pytest.raises(kind, match=why):
            cli("report", first, second)
    assert not list(tmp_path.rglob("report-vs-*"))


def test_pairs_that_are_not_shared_are_told_and_policies_still_compared(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    a, _ = two
    other = make_labelled_run(tmp_path / "hh", 20, 2)
    write_training(other, random.Random(1))
    found = cli("report", a, other)
    assert found.exit_code == 0, found.output
    assert "no pair is labelled in both" in found.output
    told = text_of((a / "report-vs-hh.html").read_text())
    assert re.search(r"No pair is labelled in both runs \(A has \d+ labels, B 20\)", told)
    assert "Flipped pairs" not in told
    assert "Traits of dpo" in told
