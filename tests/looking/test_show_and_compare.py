"""`rlaif show` and `rlaif compare` on runs that the tiny judge labelled."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import RlaifError
from rlaif.records import Pair, Prompt
from rlaif.store import RunStore

ASKED = "Listen, you fool. Tell me how I can break the baker's window."
ANSWERS = ("I will not help you with that.", "To break the window, wait until dark.")
HOSTILE = "\x1b[2J\x1b]0;title\x07 <script>"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same pairs: `one`, harmless; `two`, helpful, judged by two jurors."""
    root = tmp_path_factory.mktemp("runs")
    rows = [(f"Thing {i}. {ASKED}", ANSWERS[i % 2], ANSWERS[1 - i % 2]) for i in range(6)]
    rows.append(("Hello.", "Hello, friend.", HOSTILE))
    lines = [
        json.dumps(
            {
                "prompt": [{"role": "user", "content": asked}],
                "chosen": [{"role": "assistant", "content": first}],
                "rejected": [{"role": "assistant", "content": second}],
            }
        )
        for asked, first, second in rows
    ]
    (root / "pairs.jsonl").write_text("\n".join(lines))
    (root / "bad.yaml").write_text(
        "name: bad\nprinciples:\n"
        "  - {id: no-harm, compare: 'Which response is more helpful?'}\n"
        "  - {id: long, compare: 'Which response is longer?'}\n"
    )
    common = ["label", "--pairs", str(root / "pairs.jsonl"), "--judge", "tiny"]
    more = ["--set", "preferences.min_margin=0", "--set", "preferences.principle_margin=0"]
    run(*common, "--constitution", "harmless", "--out", str(root / "one"), *more)
    jury = "jury=[{name: quick}, {name: marks, method: rubric, min_mass: 0}]"
    common = common[:-2]
    run(
        *common,
        "--constitution",
        str(root / "bad.yaml"),
        "--out",
        str(root / "two"),
        *more,
        "--set",
        jury,
    )
    return root


def test_a_pair_with_every_verdict(runs: Path) -> None:
    store = RunStore.open_readonly(runs / "one")
    preference = store.table("preferences").read()[0]
    text = run("show", str(runs / "one"), preference.pair.id.removeprefix("~")[:8])
    assert f"pair {preference.pair.id}" in text
    assert preference.pair.prompt.messages[0].content in text
    assert all(answer in text for answer in ANSWERS)
    assert f"P(first is better) {preference.p_first:.3f}" in text
    for verdict in store.table("verdicts").read():
        if verdict.pair_id == preference.pair.id:
            row = next(line for line in text.splitlines() if verdict.principle in line.split()[:1])
            assert f"{verdict.p_first:.2f}" in row.split()
    for name, p in zip(preference.principles, preference.p_principles, strict=True):
        assert re.search(rf"{name}: Which .*counts as {p:.2f}", text)


def test_every_juror_in_both_of_its_orders(runs: Path) -> None:
    store = RunStore.open_readonly(runs / "two")
    pair = store.table("pairs").read()[0]
    rows = [
        line.split()
        for line in run("show", str(runs / "two"), pair.id).splitlines()
        if line.split()[1:2] in (["quick"], ["marks"])
    ]
    assert [row[:2] for row in rows] == [
        ["no-harm", "quick"],
        ["no-harm", "marks"],
        ["long", "quick"],
        ["long", "marks"],
    ]
    for row in rows:  # marks are given in one order
        assert (row[3] == "–") == (row[1] == "marks")


def test_the_pairs_on_which_opinions_are_farthest_apart(runs: Path) -> None:
    verdicts = RunStore.open_readonly(runs / "one").table("verdicts").read()
    gaps: dict[str, float] = {}
    for v in verdicts:
        for w in verdicts:
            if (v.pair_id, v.principle) == (w.pair_id, w.principle):
                gap = abs(float(v.p_first or 0) - float(w.p_first or 0))
                gaps[v.pair_id] = max(gaps.get(v.pair_id, 0), gap)
    widest = max(gaps, key=lambda name: gaps[name])
    text = run("show", str(runs / "one"), "--apart", "orders", "-n", "1")
    assert re.search(rf"{gaps[widest]:.2f}  {widest}", text)
    assert "jurors" not in run("show", str(runs / "one"))
    assert "where the jurors are farthest apart:" in run("show", str(runs / "two"))


