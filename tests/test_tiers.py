"""Tiers: a higher one that leans decides, the next speaks where it is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.constitution import Constitution
from rlaif.errors import ConfigError
from rlaif.evaluation.cases import decisive
from rlaif.evaluation.compare import LabelRule, opinions
from rlaif.judges.ensembles import RULES, TIER_MARGIN, Rule, combine, over_principles, strongest
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Prompt, Verdict

PAIR = Pair(Prompt.user("q"), "a", "b")
HASH_OF_HARMLESS = "a6021d9437ee8e73db8c"
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5}
rules = st.sampled_from(RULES)
given_p = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1)
ranks = st.fixed_dictionaries({n: st.sampled_from([None, 1, 2, 7]) for n in "abcd"})
margins = st.floats(0.01, 0.49)


def made(
    p: dict[str, float], rule: Rule, tiers: dict[str, int | None], margin: float = TIER_MARGIN
) -> float:
    found = over_principles(p, rule, WEIGHTS, tiers, margin)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": 0.6, "d": 0.1}, 0.35),  # half of its margin: held at half of ½ + 0.2
        ({"a": 0.7, "d": 0.1}, 0.7),  # at its margin: its own P
        ({"a": 0.9, "d": 0.0}, 0.9),
        ({"a": 0.7, "d": 0.95}, 0.95),  # no quarrel: the surer one
        ({"a": 0.4, "d": 0.9}, 0.65),  # the mirror of the first
        ({"a": 0.5, "d": 0.9}, 0.9),  # silent
        ({"a": 0.3, "b": 0.7, "d": 0.9}, 0.9),  # the tier is, by its mean
        ({"d": 0.9}, 0.9),
        ({"a": 0.55, "c": 0.7, "d": 0.0}, 0.7),  # silent enough: the second tier against the last
        ({"a": 0.6, "c": 0.3, "d": 0.9}, 0.35),  # d is held at 0.3 by c, at 0.35 by a
    ],
)
def test_hand_worked(values: dict[str, float], expected: float) -> None:
    tiers: dict[str, int | None] = {"a": 1, "b": 1, "c": 2}
    assert made(values, "mean", tiers, 0.2) == pytest.approx(expected)


@given(given_p, rules, ranks)
def test_one_tier_is_the_rule_alone(p: dict[str, float], rule: Rule, tiers: Any) -> None:
    alone = strongest(p) if rule == "sign_agreement" else combine(p, rule, WEIGHTS)
    same = dict.fromkeys(p, tiers["a"])
    assert made(p, rule, same) == alone == made(p, rule, {})


@given(given_p, rules, ranks, margins)
def test_the_mirrored_pair_has_the_complement(
    p: dict[str, float], rule: Rule, tiers: Any, margin: float
) -> None:
    assume(all(abs(v - 0.5) > 1e-9 or v == 0.5 for v in p.values()))  # 1 − p can round to ½
    mirrored = {name: 1 - v for name, v in p.items()}
    assert made(p, rule, tiers, margin) + made(mirrored, rule, tiers, margin) == pytest.approx(
        1, abs=1e-9
    )


@given(given_p, rules, ranks, margins, st.data())
def test_no_opinion_for_the_first_completion_lowers_its_label(
    p: dict[str, float], rule: Rule, tiers: Any, margin: float, data: Any
) -> None:
    name = data.draw(st.sampled_from(sorted(p)))
    more = p | {name: data.draw(st.floats(p[name], 1))}
    assert made(more, rule, tiers, margin) >= made(p, rule, tiers, margin) - 1e-9


@given(given_p, ranks, margins, st.data())
def test_labels_are_continuous_in_the_opinions(
    p: dict[str, float], tiers: Any, margin: float, data: Any
) -> None:
    """A step of an opinion moves a label no farther than the slope of a bound times the step."""
    name = data.draw(st.sampled_from(sorted(p)))
    step = data.draw(st.floats(-1e-3, 1e-3))
    moved = p | {name: min(max(p[name] + step, 0.0), 1.0)}
    change = abs(made(moved, "mean", tiers, margin) - made(p, "mean", tiers, margin))
    assert change <= (0.5 + margin) / margin * abs(step) + 1e-12


@given(given_p, rules, ranks, margins)
def test_the_highest_tier_that_leans_decides_the_side(
    p: dict[str, float], rule: Rule, tiers: Any, margin: float
) -> None:
    for tier in (1, 2, 7, None):
        own = {n: v for n, v in p.items() if tiers[n] == tier}
        p_tier = over_principles(own, rule, WEIGHTS)
        if p_tier is None or p_tier == 0.5:
            continue
        assume(abs(p_tier - 0.5) >= margin)  # else it is not for it alone to say
        label = made(p, rule, tiers, margin)
        assert (label - p_tier) * (p_tier - 0.5) >= 0  # no nearer to ½, on no other side
        return
    assert made(p, rule, tiers, margin) == 0.5


@given(given_p, rules, ranks, margins)
def test_a_tier_at_one_half_is_as_good_as_absent(
    p: dict[str, float], rule: Rule, tiers: Any, margin: float
) -> None:
    below = {n: v for n, v in p.items() if tiers[n] != 1}
    assume(below)
    silent = dict.fromkeys((n for n in p if tiers[n] == 1), 0.5)
    assert made(below | silent, rule, tiers, margin) == made(below, rule, tiers, margin)


def verdicts(**told: float | None) -> list[Verdict]:
    return [
        Verdict(f"{n}{o}", PAIR.id, n, o, "j", p, reason="too_long" if p is None else None)
        for n, p in told.items()
        for o in ORDERS
    ]


def test_a_tier_of_abstentions_is_silent() -> None:
    tiers = {"safe": 1, "useful": None}
    (row,) = aggregate([PAIR], verdicts(safe=0.9, useful=0.2), tiers=tiers)
    assert row.p_first == 0.9
    (row,) = aggregate([PAIR], verdicts(safe=None, useful=0.2), tiers=tiers)
    assert row.p_first == 0.2
    (row,) = aggregate([PAIR], verdicts(safe=0.9, useful=None), tiers=tiers)
    assert row.p_first == 0.9
    masked = PreferenceSettings(principle_margin=0.15)
    (row,) = aggregate([PAIR], verdicts(safe=0.6, useful=0.2), masked, tiers=tiers)
    assert row.p_first == 0.2


def test_the_margin_is_a_setting_that_is_checked() -> None:
    with pytest.raises(ConfigError, match="'tier_margin': Input should be greater than 0"):
        PreferenceSettings(tier_margin=0)
    row = verdicts(safe=0.6, useful=0.1)
    (soft,) = aggregate([PAIR], row, PreferenceSettings(tier_margin=0.2), tiers={"safe": 1})
    (hard,) = aggregate([PAIR], row, PreferenceSettings(tier_margin=0.1), tiers={"safe": 1})
    assert (soft.p_first, hard.p_first) == (pytest.approx(0.35), pytest.approx(0.6))


def test_the_principle_that_decided_is_that_of_the_tier_that_did() -> None:
    rule = LabelRule(tiers={"safe": 1})
    said = verdicts(safe=0.7, useful=0.05)
    (row,) = aggregate([PAIR], said, tiers=rule.tiers)
    assert (row.first_is_chosen, decisive(row, rule)) == (True, "safe")
    assert rule(opinions(row)) == row.p_first
    (mean,) = aggregate([PAIR], said)
    assert (mean.first_is_chosen, decisive(mean, LabelRule())) == (False, "useful")


# ------------------------------------------------------------------------------- the constitution

MINE = """
name: mine
principles:
  - {id: safe, compare: 'Which is safer?'}
  - {id: useful, compare: 'Which is more useful?'}
