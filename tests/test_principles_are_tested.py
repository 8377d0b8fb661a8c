"""Tests of principles: kept in the file, run by a judge, and no part of what a run is made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif import PairwiseJudge
from rlaif.cli.app import app
from rlaif.cli.show import changes_table
from rlaif.constitution import Constitution, check
from rlaif.constitution.diff import diff
from rlaif.constitution.wordings import opposite, paraphrases
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError, DataError, TrainingError
from rlaif.evaluation.attacks import Question
from rlaif.evaluation.audit import failed
from rlaif.evaluation.invariance import (
    asked_again,
    asks_of,
    by_kind,
    card,
    outcome,
    variants,
)
from rlaif.evaluation.settings import LabelLimits
from rlaif.files.resources import find
from rlaif.files.templates import Template
from rlaif.judges.layouts import layouts
from rlaif.judges.preferences import PreferenceSettings
from rlaif.records import ORDERS, Pair, Prompt, content_id
from rlaif.steps.executors import Memory, run_judge

PLAIN = """
name: plain
principles:
  - id: safe
    compare: Which response does less harm?
    critique: Say where.
    tags: [safety]
"""
TESTED = (
    PLAIN
    + """    paraphrases: ["Which answer hurts fewer people?"]
    opposite: Which response does more harm?
    tests:
      - {prompt: Help me., better: "No.", worse: "Yes."}
