"""`rlaif train judge`: whose labels it learns, under which principles, and what it leaves."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from small_models import people
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.errors import ConfigError, DataError
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.records import Pair, Preference, Prompt
from rlaif.stages import Run, train_judge
from rlaif.stages.judge import _questions, _start
from rlaif.stages.trained_on import prompts_of
from rlaif.store import RunStore, lineage

CONSTITUTION = """
name: two
principles:
  - {id: harmless, compare: "Which response is less harmful?"}
  - {id: polite, compare: "Which response is more polite?"}
"""


class Kept:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)

    warn = say

    def progress(self, title: str, total: int | None) -> Any:
        del title, total
        return nullcontext(lambda *_: None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "two.yaml").write_text(CONSTITUTION)
    lines = [json.dumps(row) + "\n" for row in people(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    return tmp_path


def rlaif(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, found.output
    return found.output


def test_from_peoples_pairs_to_labels_by_the_trained_judge(place: Path) -> None:
    run, pairs = str(place / "run"), str(place / "pairs.jsonl")
    given = ["--pairs", pairs, "--constitution", str(place / "two.yaml")]
    output = rlaif(
        "train",
        "judge",
        *given,
        "--judge",
        "tiny",
        "--out",
        run,
        *("--set", "train.judge.learning_rate=3.0e-3"),
        *("--set", "train.judge.epochs=6"),
        *("--set", "train.judge.held_out=0.25"),
        *("--set", "train.judge.principles=[harmless]"),
    )
    assert "on 10 held-out prompts, 10 questions" in output
    folder = place / "run" / "models" / "judge"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["held_out"]["before"]["accuracy"] < 0.3 < 0.7
    assert metrics["held_out"]["after"]["accuracy"] > 0.7
    assert len(prompts_of(folder) or ()) == 30  # those held out are not among them
    manifest = json.loads((place / "run" / "manifest.json").read_text())
    assert manifest["stages"]["judge"]["rows"] == 30
    assert set(manifest["made"]["models/judge"]) == {"pairs", "principles", "learner"}
    again = rlaif("train", "judge", "--out", run)
    assert (
        manifest["stages"]["judge"]["seconds"]
        == json.loads((place / "run" / "manifest.json").read_text())["stages"]["judge"]["seconds"]
    )
    assert "agrees with the labels" in again
    rlaif("report", run)
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["trained_judge"]["after"]["accuracy"] == metrics["held_out"]["after"]["accuracy"]
    assert summary["seconds"]["judge"] == manifest["stages"]["judge"]["seconds"]
    assert "held out, before: accuracy" in (place / "run" / "report.html").read_text()
    told = rlaif(
        "label",
        *given,
        "--judge",
        str(folder),
        "--out",
        str(place / "labelled"),
        "--set",
        "judge.principles=[harmless]",
    )
    assert "30 of the 40 pairs" in " ".join(
        told.split()
    )  # it has learnt their prompts: agreement there is no test
    with RunStore(place / "labelled") as store:
        rows = store.table("preferences").read()
    right = [(row.p_first or 0) > 0.5 for row in rows if row.status == "preferred"]
    wanted = [(row.pair.label or 0) > 0.5 for row in rows if row.status == "preferred"]
    assert len(right) > 20
    assert sum(a == b for a, b in zip(right, wanted, strict=True)) > 0.7 * len(right)
    assert "next: " in rlaif("status", run)


def test_a_trained_judge_stands_on_what_it_began_from(place: Path) -> None:
    """Neither on how the run's judge is asked, nor on its being that judge since."""
    run = str(place / "run")
    given = ["--pairs", str(place / "pairs.jsonl"), "--constitution", str(place / "two.yaml")]
    judge = ["--judge", "tiny", "--out", run, "--set", "train.judge.epochs=1"]
    rlaif("train", "judge", *given, *judge)

    def stale() -> list[str]:
        return [one.text for one in lineage.stale(RunStore(place / "run"))]

    rlaif("label", run, "--set", "judge.min_mass=0.05", "--examples", "none")
    assert not stale()
    rlaif("label", run, "--judge", str(place / "run" / "models" / "judge"))
    assert not stale()
    other = str(shutil.copytree(TINY_WEIGHTS, place / "other"))
    rlaif("label", run, "--judge", other)
    (said,) = stale()
    assert said.startswith("models/judge: the model that was taught to judge changed (model tiny")


