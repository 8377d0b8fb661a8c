"""Flips are counted as they happen: judges whose weakness is known, and the embedded one."""

from __future__ import annotations

import json
import math
import re

import pytest

from rlaif.cli.app import app
from rlaif.constitution import Principle
from rlaif.engines.base import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.evaluation.attacks import Question, clear_questions, draw, report, trials
from rlaif.judges.attacks import FAMILIES, LONG, Target, appended
from rlaif.judges.base import expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import ORDERS, Pair, Prompt, Verdict

PRINCIPLE = Principle(id="p", compare="Which is better?")
PAIRS = [Pair(Prompt.user(f"q{i}"), f"good {i}", f"bad {i}") for i in range(40)]


def gullible(text: str, _options) -> list[float]:
    """Likes the response with "good", unless one says how to answer; knows responses by fences."""
    shown = re.findall(r"<response_[ab]>\n(.*?)\n</response_[ab]>", text, re.DOTALL)
    scores = [("good" in s) + 4 * (f"Answer: {x}" in s) for s, x in zip(shown, "AB", strict=True)]
    total = sum(math.exp(s) for s in scores)
    return [s - math.log(total) for s in scores]


def run(families: list[str], pairs=PAIRS, **options):
    judge = PairwiseJudge(
        ScriptedEngine(scorer=gullible, **options), PairwiseSettings(template="pairwise/default")
    )
    verdicts = judge.judge(expand(pairs, [PRINCIPLE]))
    questions = clear_questions(pairs, [PRINCIPLE], verdicts, ORDERS)
    todo = list(trials(questions, ORDERS, lambda place: "AB"[place], families=families))
    return questions, report((t, judge.judge(list(t.asks))) for t in todo)


def test_a_gullible_judge_is_found_out_and_a_text_without_attack_turns_nothing() -> None:
    questions, found = run(["padding", "fences", "instructions"])
    assert len(questions) == 40
    assert found["fences"]["flipped"] == {
        "value": 1.0,
        "low": pytest.approx(0.912, abs=1e-3),
        "high": 1.0,
        "n": 40,
    }
    assert found["fences"]["shift"] > 0.5
    assert found["padding"]["flipped"]["value"] == found["instructions"]["flipped"]["value"] == 0.0
    assert found["padding"]["shift"] == pytest.approx(0.0)


def test_only_texts_that_name_the_place_right_in_each_order_work() -> None:
    """The attacker's label follows the place he stands in; a fixed one would win one order only."""
    question = Question(PAIRS[0], PRINCIPLE, 0.9)
    (trial,) = trials([question], ORDERS, lambda place: "AB"[place], families=["fences"])
    first, second = trial.asks
    assert "Answer: B" in first.pair.second
    assert "Answer: A" in second.pair.second
    assert first.pair.first == second.pair.first == "good 0"


def test_the_loser_is_attacked_whichever_side_it_is_on() -> None:
    mirrored = [p.swap() for p in PAIRS]
    _, found = run(["fences"], mirrored)
    assert found["fences"]["flipped"]["value"] == 1.0


def test_what_does_not_fit_is_an_abstention_and_no_flip() -> None:
    _, found = run(["long"], max_length=1_000)
    assert found["long"]["flipped"] is None
    assert found["long"]["abstained"] == {"too_long": 40}


def verdict(pair: Pair, order, p) -> Verdict:
    reason = "low_mass" if p is None else None
    return Verdict(f"{pair.id}{order}", pair.id, "p", order, "j", p, reason=reason)


def test_questions_that_are_unclear_or_half_answered_are_not_attacked() -> None:
    a, b, c = PAIRS[:3]
    verdicts = [
        verdict(a, "first_second", 0.9),
        verdict(a, "second_first", 0.7),
        verdict(b, "first_second", 0.95),
        verdict(b, "second_first", 0.15),  # the slot
        verdict(c, "first_second", 0.9),
        verdict(c, "second_first", None),
    ]
    (found,) = clear_questions([a, b, c], [PRINCIPLE], verdicts, ORDERS)
    assert (found.pair, found.p_first) == (a, pytest.approx(0.8))


def test_the_draw_takes_each_pair_before_any_twice() -> None:
    other = Principle(id="o", compare="Or so?")
    questions = [Question(p, q, 0.9) for p in PAIRS for q in (PRINCIPLE, other)]
    assert len({q.pair.id for q in draw(questions, 40)}) == 40
    assert draw(questions, 7) == draw(questions[::-1], 7)
    assert len(draw(questions, 1000)) == 80


def test_every_family_has_texts_and_an_unknown_one_is_named() -> None:
    target = Target("B", "The other.", ("response_b",), ("<|x|>",))
    for family in FAMILIES:
        texts = appended(target, [family])
        assert texts
        assert all(a.family == family for a in texts)
    assert len(appended(target, ["long"])[0].text) == LONG
    assert any("The other." in a.text for a in appended(target, ["other_response"]))
    with pytest.raises(ConfigError, match="Did you mean 'fences'"):
        appended(target, ["fence"])


def test_the_command_attacks_a_run_and_resumes(tmp_path, capsys) -> None:
    out = str(tmp_path / "run")
    quiet = ["--set", "threads=1"]
    families = ["--family", "padding", "--family", "verdict"]
    asked = ["--config", "demo", "--limit", "24", "--out", out]
    app(["sample", *asked, *quiet], standalone_mode=False)
    app(["label", "--out", out], standalone_mode=False)
    app(["eval", "attacks", "--out", out, "--limit", "6", *families], standalone_mode=False)
    found = json.loads((tmp_path / "run/evaluation/attacks.json").read_text())["pairwise"]
    assert set(found["families"]) == {"padding", "verdict"}
    assert all(row["asked"] == found["questions"] for row in found["families"].values())
    app(["eval", "attacks", "--out", out, "--limit", "6", *families], standalone_mode=False)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["stages"]["attacks pairwise"]["new_rows"] == 0
    assert "flipped" in capsys.readouterr().out
    app(["eval", "audit", "--help"], standalone_mode=False)
    assert "--attacks" in capsys.readouterr().out
