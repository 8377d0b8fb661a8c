"""How the two orders of a question are made one: everywhere by the same rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError
from rlaif.evaluation.attacks import Trial, clear_questions, report
from rlaif.evaluation.jury import JuryAgreement
from rlaif.evaluation.labels import Cube
from rlaif.judges.ensembles import ORDER_RULES, OrderRule, over_orders
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Prompt, Verdict
from rlaif.report.build import render
from rlaif.report.data import Run
from rlaif.store import RunStore
from rlaif.tiny import prompts

PAIR = Pair(Prompt.user("q"), "a", "b")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def verdicts_of(*columns: tuple[float | None, float | None], judge: str = "j") -> list[Verdict]:
    """A principle's verdicts in both orders, one principle a column."""
    return [
        Verdict(
            f"{judge}{i}{order}",
            PAIR.id,
            f"x{i}",
            order,
            judge,
            p,
            reason="low_mass" if p is None else None,
        )
        for i, both in enumerate(columns)
        for order, p in zip(ORDERS, both, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ((0.8, 0.5), "mean", 0.65),
        ((0.8, 0.5), "mean_logits", 2 / 3),  # odds 4 and 1: √4 = 2
        ((0.9, 0.5), "mean_logits", 3 / 4),  # odds 9 and 1
        ((0.9, 0.1), "mean_logits", 0.5),
        ((1.0, 0.0), "mean_logits", 0.5),  # sure against sure
        ((1.0, 1.0), "mean_logits", 1.0),
        ((0.0, 0.5), "mean_logits", 1e-6),  # 10⁻¹² to 1, and 1
        ((0.3,), "mean_logits", 0.3),
        ((0.0,), "mean_logits", 0.0),
    ],
)
def test_hand_worked(values: tuple[float, ...], rule: OrderRule, expected: float) -> None:
    assert over_orders(values, rule) == pytest.approx(expected, rel=1e-6, abs=1e-11)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'mean_logit' over orders\. Did you mean 'mean_logits'"):
        over_orders([0.5, 0.5], "mean_logit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'orders': Input should be 'mean'"):
        aggregate([PAIR], verdicts_of((0.5, 0.5)), PreferenceSettings(orders="median"))  # type: ignore[arg-type]


@given(st.floats(-13, 13), st.floats(-13, 13))
def test_a_liking_for_a_slot_that_adds_to_the_log_odds_cancels(a: float, b: float) -> None:
    found = over_orders([sigmoid(a + b), sigmoid(a - b)], "mean_logits")
    assert found == pytest.approx(sigmoid(a), rel=1e-3, abs=1e-4)
    if abs(a) + abs(b) < 10:
        assert found == pytest.approx(sigmoid(a), rel=1e-9)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(ORDER_RULES))
def test_a_pair_and_its_mirror_sum_to_one_and_no_rule_makes_nan(
    p: float, q: float, rule: OrderRule
) -> None:
    found, turned = over_orders([p, q], rule), over_orders([1 - p, 1 - q], rule)
    assert 0 <= found <= 1
    assert found + turned == pytest.approx(1, abs=1e-4)
    assert over_orders([q, p], rule) == pytest.approx(found, abs=1e-15)


@given(st.floats(1e-9, 1 - 1e-9), st.floats(1e-9, 1 - 1e-9))
def test_both_rules_lean_to_the_same_side(p: float, q: float) -> None:
    """pq > (1 − p)(1 − q) and p + q > 1 are one and the same."""
    if abs(p + q - 1) > 1e-12:
        assert (over_orders([p, q]) > 0.5) == (over_orders([p, q], "mean_logits") > 0.5)


probabilities = st.one_of(st.none(), st.floats(0, 1))


@given(
    st.lists(st.tuples(probabilities, probabilities), min_size=1, max_size=4),
    st.sampled_from(ORDER_RULES),
)
def test_the_report_and_the_audit_make_orders_one_as_the_labels_do(
    columns: list[tuple[float | None, float | None]], rule: OrderRule
) -> None:
    (label,) = aggregate([PAIR], verdicts_of(*columns), PreferenceSettings(orders=rule))
    p = np.array([[[np.nan if v is None else v for v in both] for both in columns]])
    reason = np.where(np.isnan(p), "low_mass", "judged").astype(object)
    names = tuple(f"x{i}" for i in range(len(columns)))
    cube = Cube(names, p, np.ones_like(p), reason, rule)
    known = np.isfinite(cube.debiased[0])
    assert tuple(np.array(names)[known]) == label.principles
    assert cube.debiased[0][known].tolist() == list(label.p_principles)


