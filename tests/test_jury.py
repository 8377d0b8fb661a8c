"""Juries: several judges from the config, each asked once, their verdicts combined by rules."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.cli.console import Silent
from rlaif.config import load_config
from rlaif.errors import ConfigError, RlaifError
from rlaif.evaluation.jury import JuryAgreement
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Order, Pair, Preference, Prompt, Verdict
from rlaif.report.data import Run as StoredRun
from rlaif.stages import Run
from rlaif.stages.jury import judges_of
from rlaif.store import RunStore

PAIR = Pair(Prompt.user("q"), "a", "b")
# A mark for each completion is given in one order; texts of four tokens hold no verdict.
QUICK = "{name: quick, weight: 3}"
MARKS = "{name: marks, method: rubric, min_mass: 0}"
MUTE = "{name: mute, method: text, rationale: {max_new_tokens: 4}}"
LISTS = "{name: lists, method: listwise, min_mass: 0}"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rows = []
    for i in range(4):
        prompt = f"\n\nHuman: Tell me about thing {i // 3}.\n\nAssistant:"
        answers = [f"{prompt} It is good.", f"{prompt} No, number.", f"{prompt} I cannot help."]
        rows.append({"chosen": answers[i % 3], "rejected": answers[(i + 1) % 3]})
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.yaml").write_text(
        "name: mine\nprinciples:\n  - {id: a, compare: 'Which response is kinder?'}\n"
    )


def label(*jurors: str, out: str = "r", more: tuple[str, ...] = ()) -> str:
    sets = [f"jury=[{', '.join(jurors)}]", "preferences.min_margin=0", *more]
    options = [part for value in sets for part in ("--set", value)]
    return run(
        "label", "--pairs", "pairs.jsonl", "--constitution", "mine.yaml", "--out", out, *options
    )


def preferences(out: str = "r") -> list[Preference]:
    return RunStore(out, read_only=True).table("preferences").read()


def labels_of(out: str) -> list[float]:
    found = [p.p_first for p in preferences(out)]
    assert None not in found
    return [p for p in found if p is not None]


def manifest(out: str = "r") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "manifest.json").read_text())
    return found


# ------------------------------------------------------------------------------- the pure functions


def verdict(judge: str, order: Order, p: float | None) -> Verdict:
    reason: Any = "too_long" if p is None else None
    return Verdict(f"{judge}{order}", PAIR.id, "x", order, judge, p, reason=reason)


def test_orders_may_differ_by_judge() -> None:
    both, one = ORDERS, ORDERS[:1]
    said = [verdict("j", both[0], 0.9), verdict("j", both[1], 0.5), verdict("k", both[0], 0.3)]
    (row,) = aggregate([PAIR], said, PreferenceSettings(quorum=2), orders={"j": both, "k": one})
    assert row.p_first == pytest.approx((0.7 + 0.3) / 2)
    (row,) = aggregate([PAIR], said, orders=both)  # half of an asked pair of orders is none
    assert row.p_first == pytest.approx(0.7)
    with pytest.raises(ConfigError, match="no orders for the judge 'k'"):
        aggregate([PAIR], said, orders={"j": both})


def test_an_abstention_says_whether_the_quorum_or_every_judge_was_wanting() -> None:
    one = ORDERS[:1]
    said = [verdict("j", one[0], 0.9), verdict("k", one[0], None)]
    (row,) = aggregate([PAIR], said, PreferenceSettings(quorum=2), orders=one)
    assert (row.status, row.reason, row.p_first) == ("abstained", "quorum", None)
    (row,) = aggregate([PAIR], said[1:], PreferenceSettings(quorum=2), orders=one)
    assert (row.status, row.reason) == ("abstained", "too_long")
    (row,) = aggregate([PAIR], said, orders=one)
    assert (row.status, row.reason) == ("preferred", None)


def test_agreement_of_jurors_by_hand() -> None:
    """Ten questions; k is asked in one order, and both jurors have an opinion of eight of them."""
    both, one = ORDERS, ORDERS[:1]
    j = [
        (0.9, 0.9),
        (0.9, 0.7),
        (0.9, 0.3),
        (0.9, 0.9),
        (0.1, 0.1),
        (0.1, 0.3),
        (0.6, 0.4),
        (0.52, 0.52),
        (0.9, None),
        (None, None),
    ]
    k = [0.8, 0.8, 0.7, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9, None]
    counts = JuryAgreement({"j": both, "k": one}, quorum=2, margin=0.05)
    for i, (asked, p) in enumerate(zip(j, k, strict=True)):
        said = [verdict("j", order, q) for order, q in zip(both, asked, strict=True)]
        part = [*said, verdict("k", one[0], p)]
        pair = Pair(Prompt.user(f"{i // 2}"), "a", "b")
        counts.add([pair], [replace(v, pair_id=pair.id, principle=f"{i % 2}") for v in part])
    found = counts.result()
    assert found["questions"] == 10
    assert found["short_of_quorum"] == 2  # of one k alone has an opinion, of one nobody
    assert found["opinions"] == {"j": 8, "k": 9}
    (row,) = found["agreement"]
    assert (row["jurors"], row["questions"]) == (["j", "k"], 8)
    # Both lean on six: of the eight, j is at exactly 1/2 on one, and within the margin on one.
    #            k first  k second     agreement 4/6, by chance (4*4 + 2*2)/36 = 20/36
    # j first       3        1         kappa = (24/36 - 20/36) / (1 - 20/36) = 4/16
    # j second      1        1
    assert (row["same_side"]["value"], row["same_side"]["n"]) == (pytest.approx(4 / 6), 6)
    assert row["kappa"] == pytest.approx(1 / 4)
    sides = ([p > 0.5 for p in (0.9, 0.8, 0.6, 0.9, 0.1, 0.2)], [p > 0.5 for p in k[:6]])
    assert row["kappa"] == pytest.approx(cohen_kappa_score(*sides))


def test_jurors_that_never_speak_of_the_same_question_have_no_agreement() -> None:
    counts = JuryAgreement({"j": ORDERS[:1], "k": ORDERS[:1]})
    counts.add([PAIR], [verdict("j", ORDERS[0], 0.9), verdict("k", ORDERS[0], None)])
    (row,) = counts.result()["agreement"]
    assert (row["questions"], row["same_side"], row["kappa"]) == (0, None, None)
    assert counts.result()["short_of_quorum"] == 0


# --------------------------------------------------------------------------------- from the command


def test_one_juror_is_as_good_as_no_jury_and_its_name_asks_nothing_again() -> None:
    assert "8 verdicts (8 new)" in label()
    alone = preferences()
    assert "8 verdicts (0 new)" in label("{name: solo}")
    assert preferences() == alone
    assert "8 verdicts (0 new)" in label("{name: other}", more=("preferences.jury=log_odds",))
    assert [p.p_first for p in preferences()] == pytest.approx([p.p_first for p in alone])


def test_two_jurors_by_their_weights_and_another_rule_asks_nothing() -> None:
    assert "8 verdicts (8 new)" in label(QUICK)
    quick = labels_of("r")
    assert "4 verdicts (4 new)" in label(MARKS)
    marks = labels_of("r")
    assert quick != marks
    assert "12 verdicts (0 new)" in label(QUICK, MARKS, more=("preferences.jury=weighted",))
    expected = [(3 * p + q) / 4 for p, q in zip(quick, marks, strict=True)]
    assert [p.p_first for p in preferences()] == pytest.approx(expected)
    for rule, pick in (("mean", lambda p, q: (p + q) / 2), ("minimum", _minimum)):
        assert "12 verdicts (0 new)" in label(QUICK, MARKS, more=(f"preferences.jury={rule}",))
        expected = [pick(p, q) for p, q in zip(quick, marks, strict=True)]
        assert [p.p_first for p in preferences()] == pytest.approx(expected)
    assert "12 verdicts (0 new)" in run("label", "--out", "r")  # by the run's own run.yaml


def _minimum(p: float, q: float) -> float:
    if (p - 0.5) * (q - 0.5) < 0:
        return 0.5
    return min(p, q, key=lambda x: abs(x - 0.5))


def test_an_abstaining_juror_is_left_out_and_a_quorum_makes_it_matter() -> None:
    label(QUICK)
    quick = [p.p_first for p in preferences()]
    assert "16 verdicts (8 new); 4 pairs: 4 preferred" in label(QUICK, MUTE)
    assert [p.p_first for p in preferences()] == quick
    told = manifest()["stages"]["label"]["jurors"]
    assert sum(told["mute"]["abstained"].values()) == 8
    assert told["quick"]["abstained"] == {}
    assert (told["mute"]["new_rows"], told["quick"]["new_rows"]) == (8, 0)
    assert told["mute"]["generated_tokens"] > 0 == told["quick"]["generated_tokens"]
    output = label(QUICK, MUTE, more=("preferences.quorum=2",))
    assert "16 verdicts (0 new)" in output
    assert "4 abstained (4 for want of a quorum)" in output
    assert {(p.status, p.reason, p.p_first) for p in preferences()} == {
        ("abstained", "quorum", None)
    }
    labels = json.loads(Path("r/evaluation/labels.json").read_text())
    assert labels["unlabelled_by_reason"] == {"quorum": 4}
    jury = labels["jury"]
    assert (jury["questions"], jury["quorum"], jury["short_of_quorum"]) == (4, 2, 4)
    assert jury["opinions"] == {"mute": 0, "quick": 4}
    assert "4 of 4 questions are short of the quorum of 2" in output


def test_lists_judge_a_prompts_pairs_together_wherever_they_stand_in_the_jury() -> None:
    label(LISTS, more=("chunk=1",))
    lists = labels_of("r")
    label(QUICK, out="q")
    quick = labels_of("q")
    assert "16 verdicts (8 new)" in label(LISTS, QUICK, more=("chunk=1",))
    expected = [(p + q) / 2 for p, q in zip(lists, quick, strict=True)]
    # In other batches the same question is rounded otherwise: docs/architecture.md says how far.
    assert [p.p_first for p in preferences()] == pytest.approx(expected, abs=1e-5)
    assert manifest()["judge"]["jury"].keys() == {"lists", "quick"}


def test_what_a_juror_said_before_another_one_failed_is_kept() -> None:
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{}")  # no model, as only its loader can tell
    with pytest.raises(RlaifError, match="broken"):
        label(QUICK, "{name: broken, model: ./broken}")
    assert "12 verdicts (4 new)" in label(QUICK, MARKS)


def test_each_model_is_in_memory_by_itself() -> None:
    label(QUICK)
    config = load_config(
        None, ["out=r", "jury=[{name: a, dtype: float32}, {name: b}]", "policy.dtype=bfloat16"]
    )
    with RunStore("r") as store, Run(config, store, Silent()) as at_work:
        judges = judges_of(at_work)
        table = store.table("verdicts")
        judges.before(at_work.pairs, len(store.table("pairs")), table, "label")
        assert not at_work._engines
        assert judges.jurors[0].done.new_rows > 0


def test_labels_json_tells_how_the_jurors_agree() -> None:
    label(MARKS)
    marks = labels_of("r")
    assert "jury" in json.loads(Path("r/evaluation/labels.json").read_text())
    label(LISTS)
    lists = labels_of("r")
    label(QUICK)
    quick = labels_of("r")
    output = label(QUICK, MARKS, LISTS, more=("chunk=2",))
    rows = json.loads(Path("r/evaluation/labels.json").read_text())["jury"]["agreement"]
    alone = {"lists": lists, "marks": marks, "quick": quick}
    assert [tuple(row["jurors"]) for row in rows] == list(combinations(alone, 2))
    for row in rows:
        one, other = (np.array(alone[name]) for name in row["jurors"])
        leaning = (one != 0.5) & (other != 0.5)
        assert (row["questions"], row["same_side"]["n"]) == (4, leaning.sum())
        same = (one > 0.5) == (other > 0.5)
        assert row["same_side"]["value"] == pytest.approx(same[leaning].mean())
    assert "least agreement of jurors" in output
    run("label", "--out", "r", "--set", "jury=[]")
    assert "jury" not in json.loads(Path("r/evaluation/labels.json").read_text())


@pytest.mark.parametrize("last", [QUICK, LISTS])
def test_an_audit_takes_only_the_verdicts_of_the_present_judges(last: str) -> None:
    label(LISTS if last == QUICK else QUICK)
    label(last)
    (name,) = manifest()["judge"]["jury"]
    cube = StoredRun(Path("r")).cube
    assert cube.principles == (f"a · {name}",)
    assert cube.debiased[:, 0].tolist() == pytest.approx(labels_of("r"))


def test_audit_and_report_show_each_principle_once_a_juror() -> None:
    jurors = {"quick": QUICK, "marks": MARKS, "lists": LISTS}
    alone = {}
    for name, juror in jurors.items():
        label(juror)
        alone[name] = labels_of("r")
    assert "20 verdicts (0 new)" in label(*jurors.values(), more=("preferences.quorum=3",))
    cube = StoredRun(Path("r")).cube
    assert cube.principles == ("a · lists", "a · marks", "a · quick")
    for c, name in enumerate(sorted(jurors)):
        assert cube.debiased[:, c].tolist() == pytest.approx(alone[name])
    assert int(cube.asked.sum()) == 4 * (2 + 1 + 2)
    assert "a · marks" in run("eval", "audit", "--out", "r")
    run("report", "r")
    page = Path("r/report.html").read_text()
    assert "Juror marks" in page
    assert "a · lists" in page
    assert json.loads(Path("r/summary.json").read_text())


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["jury=[{name: a}, {name: a, method: cot}]"], "two jurors are called 'a'"),
        (["jury=[{name: a}, {name: b, weight: 2}]"], "'a' and 'b' are the same judge"),
        (["jury=[{name: a}]", "preferences.quorum=2"], "never be met: the jury has 1 jurors"),
        (["preferences.quorum=2"], "never be met: there is one judge and no jury"),
        (["jury=[{name: a, methd: cot}]"], "unknown key 'methd'. Did you mean 'method'"),
        (["jury=[{name: a, weight: 0}]"], "greater than 0"),
        (["jury=[{method: cot}]"], "'jury.0.name' is missing"),
        (["jury=[{name: a, principles: [x]}]"], "unknown key 'principles'"),
    ],
)
def test_mistakes_in_a_jury_are_named(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, given)


def test_jurors_that_are_one_model_asked_in_one_way_are_refused() -> None:
    """A copied folder, or settings that change no verdict."""
    copy = shutil.copytree(TINY_WEIGHTS, "copy")
    shutil.copyfile("copy/config.json", "copy/notes.txt")
    for other in (f"{{name: other, model: {copy}}}", "{name: other, vllm: {enforce_eager: true}}"):
        with pytest.raises(ConfigError, match="'quick' and 'other' are the same model, asked in"):
            label(QUICK, other)
    assert RunStore("r", read_only=True).table("preferences").read() == []


def test_numbers_of_another_precision_are_another_juror_and_asked_anew() -> None:
    fine, rough = "{name: fine, dtype: float32}", "{name: rough, dtype: bfloat16}"
    assert "16 verdicts (16 new)" in label(fine, rough)
    alone = {}
    for dtype in ("float32", "bfloat16", "auto"):
        run(
            "label",
            "--pairs",
            "pairs.jsonl",
            "--constitution",
            "mine.yaml",
            "--out",
            "one",
            "--set",
            f"judge.dtype={dtype}",
            "--set",
            "preferences.min_margin=0",
        )
        alone[dtype] = labels_of("one")
    assert alone["float32"] == alone["auto"] != alone["bfloat16"]
    both = np.array([alone["float32"], alone["bfloat16"]])
    assert labels_of("r") == pytest.approx(both.mean(0))


def test_a_clamp_is_refused_where_no_juror_could_carry_a_label_over_the_margins() -> None:
    margin, slow = "preferences.min_margin=0.2", "{name: slow, method: cot}"
    with pytest.raises(ConfigError, match=r"juror slow: rationale\.clamp=0\.4 keeps"):
        load_config(None, [margin, f"jury=[{slow}]"])
    assert load_config(None, [margin, f"jury=[{slow}, {{name: quick}}]"])
    assert load_config(None, [margin, f"jury=[{slow}]", "preferences.jury=majority"])
    with pytest.raises(ConfigError, match="juror slow"):
        load_config(None, [margin, f"jury=[{slow}, {{name: quick}}]", "preferences.jury=minimum"])


def test_options_of_one_judge_are_refused_beside_a_jury() -> None:
    label(QUICK)
    with pytest.raises(ConfigError, match=r"--set jury=\[\]"):
        run("label", "--out", "r", "--method", "cot")
    with pytest.raises(ConfigError, match="this run has a jury"):
        run("eval", "attacks", "--out", "r")