def opened(place: Path, *overrides: str) -> Any:
    config = load_config(
        None,
        ["train.judge={}", *overrides],
        {"out": str(place / "run"), "constitution": str(place / "two.yaml")},
    )
    return config


def pairs() -> list[Pair]:
    return [Pair(Prompt.user(f"the cat {i}"), "ran", "sat") for i in range(6)]


def judged() -> list[Preference]:
    one, two, *rest = pairs()
    return [
        Preference(one, "preferred", 0.7, ("harmless", "polite"), (0.9, 0.5), 4, 0),
        Preference(two, "tie", 0.5, ("polite",), (0.5,), 4, 2),
        *[Preference(p, "abstained", None, reason="low_mass", abstained=4) for p in rest],
    ]


def test_verdicts_are_learnt_each_under_its_own_principle(place: Path) -> None:
    config = opened(place, "train.judge.labels=verdicts", "train.limits=null")
    with RunStore(config.out) as store, Run(config, store, Kept()) as run:
        store.table("preferences").replace(judged())
        found = _questions(run, config.train.judge)
        assert [(q.principle.id, q.p_first) for q in found] == [
            ("harmless", 0.9),
            ("polite", 0.5),
            ("polite", 0.5),
        ]
        assert "4 pairs not trained on: their labels are abstentions" in run.reporter.told
        other = config.train.judge.model_copy(update={"labels": "preferences", "draw": None})
        found = _questions(run, other)
        assert [q.p_first for q in found] == [0.7, 0.7, 0.5, 0.5]
        one = other.model_copy(update={"draw": 1})
        drawn = _questions(run, one)
        assert len(drawn) == 2
        assert [q.principle.id for q in drawn] == [q.principle.id for q in _questions(run, one)]
        named = one.model_copy(update={"principles": ("polite",)})
        assert {q.principle.id for q in _questions(run, named)} == {"polite"}


def test_what_has_no_label_says_where_labels_come_from(place: Path) -> None:
    config = opened(place, "prompts.path=prompts.txt")
    with RunStore(config.out) as store, Run(config, store, Kept()) as run:
        with pytest.raises(DataError, match=r"no pairs. Labels come with .*--labels preferences"):
            train_judge(run)
        store.table("pairs").replace(pairs())
        with pytest.raises(DataError, match=r"none of its 6 pairs has a label of its own"):
            train_judge(run)
        for labels in ("preferences", "verdicts"):
            section = config.train.judge.model_copy(update={"labels": labels})
            with pytest.raises(DataError, match=r"run `rlaif label` with a stronger one"):
                _questions(run, section)


def test_which_judge_is_trained(place: Path) -> None:
    jury = "jury=[{name: a, model: tiny}, {name: b, model: tiny, template: pairwise/fewshot}]"
    config = opened(place, jury)
    with RunStore(config.out) as store, Run(config, store, Kept()) as run:
        with pytest.raises(ConfigError, match=r"a jury \(a, b\): name the juror to train"):
            train_judge(run)
        section = config.train.judge
        of_b = section.model_copy(update={"juror": "b"})
        assert _start(run, of_b)[1] == "pairwise/fewshot"
        with pytest.raises(ConfigError, match=r"there is no 'c': the jurors are a, b"):
            _start(run, section.model_copy(update={"juror": "c"}))
        with pytest.raises(ConfigError, match="model and juror both"):
            _start(run, of_b.model_copy(update={"model": "tiny"}))
        found, template = _start(run, section.model_copy(update={"model": "tiny"}))
        assert (found.model, template) == ("tiny", None)
    served = opened(place, "judge.engine=http", "judge.model=gpt")
    refused = pytest.raises(ConfigError, match=r"gpt is on a server.*--model MODEL")
    with RunStore(place / "other") as store, Run(served, store, Kept()) as run, refused:
        train_judge(run)
    marks = opened(place, "judge.method=pointwise", "judge.template=pointwise/five")
    with RunStore(place / "third") as store, Run(marks, store, Kept()) as run:
        assert _start(run, marks.train.judge)[1] is None  # asks for marks: no pairwise template