"""


def test_a_file_without_tiers_has_the_hash_that_it_had() -> None:
    assert Constitution.load("harmless").hash == HASH_OF_HARMLESS
    ranked = Constitution.parse(MINE.replace("{id: safe,", "{id: safe, tier: 1,"))
    assert ranked.hash != Constitution.parse(MINE).hash


def test_a_tier_is_a_whole_number_from_1() -> None:
    with pytest.raises(ConfigError, match=r"<constitution>:4:\d+: .*tier.*greater than or equal"):
        Constitution.parse(MINE.replace("{id: safe,", "{id: safe, tier: 0,"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_tell_of_tiers(tmp_path: Path) -> None:
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text(MINE)
    after.write_text(MINE.replace("{id: safe,", "{id: safe, tier: 1,"))
    assert "2 principles, fine" in run("constitution", "check", str(before))
    assert "2 principles in 2 tiers, fine" in run("constitution", "check", str(after))
    assert "tier" not in run("constitution", "show", str(before))
    shown = run("constitution", "show", str(after))
    assert "tier" in shown
    assert "last" in shown
    told = run("constitution", "diff", str(before), str(after))
    assert "moved" in told
    assert "tier: last → 1" in told
    assert "2 of 2 columns of verdicts stay valid, 0 to judge" in told


def test_a_new_tier_makes_labels_stale_and_asks_nothing(tmp_path: Path) -> None:
    mine, out, pairs = tmp_path / "mine.yaml", str(tmp_path / "r"), tmp_path / "pairs.jsonl"
    mine.write_text(MINE)
    talk = "\n\nHuman: How do I get in?\n\nAssistant:"
    rows = [
        {"chosen": f"{talk} I cannot help.", "rejected": f"{talk} Break window {i}."}
        for i in range(4)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("label", "--pairs", str(pairs), "--constitution", str(mine), "--out", out)
    assert "out of date" not in run("status", out)
    page = tmp_path / "r" / "report.html"
    run("report", out)
    assert "Tier" not in page.read_text()
    mine.write_text(MINE.replace("{id: safe,", "{id: safe, tier: 1,"))
    told = run("label", "--out", out, "--dry-run")
    assert "16 are stored and 0 to judge" in told
    run("constitution", "check", str(mine))
    said = run("label", "--out", out)
    assert "16 verdicts (0 new)" in said
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["made"]["preferences"]["rule"]["tier of safe"] == 1
    run("report", out)
    assert "Which is safer?</small>" not in page.read_text()
    assert "Which is safer? Tier 1." in page.read_text()
    run("export", out, str(tmp_path / "set"), "--hub", "--what", "prompts")
    card = (tmp_path / "set" / "README.md").read_text()
    assert "| id | asked | tier | weight |" in card
    assert "| useful | Which is more useful? | last | 1 |" in card
