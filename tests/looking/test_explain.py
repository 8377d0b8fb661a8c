"""`rlaif constitution explain` and `what-if` on a run that the embedded model judged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.records import Preference
from rlaif.store import RunStore

UNRANKED = """name: mine
extends: [helpful, harmless]
"""
RANKED = UNRANKED + "principles: [{id: no-harm, tier: 1}, {id: least-harm, tier: 1}]\n"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pairs of which one helps with harm and the other declines."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "mine.yaml").write_text(UNRANKED)
    mine = ("--config", "demo", "--constitution", str(folder / "mine.yaml"))
    run("sample", *mine, "--limit", "64", "--out", str(folder / "r"))
    run("label", "--out", str(folder / "r"))
    return folder


@pytest.fixture
def here(judged: Path, tmp_path: Path) -> Path:
    """The run, copied."""
    shutil.copytree(judged, tmp_path / "p")
    return tmp_path / "p" / "r"


def labels(root: Path) -> list[Preference]:
    return RunStore(root, read_only=True).table("preferences").read()


def told(root: Path, command: str, *words: str) -> dict[str, Any]:
    path = root.parent / "told.json"
    run("constitution", command, str(root), *words, "--json", str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_label_is_explained_by_values_that_sum_to_its_log_odds(here: Path) -> None:
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    found = told(here, "explain")
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
    stored = labels(here)
    assert [row["pair"] for row in found["labels"]] == [p.pair.id for p in stored]
    spoke = 0
    for row, label in zip(found["labels"], stored, strict=True):
        assert row["p"] == (None if label.p_first is None else pytest.approx(label.p_first))
        assert (row["side"] == "neither") == (label.status != "preferred")
        assert row["opinions"] == dict(zip(label.principles, label.p_principles, strict=True))
        if row["p"] is not None:
            spoke += 1
            p = min(max(row["p"], 1e-6), 1 - 1e-6)
            worth = math.log(p / (1 - p))
            assert sum(row["shapley"].values()) == pytest.approx(worth, abs=1e-9)
    assert spoke > 10
    decided = sum(row["decided"] for row in found["principles"])
    assert decided == found["preferred"] == sum(p.status == "preferred" for p in stored) > 0


def test_what_if_foretells_what_the_next_labels_are(here: Path) -> None:
    """Against `rlaif label` with the edited file: each label, and what changed."""
    before = labels(here)
    foretold = told(here, "what-if", "--tier", "no-harm=1", "--tier", "least-harm=1")
    ranked = here.parent / "ranked.yaml"
    ranked.write_text(RANKED)
    assert foretold == told(here, "what-if", "--constitution", str(ranked))
    said = run("label", "--constitution", str(ranked), "--out", str(here))
    assert "(0 new)" in said
    after = labels(here)

    def side(label: Preference) -> str:
        if label.status != "preferred":
            return "neither"
        return "first" if label.first_is_chosen else "second"

    changed = {
        a.pair.id: ([a.p_first, b.p_first], [side(a), side(b)])
        for a, b in zip(before, after, strict=True)
        if side(a) != side(b)
    }
    assert changed  # harmless and helpful do pull apart
    assert {row["pair"] for row in foretold["changed"]} == set(changed)
    for row in foretold["changed"]:
        ps, sides = changed[row["pair"]]
        assert row["side"] == sides
        assert row["p"] == [None if p is None else pytest.approx(p, abs=1e-12) for p in ps]
    assert foretold["gained"] == sum(a == "neither" for _, (a, _) in changed.values())
    # and what it was is foretold of what it has become
    back = told(here, "what-if", "--tier", "no-harm=last", "--tier", "least-harm=last")
    assert (back["lost"], back["gained"]) == (foretold["gained"], foretold["lost"])


def test_a_principle_may_be_left_out_by_a_constitution(here: Path) -> None:
    explained = told(here, "explain")
    (row,) = (r for r in explained["principles"] if r["principle"] == "useful")
    fewer = here.parent / "fewer.yaml"
    fewer.write_text(UNRANKED + "drop: [useful]\n")
    found = told(here, "what-if", "--constitution", str(fewer))
    assert {k: row["without"][k] for k in ("lost", "gained")} | {
        "flipped": row["without"]["turned"]
    } == {k: found[k] for k in ("lost", "gained", "flipped")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing is to change"),
        (("--weight", "useful=2"), "weights do not count under aggregate mean: add --set"),
        (("--weight", "usefull=2"), "no principle 'usefull' here. Did you mean 'useful'"),
        (("--weight", "useful=0"), "expected a number above 0 after 'useful='"),
        (("--tier", "useful"), "expected 1, 2, … or `last` after 'useful='"),
        (("--tier", "useful=1", "--tier", "useful=2"), "'useful' is given twice"),
        (("--set", "judge.model=x"), "are of the rule over principles"),
        (("--set", "preferences.aggregate=x"), "preferences.aggregate"),
        (("--constitution", "honest"), "asks what this run did not: knows-its-limits"),
    ],
)
def test_what_cannot_be_is_said(judged: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run("constitution", "what-if", str(judged / "r"), *words)
    assert said in str(caught.value)


def test_weights_and_the_rule_may_be_others(judged: Path) -> None:
    weighted = ("--set", "preferences.aggregate=weighted", "--weight", "no-harm=9")
    out = run("constitution", "what-if", str(judged / "r"), *weighted, "-n", "0")
    assert "labels: as they are by row" in out
    wide = told(judged / "r", "what-if", "--set", "preferences.min_margin=0.499")
    assert wide["lost"] > 0


def test_labels_that_the_recorded_rule_does_not_make_are_refused(here: Path) -> None:
    with RunStore(here) as store:
        made = store.read_manifest()["made"]
        made["preferences"]["rule"]["aggregate"] = "minimum"
        store.update_manifest("made", made)
    with pytest.raises(DataError, match=r"labels are not what the rule recorded .*minimum"):
        run("constitution", "explain", str(here))
    with RunStore(here) as store:
        store.table("preferences").replace([])
    with pytest.raises(DataError, match="has no labels yet"):
        run("constitution", "explain", str(here))