"""
)
TINY = ["--judge", "tiny", "--set", "threads=1"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


# ------------------------------------------------------------------------------------- the file


def test_tests_change_no_hash_no_key_and_no_verdict() -> None:
    plain, tested = Constitution.parse(PLAIN), Constitution.parse(TESTED)
    assert len(tested.principles[0].tests) == 1
    # what the hash was of before files had tests, written out
    said = {"id": "safe", "compare": "Which response does less harm?", "critique": "Say where."}
    said |= {"revise": None, "follow": None, "violate": None, "weight": 1.0, "tags": ["safety"]}
    whole = {"name": "plain", "version": 1, "description": "", "principles": [said]}
    assert plain.hash == tested.hash == content_id("constitution", whole)
    memory: Memory[Any] = Memory()
    judge = PairwiseJudge(ScriptedEngine(scorer=lambda *_: (-0.5, -1.0)))
    pairs = [Pair(Prompt.user("q"), "one", "two")]
    assert run_judge(pairs, judge, plain.principles, memory).new_rows == 2
    assert run_judge(pairs, judge, tested.principles, memory).new_rows == 0


def test_a_diff_says_that_tests_cost_no_verdict() -> None:
    (change,) = diff(Constitution.parse(PLAIN), Constitution.parse(TESTED))
    assert (change.kind, change.judged_again) == ("changed", False)
    (_, _, what, cost) = (next(iter(c.cells)) for c in changes_table([change]).columns)
    assert "tests: 0 → 1" in str(what)
    assert cost == "valid"


def test_an_heir_keeps_the_tests_of_what_it_changes() -> None:
    text = "name: mine\nextends: harmless\nprinciples: [{id: no-harm, weight: 3}]\n"
    assert len(Constitution.parse(text).principles[0].tests) == 2


def test_faults_of_tests_are_told_by_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "name: bad\n"
        "principles:\n"
        "  - id: a\n"
        "    compare: Which is shorter?\n"
        "    paraphrases:\n"
        "      - Which is shorter?\n"
        "    opposite: Which is shorter?\n"
        "    tests:\n"
        "      - {prompt: P, better: B, worse: W}\n"
        "      - {prompt: P, better: W, worse: B}\n"
        "      - {prompt: P, better: B, worse: W}\n"
        "  - id: b\n"
        "    follow: F\n"
        "    violate: V\n"
        "    tests:\n"
        "      - {prompt: P, better: B, worse: W}\n"
    )
    _, faults = check(bad)
    assert [fault.removeprefix(f"{bad}:") for fault in faults] == [
        "10:9: 'a': test 2 says the opposite of test 1",
        "11:9: 'a': test 3 repeats test 1",
        "6:9: 'a': the paraphrase asks in words that are asked already",
        "7:5: 'a': the opposite asks what the principle or a paraphrase of it asks",
        "15:5: 'b': tests without compare, which a judge is asked",
    ]
    bad.write_text(
        "name: bad\nprinciples:\n  - id: a\n    compare: Q\n    tests:\n"
        "      - {prompt: P, better: same, worse: same}\n"
        "      - {prompt: P, beter: B, worse: W}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check(bad)[1] and Constitution.load(bad)
    assert f"{bad}:6:9: " in str(caught.value)
    assert "better and worse are the same text" in str(caught.value)
    assert f"{bad}:7:21: unknown key" in str(caught.value)
    assert "Did you mean 'better'?" in str(caught.value)


# ----------------------------------------------------------------------------- the same otherwise


@pytest.mark.parametrize(
    ("question", "turned"),
    [
        ("Which response is less harmful?", "Which response is more harmful?"),
        ("Which response contains fewer errors?", "Which response contains more errors?"),
        ("Which response is more careful where a lawyer should be asked?", "less careful"),
        ("Which response is shorter and more concise?", None),  # "shorter" would have to turn, too
        ("Which response preaches less and accuses less?", None),
        ("Which response is more honest about what it does not know?", None),
        ("Which response is safer?", None),
        ("Which response does what the person asked?", None),
    ],
)
def test_only_what_surely_turns_is_turned(question: str, turned: str | None) -> None:
    found = opposite(question)
    assert found is None if turned is None else turned in (found or "")


def test_paraphrases_by_rule() -> None:
    assert paraphrases("Which response is safer?") == (
        "Select the response that is safer.",
        "Which answer is safer?",
        "Choose the reply that is safer.",
    )
    assert paraphrases("Is it good?") == ("Decide by this question alone: Is it good?",)


def test_options_are_renamed_wherever_the_template_names_them() -> None:
    source = (
        '---\noptions: [" A", " B"]\nstop: ["x"]\n---\n=== user ===\n'
        "Say A or B. A short answer.\n\n<response_a>{{ first }}</response_a>\nB:\n"
        '{{ second | tag_sentences("B") }}\n{{ principle }}\n=== assistant ===\nAnswer:'
    )
    found = layouts(source)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "options 1/2": "options",
        "options X/Y": "options",
        "no blank lines": "format",
    }
    renamed = Template("renamed", found["options 1/2"][1])
    assert renamed.options == (" 1", " 2")
    assert renamed.stop == ("x",)
    values = {"first": "A is A.", "second": "B is B.", "principle": "A?"}
    text = renamed.render(messages=[], **values).messages[0].text
    assert text == (
        "Say 1 or 2. A short answer.\n\n<response_1>A is A.</response_1>\n2:\nB is B. 2\nA?"
    )
    assert "answer.\n<response_a>" in found["no blank lines"][1]


@pytest.mark.parametrize("name", ["pointwise/default", "rubric/default", "text/default"])
def test_options_that_mean_something_keep_their_names(name: str) -> None:
    assert layouts(find("prompts", name, ".j2").read_text()) == {}


def by_words(text: str, options: Any) -> tuple[float, float]:
    """A judge that reads one word of the principle: 'harm' makes it prefer what says No, wherever
    it stands; without the word it likes the first place; it knows of no opposite."""
    del options
    asked = text.rsplit("Principle:", 1)[1]
    first = text.split("<response_", 2)[1]
    liked = "No." in first if "harm" in asked else True
    return (-0.1, -3.0) if liked else (-3.0, -0.1)


def test_flips_are_counted_by_hand() -> None:
    principle = Constitution.parse(TESTED).principles[0]
    judge = PairwiseJudge(ScriptedEngine(scorer=by_words))
    pairs = [Pair(Prompt.user(f"q{i}"), "No.", "Yes.") for i in range(4)]
    base = [(pair, judge.judge(asks_of(pair, principle, ORDERS))) for pair in pairs]
    questions = [Question(pair, principle, 0.95) for pair in pairs]
    ways = variants(principle, {"other": "format"})
    assert [(v.kind, v.layout) for v in ways] == [
        ("paraphrase", None),
        ("opposite", None),
        ("format", "other"),
    ]
    rows = [(again, judge.judge(again.asks)) for again in asked_again(questions, ways[:2], ORDERS)]
    found = card(principle, base, rows)
    assert found["position"]["value"] == 0  # both orders prefer "No."
    assert found["questions"] == 4
    # Without its word the judge says ½ over both orders: no side leads, so nothing is turned round.
    para, other = found["variants"].values()
    assert (para["kind"], para["asked"], para["flipped"]["value"]) == ("paraphrase", 4, 0)
    assert para["shift"] == pytest.approx(0.5 - 0.05)
    # Asked for the more harmful one it names the same response: all four are flips.
    assert (other["kind"], other["flipped"]["value"], other["flipped"]["n"]) == ("opposite", 1, 4)
    kinds = by_kind(rows)
    assert kinds["opposite"] == {k: v for k, v in other.items() if k != "kind"}
    # and a judge that only likes a place flips none of a card, but all of its places
    lost = principle.model_copy(update={"compare": "Which one?"})
    same = [(pair, judge.judge(asks_of(pair, lost, ORDERS))) for pair in pairs]
    assert card(lost, same, [])["position"]["value"] == 1


def test_labels_are_refused_by_flips() -> None:
    flips = {"value": 0.5, "low": 0.3, "high": 0.7, "n": 20}
    kinds = {"paraphrase": {"flipped": flips}, "opposite": {"flipped": None}}
    assert failed({"kinds": kinds}, LabelLimits()) == {}
    assert failed({"kinds": kinds}, LabelLimits(max_flip_rate=0.3)) == {}
    told = failed({"kinds": kinds}, LabelLimits(max_flip_rate=0.2))["max_flip_rate"]
    assert "paraphrase" in told
    assert "50.0%" in told
    told = failed({"kinds": None}, LabelLimits(max_flip_rate=0.2))["max_flip_rate"]
    assert "rlaif constitution test NAME --invariance" in told


@pytest.mark.parametrize(
    ("logprobs", "what"),
    [((-0.1, -3.0), "tie"), ((-3.0, -3.2), "abstained")],
)
def test_neither_a_tie_nor_an_abstention_passes(logprobs: Any, what: str) -> None:
    """One place liked in both orders is a tie; labels with little probability abstain."""
    principle = Constitution.parse(TESTED).principles[0]
    judge = PairwiseJudge(ScriptedEngine(scorer=lambda *_: logprobs))
    pair = principle.tests[0].pair
    verdicts = judge.judge(asks_of(pair, principle, ORDERS))
    result, p, reason = outcome(pair, verdicts, ORDERS, PreferenceSettings())
    assert result == what
    assert (p, reason) == ((pytest.approx(0.5), None) if what == "tie" else (None, "low_mass"))


# ------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("name", ["harmless", "concise"])
def test_what_ships_passes_on_the_embedded_model(name: str, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    result = run("constitution", "test", name, *TINY, "--json", str(told))
    assert result.exit_code == 0, result.output
    rows = json.loads(told.read_text())["tests"]
    assert {row["outcome"] for row in rows} == {"pass"}
    assert f"{len(rows)} tests: {len(rows)} pass" in result.output


def test_a_test_that_fails_ends_with_1_and_no_tests_with_an_error(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = find("constitutions", "concise", ".yaml").read_text()
    swapped = text.replace("better:", "x:").replace("worse:", "better:").replace("x:", "worse:")
    wrong.write_text(swapped)
    result = run("constitution", "test", str(wrong), *TINY)
    assert result.exit_code == 1
    assert "2 tests: 2 fail" in result.output
    with pytest.raises(ConfigError, match="'sixteen' has no tests: write `tests:`"):
        run("constitution", "test", "sixteen")
    with pytest.raises(ConfigError, match="is of --invariance"):
        run("constitution", "test", "concise", "--template", "pairwise/fewshot")
    with pytest.raises(DataError, match="leave out --out"):
        run("constitution", "test", "concise", "--out", str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


def test_a_run_is_asked_nothing_twice_and_stays_as_it_is(tmp_path: Path) -> None:
    out, told = tmp_path / "run", tmp_path / "told.json"
    pairs = tmp_path / "pairs.jsonl"
    tests = [test for p in Constitution.load("harmless").principles for test in p.tests]
    rows = [{"prompt": t.prompt, "chosen": t.better, "rejected": t.worse} for t in tests]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    words = ["--constitution", "harmless", *TINY]
    assert run("label", "--pairs", str(pairs), *words, "--out", str(out)).exit_code == 0
    before = {name: (out / name).read_bytes() for name in ("run.yaml", "manifest.json")}

    def measured(*more: str) -> Any:
        words = ("test", "harmless", "--invariance", "--json", str(told), "--out", str(out))
        assert run("constitution", *words, *more).exit_code == 0
        return json.loads(told.read_text())["invariance"]

    found = measured()
    # 3 pairs × 2 principles are known; of each 3 paraphrases, 1 opposite and 2 names, both orders
    assert found["new_verdicts"] == 3 * 2 * 2 * (3 + 1 + 2)
    assert found["kinds"]["paraphrase"]["flipped"]["value"] == 0
    assert measured()["new_verdicts"] == 0
    assert before == {name: (out / name).read_bytes() for name in before}
    learn = ("train", "dpo", str(out), "--set", "train.limits.max_flip_rate=0.9")
    learn += ("--set", "train.dpo.epochs=1")
    assert run(*learn).exit_code == 0
    measured = json.loads((out / "evaluation/invariance.json").read_text())
    measured["judge"] = "another"
    (out / "evaluation/invariance.json").write_text(json.dumps(measured))
    with pytest.raises(TrainingError, match="not known how the wording matters to this judge"):
        run(*learn)
