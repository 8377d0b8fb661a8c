"""`rlaif constitution learn` on the embedded world, and what it refuses."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.constitution import Constitution
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError, DataError, RlaifError
from rlaif.tiny import gold_preference, prompts
from rlaif.tiny.grammar import draw_plan, realise, scenes


def calling(*words: str) -> Any:
    return CliRunner().invoke(app, ["constitution", "learn", *words], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_pairs(path: Path, n: int, trait: str = "concise", label: bool = True) -> None:
    """Pairs that the grammar draws, one a prompt; the better one under the trait is chosen."""
    rng, rows = random.Random(3), list[dict[str, str]]()
    for prompt in prompts("test"):
        scene = scenes()[prompt.text]
        a, b = (realise(scene, draw_plan(scene, rng), rng) for _ in range(2))
        said = gold_preference(prompt.text, a, b, trait)
        if said is None:
            continue
        names = ("chosen", "rejected") if label else ("first", "second")
        sides = (a, b) if said else (b, a)
        rows.append({"prompt": prompt.text, **dict(zip(names, sides, strict=True))})
        if len(rows) == n:
            break
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


LISTS = ("--candidates", "harmless", "--candidates", "concise", "--candidates", "thorough")


def test_the_hidden_trait_is_found_and_nothing_is_judged_twice() -> None:
    write_pairs(Path("pairs.jsonl"), 60)
    learnt = ("runs/x", "--pairs", "pairs.jsonl", *LISTS, "--to", "mine.yaml")
    said = calling(*learnt)
    assert said.exit_code == 0, said.output
    found = Constitution.load("mine.yaml")
    assert {p.tags[-1] for p in found.principles} == {"tiny:concise"}
    assert sum(p.weight for p in found.principles) == pytest.approx(1, abs=1e-3)
    told = json.loads(Path("runs/x/evaluation/learned.json").read_text())
    assert told["held_out"]["value"] >= 0.95
    assert told["sets"]["thorough"]["value"] <= 0.05
    assert told["train_prompts"] + told["held_out_prompts"] == 60
    assert (len(told["rows"]), len(told["sets"])) == (6, 3)

    before = Path("mine.yaml").read_text()
    assert calling(*learnt).exit_code == 0  # what was learnt is replaced
    assert Path("mine.yaml").read_text() == before
    manifest = json.loads(Path("runs/x/manifest.json").read_text())
    assert manifest["stages"]["learn-constitution"]["new_rows"] == 0

    words = "label runs/x --constitution mine.yaml --set preferences.aggregate=weighted"
    labelled = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    assert "(0 new)" in labelled.output

    again = calling("runs/x", "--labels", "preferences", *LISTS)  # still to mine.yaml
    assert again.exit_code == 0, again.output
    assert {p.tags[-1] for p in Constitution.load("mine.yaml").principles} == {"tiny:concise"}


def test_labels_that_nothing_explains_write_no_constitution() -> None:
    write_pairs(Path("pairs.jsonl"), 40)
    words = ("runs/x", "--pairs", "pairs.jsonl", "--candidates", "thorough")  # the opposite
    with pytest.raises(DataError, match="no candidate explains these labels beyond chance"):
        calling(*words)
    assert not Path("runs/x/learned.yaml").exists()
    told = json.loads(Path("runs/x/evaluation/learned.json").read_text())
    assert (told["held_out"], {row["held_out"]["value"] for row in told["rows"]}) == (None, {0.0})


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("--pairs ok.jsonl", ConfigError, "0 candidates: there is nothing to choose from"),
        ("--pairs ok.jsonl --candidates one.yaml", ConfigError, "1 candidates"),
        ("--pairs ok.jsonl --candidates harmles", ConfigError, "Did you mean 'harmless'"),
        ("--pairs ok.jsonl --candidates critic.yaml", ConfigError, "label needs compare"),
        ("--pairs ok.jsonl --propose 5", ConfigError, "the embedded model knows its own small"),
        ("--pairs ok.jsonl --candidates hhh --to theirs.yaml", DataError, "was not learnt"),
        ("--pairs no.jsonl --candidates hhh", DataError, "no.jsonl"),
        ("--pairs ok.jsonl --candidates hhh --judge ./gone", RlaifError, "gone"),
        ("--candidates hhh", DataError, "give --pairs FILE, with labels"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_and_leaves_nothing(
    words: str, error: type[RlaifError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(Path("ok.jsonl"), 25)
    Path("one.yaml").write_text("name: one\nprinciples: [{id: a, compare: 'Which is kind?'}]\n")
    Path("critic.yaml").write_text("name: c\nprinciples: [{id: a, critique: x, revise: y}]\n")
    Path("theirs.yaml").write_text("name: theirs\n")
    monkeypatch.setattr("rlaif.stages.run.load_engine", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(error, match=re.escape(message)):
        calling("runs/new", *words.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("n", "label", "more", "message"),
    [
        (19, True, "", "labelled pairs of 19 prompts, and at least 20 are needed"),
        (25, False, "", "none of its 25 pairs has a label of its own"),
        (25, True, "judge.orders=first_second", "all labels prefer the same side"),
        (25, True, "learn.labels=preferences", "no labels to learn from"),
    ],
)
def test_labels_that_cannot_be_learnt_from(n: int, label: bool, more: str, message: str) -> None:
    write_pairs(Path("pairs.jsonl"), n, label=label)
    if "preferences" in more:
        Path("runs/run").mkdir(parents=True)
    if not label:
        more = "pairs.columns={prompt: prompt, first: first, second: second}"
    with pytest.raises(DataError, match=re.escape(message)):
        calling("--pairs", "pairs.jsonl", *LISTS, *(["--set", more] if more else []))


def test_an_id_of_two_questions_is_told_apart_and_one_of_two_lists_is_asked_once() -> None:
    from rlaif.stages.learned import Candidates

    Path("a.yaml").write_text("name: a\nprinciples: [{id: kind, compare: 'Which is kinder?'}]\n")
    Path("b.yaml").write_text(
        "name: b\nprinciples:\n  - {id: kind, compare: 'Which is softer?', weight: 3}\n"
        "  - {id: other, compare: 'Which is kinder?', weight: 2}\n"
    )
    found = Candidates()
    for name in ("a.yaml", "b.yaml"):
        found.add(name)
    assert [(p.id, p.compare) for p in found.principles] == [
        ("kind", "Which is kinder?"),
        ("b-kind", "Which is softer?"),
    ]
    weights = {name: {p.id: p.weight for p in own} for name, own in found.sets.items()}
    assert weights == {"a": {"kind": 1.0}, "b": {"b-kind": 3.0, "kind": 2.0}}


def test_a_model_proposes_and_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy reads training pairs, and what it writes is judged with the lists."""
    write_pairs(Path("pairs.jsonl"), 40)
    asked: list[str] = []

    class Writer(ScriptedEngine):
        def generate(self, prompts: Any, sampling: Any) -> Any:
            asked.extend(p.messages[0].text for p in prompts)
            return super().generate(prompts, sampling)

    writer = Writer(generator=lambda *_: " is shorter and more concise")
    real = __import__("rlaif.stages.run", fromlist=["load_engine"]).load_engine
    monkeypatch.setattr(
        "rlaif.stages.run.load_engine",
        lambda name, section: writer if "writer" in name else real(name, section),
    )
    folder = Path("writer")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    words = ("runs/x", "--pairs", "pairs.jsonl", "--candidates", "harmless", "--propose", "2")
    said = calling(*words, "--policy", "./writer")
    assert said.exit_code == 0, said.output
    assert "1 principles proposed of 8 written (7 repeated)" in said.output
    (kept,) = Constitution.load("runs/x/learned.yaml").principles
    assert (kept.id, kept.tags) == ("is-shorter-and-more-concise", ("proposed",))
    assert kept.compare == "Which response is shorter and more concise?"
    assert len(asked) == len(set(asked)) == 8
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    for row in rows:
        for text in filter(lambda t, row=row: row["prompt"] in t, asked):
            assert text.index(row["chosen"]) < text.index(row["rejected"])
    calling(*words, "--policy", "./writer")
    assert len(asked) == 8