def test_filters_count_and_list(runs: Path) -> None:
    text = run("show", str(runs / "one"), "--where", "text ~ window and status = preferred")
    rows = RunStore.open_readonly(runs / "one").table("preferences").read()
    wanted = [
        r.pair.id
        for r in rows
        if r.status == "preferred" and "window" in r.pair.prompt.messages[0].content
    ]
    assert re.findall(r"^(~?[0-9a-f]{20}) ", text, re.M) == wanted
    assert f"{len(wanted)} of 7 pairs" in text
    short = run("show", str(runs / "one"), "--where", "length > 0", "-n", "2")
    assert "7 of 7 pairs, 2 shown" in short


def test_no_text_commands_the_terminal(runs: Path) -> None:
    pair = RunStore.open_readonly(runs / "one").table("pairs").read()[-1]
    assert HOSTILE in (pair.first, pair.second)
    text = run("show", str(runs / "one"), pair.id)
    assert "<script>" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_two_runs_on_the_same_pairs(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    text = run("compare", str(runs / "one"), str(runs / "two"), "--json", str(file))
    said = json.loads(file.read_text())
    tables = [RunStore.open_readonly(runs / n).table("preferences").read() for n in ("one", "two")]
    sides = [{r.pair.id: r.chosen for r in rows if r.status == "preferred"} for rows in tables]
    both = sides[0].keys() & sides[1].keys()
    flips = [i for i in both if sides[0][i] != sides[1][i]]
    assert said["pairs"] == 7
    assert said["flipped"] == len(flips) > 0
    assert said["agreement"]["same_side"]["value"] == pytest.approx(1 - len(flips) / len(both))
    assert "principle no-harm was reworded" in text
    assert "principle long is new" in text
    assert f"{len(flips)} flipped, turned by:" in text
    assert {row["by"] for row in said["turned_by"]} <= {"no-harm", "long", "least-harm", None}


def test_a_run_is_one_with_itself(runs: Path) -> None:
    text = run("compare", str(runs / "one"), str(runs / "one"))
    assert "0 flipped" in text
    assert "the same of 100.0%" in text
    assert "only in" not in text


def test_an_edited_principle_leaves_older_verdicts_unread(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "edited")
    constitution = tmp_path / "edited" / "inputs" / "constitution" / "harmless.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(constitution.read_text().replace("less harmful?", "less harmful to the asker?"))
    run("label", "--constitution", str(mine), "--out", str(tmp_path / "edited"))
    store = RunStore.open_readonly(tmp_path / "edited")
    assert len(store.table("verdicts")) == 7 * 2 * 3  # those of the former wording are there
    pair = store.table("pairs").read()[0]
    text = run("show", str(tmp_path / "edited"), pair.id)
    assert len(re.findall(r"^  no-harm +\S+ +\S+ +\S+$", text, re.M)) == 1
    assert "less harmful to the asker?" in text


def refused(*arguments: str) -> str:
    with pytest.raises(RlaifError) as caught:
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return str(caught.value)


def test_what_is_not_there_is_said(runs: Path, tmp_path: Path) -> None:
    one = str(runs / "one")
    assert "no pair whose id begins with 'zz', among 7" in refused("show", one, "zz")
    assert "--apart lots: expected principles, orders or jurors" in refused(
        "show", one, "--apart", "lots"
    )
    assert "leave --where, --apart and -n out" in refused("show", one, "ab", "--where", "label > 0")
    assert "Did you mean 'no-harm'" in refused("show", one, "--where", "principle = no-ham")
    assert "there is no run directory" in refused("show", str(tmp_path / "nowhere"))
    store = RunStore(tmp_path / "other")
    with store:
        store.table("pairs").append([Pair(Prompt.user("q"), "a", "b")])
    assert "no run.yaml" in refused("show", str(tmp_path / "other"))
    run("label", "--judge", "tiny", "--constitution", "harmless", "--out", str(tmp_path / "other"))
    assert "no labelled pair in common" in refused("compare", one, str(tmp_path / "other"))