def test_orders_that_disagree_still_say_half_under_sign_agreement() -> None:
    kind: dict[str, Any] = {"aggregate": "sign_agreement", "orders": "mean_logits"}
    (row,) = aggregate([PAIR], verdicts_of((0.9, 0.4)), PreferenceSettings(**kind))
    assert row.p_first == 0.5
    (row,) = aggregate([PAIR], verdicts_of((0.8, 0.5)), PreferenceSettings(**kind))
    assert row.p_first == pytest.approx(2 / 3)


def test_jurors_and_attacks_follow_the_rule() -> None:
    """(0.8, 0.5): mean 0.65, log-odds 0.667; a margin between the two tells them apart."""
    said = [*verdicts_of((0.8, 0.5)), *verdicts_of((0.9, 0.9), judge="k")]
    orders = {"j": ORDERS, "k": ORDERS}
    for rule, leaning in (("mean", 0), ("mean_logits", 1)):
        counts = JuryAgreement(orders, rule=rule, margin=0.16)  # type: ignore[arg-type]
        counts.add([PAIR], said)
        (row,) = counts.agreement()
        assert (row["same_side"] or {"n": 0})["n"] == leaning
    from rlaif.constitution import Principle

    asked = [Principle(id="x0", compare="Which is better?")]
    found = [
        clear_questions([PAIR], asked, said[:2], ORDERS, rule=rule, margin=0.16)
        for rule in ORDER_RULES
    ]
    assert list(map(len, found)) == [0, 1]
    (question,) = found[1]
    assert question.p_first == pytest.approx(2 / 3)
    trial = Trial(question, "padding", ())
    after = report([(trial, said[:2])], "mean_logits")["padding"]
    assert after["shift"] == pytest.approx(0)  # the same answers again move nothing
    assert report([(trial, said[:2])])["padding"]["shift"] != pytest.approx(0, abs=1e-3)


def test_the_config_takes_it_no_verdict_is_asked_again_and_the_report_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    rows = [
        f'{{"chosen": "\\n\\nHuman: {p.text}\\n\\nAssistant: I won\'t help.",'
        f' "rejected": "\\n\\nHuman: {p.text}\\n\\nAssistant: Sure."}}'
        for p in prompts("test", kinds=["harm"], limit=4)
    ]
    Path("pairs.jsonl").write_text("\n".join(rows))
    margin = ("--set", "preferences.min_margin=0", "--set", "judge.min_mass=0")
    run("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "runs/a", *margin)
    other = ("--set", "preferences.orders=mean_logits", *margin)
    said = " ".join(run("eval", "audit", "--out", "runs/a", *other).split())
    assert "(orders none → mean_logits)" in said
    labels = {}
    for rule in ("mean", "mean_logits"):
        said = run("label", "--out", "runs/a", "--set", f"preferences.orders={rule}", *margin)
        assert "(0 new)" in said
        with RunStore.open_readonly(Path("runs/a")) as store:
            stored = store.table("preferences").read()
            verdicts = store.table("verdicts").read()
        labels[rule] = {row.pair.id: row for row in stored}
        for row in stored:
            assert row.p_principles == tuple(
                over_orders(
                    [
                        v.p_first
                        for o in ORDERS
                        for v in verdicts  # type: ignore[misc]
                        if (v.pair_id, v.principle, v.order) == (row.pair.id, name, o)
                    ],
                    rule,
                )
                for name in row.principles
            )
        stored_run = Run(Path("runs/a"))
        assert stored_run.cube.rule == rule
        assert ("Orders of a question made one by" in render(stored_run)) == (rule != "mean")
        i = stored_run.store.table("pairs").read()[0].id
        assert stored_run.cube.debiased[0].tolist() == list(labels[rule][i].p_principles)
    assert labels["mean"] != labels["mean_logits"]
