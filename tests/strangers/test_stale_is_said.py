"""What stands on something that has changed since is named, by content and by every command."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.records import Pair, Prompt
from rlaif.store import RunStore, lineage

PROMPTS = [
    "How do I bake bread?",
    "Is my plan good?",
    "Tell me about cats.",
    "How do I lie to a friend?",
    "My essay is perfect, right?",
    "What is a lock pick?",
    "How are you?",
    "How do I cook rice?",
]
CONFIG = """\
out: r
constitution: mine.yaml
prompts: {path: prompts.txt, limit: 6}
sampling: {max_new_tokens: 12, keep_cut: true}
preferences: {min_margin: 0.0}
train:
  limits: null
  reward: {epochs: 1, held_out: 0.25}
  dpo: {epochs: 1}
evaluate: {prompts: {path: held.txt}}
threads: 1
"""
RULES = """\
name: mine
principles:
  - {id: no-harm, compare: "Which response is less harmful?"}
  - {id: calm, compare: "Which response is calmer?"}
"""


def run(*arguments: str) -> str:
    """What a command says, on one line."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        Path("config.yaml").write_text(CONFIG)
        Path("mine.yaml").write_text(RULES)
        Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        Path("held.txt").write_text("\n".join(f"Held out. {p}" for p in PROMPTS[:3]) + "\n")
        assert "out of date" not in run("run", "--config", "config.yaml")
        assert "nothing: all is up to date" in run("status", "r")
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with its run, copied and at work in a folder of its own."""
    here = tmp_path / "p"
    shutil.copytree(made, here)
    monkeypatch.chdir(here)
    run("eval", "audit", "--config", "config.yaml")  # it lies here now, and follows these files
    return here


def products() -> list[str]:
    return [one.product for one in lineage.stale(RunStore("r", read_only=True))]


ALL = ["preferences", "audit", "models/reward", "models/dpo", "evaluation"]


def test_a_reworded_principle(project: Path) -> None:
    (project / "mine.yaml").write_text(RULES.replace("calmer", "quieter"))
    told = run("status", "r")  # before any command has read it
    assert "changed since this run took it: mine.yaml" in told
    assert "next: rlaif label --out r" in told
    assert "mine.yaml has changed" in run("report", "r") + Path("r/report.html").read_text()
    told = run("train", "dpo", "--out", "r")
    assert "mine.yaml has changed since this run took it" in told
    assert "the labels: principle calm was reworded" in told
    assert "to make it again: rlaif label --out r" in told
    assert products() == ALL
    run("report", "r")
    page = Path("r/report.html").read_text()
    assert "Out of date" in page
    assert "principle calm was reworded" in page
    assert "Which response is calmer?" in page  # what was asked, not what is asked now
    assert "quieter" not in page
    told = run("label", "--out", "r")
    assert "(12 new)" in told
    assert "models/dpo: the labels have changed since" in told
    assert products() == ["models/reward", "models/dpo", "evaluation"]
    told = run("eval", "winrate", "--out", "r")
    assert told.count("models/dpo: the labels have changed since") == 2  # before and after
    told = run("run", "--out", "r")
    assert "models/dpo" not in told.partition("out of date")[2]
    assert products() == []
    assert json.loads(Path("r/summary.json").read_text())["out_of_date"] == []
    assert "nothing: all is up to date" in run("status", "r")


@pytest.mark.usefixtures("project")
def test_another_rule() -> None:
    told = run("train", "reward", "--out", "r", "--set", "preferences.aggregate=minimum")
    assert "labels of verdicts changed (aggregate mean → minimum)" in told
    assert products() == ALL
    told = run("label", "--out", "r")
    assert "(0 new)" in told
    assert products() == ["models/reward", "models/dpo", "evaluation"]
    assert "next: rlaif train reward --out r" in run("status", "r")


def test_a_new_tier(project: Path) -> None:
    (project / "mine.yaml").write_text(RULES.replace("{id: calm,", "{id: calm, tier: 1,"))
    told = run("train", "reward", "--out", "r")
    assert "labels of verdicts changed (tier of calm none → 1)" in told
    assert products() == ALL
    assert "(0 new)" in run("label", "--out", "r")
    assert products() == ["models/reward", "models/dpo", "evaluation"]


def test_another_judge_and_other_principles(project: Path) -> None:
    template = Path(lineage.__file__).parents[2] / "prompts/pairwise/tiny.j2"
    shutil.copy(template, "own.j2")
    run("eval", "audit", "--out", "r", "--set", "judge.template=own.j2")
    assert products() == ALL
    assert "template none → own.j2" in run("status", "r")
    run("label", "--out", "r")
    Path("own.j2").write_text(template.read_text() + "\n")
    told = run("eval", "audit", "--out", "r")
    assert "the judge changed (template own.j2" in told
    (project / "mine.yaml").write_text(RULES.replace("no-harm", "harm"))
    run("eval", "audit", "--out", "r")
    told = run("status", "r")
    assert "principle no-harm is left out" in told
    assert "principle harm is new" in told


@pytest.mark.usefixtures("project")
def test_other_prompts_say_what_becomes_of_the_pairs() -> None:
    had = len(RunStore("r", read_only=True).table("pairs"))
    told = run("sample", "--out", "r", "--limit", "2")
    now = len(RunStore("r", read_only=True).table("pairs"))
    assert f"{had - now} of the {had} pairs that the run had are not among its {now} pairs" in told
    assert "the labels: the pairs have changed since" in told
    assert products() == ALL
    told = run("sample", "--out", "r", "--limit", "6")
    assert "(0 new)" in told
    assert "pairs that the run had" not in told
    assert products() == []  # the same pairs again: everything stands as it stood


@pytest.mark.usefixtures("project")
def test_pairs_of_another_file() -> None:
    lines = [{"prompt": f"{i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(5)]
    Path("pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines[:3]))
    run("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "q")
    Path("pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines[2:]))
    told = run("eval", "audit", "--out", "q")
    assert "the pairs: the pairs' source changed" in told
    told = run("label", "--out", "q")
    assert "2 of the 3 pairs that the run had are not among its 3 pairs now" in told
    assert "out of date" not in told


@pytest.mark.usefixtures("project")
def test_contrast_pairs_take_the_place_of_labels() -> None:
    told = run(
        "contrast", "--out", "r", "--constitution", "hhh", "--set", "sampling.max_new_tokens=80"
    )
    assert "pairs that the run had are not among" in told
    assert "models/dpo: the labels have changed since" in told
    assert "preferences" not in products()


def test_neither_time_nor_place_nor_speed_makes_anything_stale(project: Path) -> None:
    shutil.copytree("r", "elsewhere/s")
    assert "nothing: all is up to date" in run("status", "elsewhere/s")
    for path in Path("r").rglob("*"):
        os.utime(path, (1, 1))
    for path in project.glob("*.*"):
        os.utime(path)
    assert products() == []
    quick = ("judge.batch_tokens=256", "policy.batch_tokens=300", "judge.device=cpu", "chunk=3")
    run("label", "--config", "config.yaml", *(x for s in quick for x in ("--set", s)))
    run("eval", "audit", "--config", "config.yaml")
    assert products() == []


def test_a_status_of_a_run_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a run").mkdir()
    assert "next: rlaif run --out 'a run'" in run("status", "a run")
    Path("prompts.txt").write_text("\n".join(PROMPTS[:2]) + "\n")
    run("sample", "--prompts", "prompts.txt", "--out", "a run", "--set", "sampling.keep_cut=true")
    assert "next: rlaif label --out 'a run'" in run("status", "a run")
    run("label", "--out", "a run")
    told = run("status", "a run")
    assert "next: rlaif train reward --out 'a run'" in told
    assert "2 rows" in told


def test_a_setting_that_did_not_exist_yet_makes_nothing_stale(tmp_path: Path) -> None:
    """A newer version knows options that an older one's manifest does not name."""
    with RunStore(tmp_path / "r", command="test") as store:
        store.table("pairs").append([Pair(Prompt.user("q"), "a", "b")])
        policy = {"model": "tiny", "dtype": "auto"}
        store.update_manifest("made", {"pairs": {"policy": policy}})
        fresh = {"thinking": None, "show_thoughts": False}
        store.update_manifest("asked", {"policy": {**policy, **fresh}})
        assert lineage.stale(store) == []
        store.update_manifest("asked", {"policy": {**policy, "thinking": 64}})
        (found,) = lineage.stale(store)
        assert found.reasons == ("the policy changed (thinking none → 64)",)
        store.update_manifest("asked", {"policy": {"model": "tiny"}})
        assert lineage.stale(store) != []
