"""`summary.json` against numbers worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import PRINCIPLES, judge, key_of, tiny_pairs, write_labels

from rlaif.errors import DataError
from rlaif.evaluation.labels import principle_rows, reliability_points, telling_pairs
from rlaif.records import ORDERS, Order, Pair, Prompt, Verdict
from rlaif.report.data import Run
from rlaif.report.summary import build_summary
from rlaif.store import RunStore

SHAPE = {
    "target_trait": None,
    "labels": dict.fromkeys(
        [
            "pairs",
            "verdicts",
            "abstained",
            "gold_agreement",
            "swap_consistency",
            "label_mass",
            "ece",
            "temperature",
        ]
    )
    | {"unseparated": dict.fromkeys(["value", "low", "high", "n"])},
    "reward_model": {"accuracy": None},
    "policies": {
        "base": {"traits": {}, "legal": None, "and_legal": {}},
        "dpo": {
            "traits": {},
            "legal": None,
            "and_legal": {},
            "kl": None,
            "win_rate": dict.fromkeys(
                [
                    "value",
                    "low",
                    "high",
                    "n",
                    "wins",
                    "losses",
                    "ties",
                    "identical",
                    "abstained",
                    "decided",
                    "at_stake",
                ]
            ),
        },
    },
    "seconds": dict.fromkeys(["sample", "label", "reward", "dpo", "evaluate", "total"]),
    "out_of_date": None,
    "state": None,
}
ONE = PRINCIPLES[0] | {"tags": []}


def shape(value: object) -> object:
    if isinstance(value, dict):
        whole = ("traits", "and_legal")
        return {k: k if k in whole else shape(v) for k, v in value.items()}
    return None


def pair(i: int, label: float | None = None) -> Pair:
    return Pair(Prompt.user(f"question {i}"), f"answer a{i}", f"answer b{i}", label)


def verdict(
    pair: Pair, order: Order, p: float | None, mass: float | None = 1.0, principle: dict = ONE
) -> Verdict:
    reason = "low_mass" if p is None else None
    return Verdict(
        key=key_of(pair, principle, order),
        pair_id=pair.id,
        principle=principle["id"],
        order=order,
        judge="tiny",
        p_first=p,
        mass=mass,
        reason=reason,
    )


def by_hand(path: Path) -> Path:
    """Four labelled pairs under one principle.

    pair 0: 0.9, 0.7 → 0.8, label 1: right. Pair 1: 0.6, 0.2 → 0.4, label 1: wrong.
    Pair 2: 0.2, 0.0 → 0.1, label 0: right. Pair 3: one order abstained: no label.
    """
    pairs = [pair(0, 1.0), pair(1, 1.0), pair(2, 0.0), pair(3, 1.0)]
    values = [(0.9, 0.7), (0.6, 0.2), (0.2, 0.0), (0.8, None)]
    verdicts = [
        verdict(one, order, p, mass)
        for one, both in zip(pairs, values, strict=True)
        for order, p, mass in zip(ORDERS, both, (1.0, 0.9), strict=True)
    ]
    write_labels(path, pairs, [ONE], verdicts)
    return path


def test_labels_by_hand(tmp_path: Path) -> None:
    labels = build_summary(by_hand(tmp_path / "run"))["labels"]
    assert labels["pairs"] == 4
    assert labels["verdicts"] == 8
    assert labels["abstained"] == 1
    assert labels["gold_agreement"] == pytest.approx(2 / 3)
    # Of the three questions judged in both orders, (0.6, 0.2) changes sides.
    assert labels["swap_consistency"] == pytest.approx(2 / 3)
    assert labels["label_mass"] == pytest.approx(0.95)
    # Confidences 0.8 (right), 0.6 (wrong), 0.9 (right), each in a bin of its own.
    assert labels["ece"] == pytest.approx((0.2 + 0.6 + 0.1) / 3)


def test_the_rows_of_principles_by_hand(tmp_path: Path) -> None:
    run = Run(by_hand(tmp_path / "run"))
    [row] = principle_rows(run.cube, run.preferred, [run.known], run.prompts)
    assert (row.verdicts, row.abstained) == (8, 1)
    assert row.strength == pytest.approx((0.3 + 0.1 + 0.4) / 3)
    assert row.decided == 1.0  # distances 0.3, 0.1, 0.4
    assert row.aggregate is not None
    assert row.aggregate.value == 1.0  # a single principle is the aggregate
    assert row.known is not None
    assert (row.known.value, row.known.n) == (pytest.approx(2 / 3), 3)
    # Both orders of three pairs: the first slot wins in pair 0's and pair 1's first order and in
    # the second order of pairs 1 and 2.
    assert row.says_first is not None
    assert (row.says_first.value, row.says_first.n) == (pytest.approx(4 / 6), 3)
    assert row.swap is not None
    assert row.swap.value == pytest.approx(2 / 3)
    assert row.mass == pytest.approx(0.95)


def test_reliability_is_folded_and_binned_as_the_calibration_error(tmp_path: Path) -> None:
    run = Run(by_hand(tmp_path / "run"))
    found = reliability_points(run.preferred, run.known, run.prompts)
    assert [(round(p, 9), share.value, share.n) for p, share in found] == [
        (0.6, 0.0, 1),
        (0.8, 1.0, 1),
        (0.9, 1.0, 1),
    ]


def test_telling_pairs_by_hand(tmp_path: Path) -> None:
    run = Run(by_hand(tmp_path / "run"))
    found = dict(telling_pairs(run.cube, run.preference, run.known, each=1))
    assert found["Most decided"] == [2]
    assert found["Least decided"] == [1]
    # Gaps of 0.2, 0.4, 0.2: pair 1 is shown already, pairs 0 and 2 follow; so is the opposed one.
    assert found["The orders disagree"] == [0]
    assert "Against what is known" not in found


def test_summary_has_its_shape_and_is_written(whole_run: Path) -> None:
    summary = build_summary(whole_run)
    assert shape(summary) == shape(SHAPE)
    assert json.loads((whole_run / "summary.json").read_text()) == summary
    assert summary["target_trait"] == "harmless"
    assert summary["policies"]["base"]["traits"]["harmless"] == 0.51
    assert summary["policies"]["dpo"]["traits"]["harmless"] == 0.82
    assert summary["policies"]["dpo"]["kl"] == 0.62
    rate = {k: v for k, v in summary["policies"]["dpo"]["win_rate"].items() if v is not None}
    assert rate.items() >= {"value": 0.713, "low": 0.671, "high": 0.752}.items()
    assert summary["reward_model"]["accuracy"] == 0.9375
    assert summary["seconds"]["total"] == pytest.approx(8.5 + 41.25 + 15 + 24 + 21.25)


def test_a_partial_run_has_nulls(labelled_run: Callable[..., Path]) -> None:
    summary = build_summary(labelled_run(n=20))
    assert shape(summary) == shape(SHAPE)
    assert summary["policies"] == SHAPE["policies"]
    assert summary["reward_model"] == {"accuracy": None}
    assert summary["seconds"]["label"] == summary["seconds"]["total"] == 41.25
    assert summary["labels"]["pairs"] == 20


def test_an_empty_run_directory_is_all_nulls_and_zeros(tmp_path: Path) -> None:
    summary = build_summary(tmp_path)
    assert summary.pop("out_of_date") == []
    assert isinstance(summary.pop("state"), str)
    nothing = {k: v for k, v in SHAPE.items() if k not in ("out_of_date", "state")}
    assert summary == {
        **nothing,
        "labels": {
            **SHAPE["labels"],
            "unseparated": None,
            "pairs": 0,
            "verdicts": 0,
            "abstained": 0,
        },
    }


def test_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run directory"):
        build_summary(tmp_path / "nowhere")


def test_a_damaged_file_is_named(whole_run: Path) -> None:
    (whole_run / "evaluation/policies.json").write_text('{"base": ')
    with pytest.raises(DataError, match=r"policies\.json"):
        build_summary(whole_run)


def test_values_that_are_not_finite_become_null(whole_run: Path) -> None:
    (whole_run / "evaluation/winrate.json").write_text('{"value": NaN, "low": 0.1, "high": 0.2}')
    assert build_summary(whole_run)["policies"]["dpo"]["win_rate"]["value"] is None


@pytest.mark.parametrize("current_first", [True, False])
def test_verdicts_of_a_former_wording_do_not_count(tmp_path: Path, current_first: bool) -> None:
    one = pair(0)
    current = [verdict(one, order, 0.9) for order in ORDERS]
    older = [
        replace(verdict(one, order, 0.1, 0.5, ONE | {"compare": "Formerly?"}), judge="tiny")
        for order in ORDERS
    ]
    verdicts = current + older if current_first else older + current
    write_labels(tmp_path / "run", [one], [ONE], verdicts)
    labels = build_summary(tmp_path / "run")["labels"]
    assert labels["verdicts"] == 2
    assert labels["label_mass"] == 1.0


def test_gold_is_the_embedded_worlds_truth(tmp_path: Path) -> None:
    import random

    from rlaif.tiny import gold_preference

    rng = random.Random(1)
    pairs = tiny_pairs(80, rng)
    write_labels(
        tmp_path / "run", pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng), target="harmless"
    )
    with RunStore(tmp_path / "run", read_only=True) as store:
        preferences = [p for p in store.table("preferences").read() if p.status == "preferred"]
    hits = []
    for p in preferences:
        prompt = p.pair.prompt.messages[0].content
        truth = gold_preference(prompt, p.pair.first, p.pair.second, "harmless")
        if truth is not None:
            hits.append(p.first_is_chosen == (truth == 1.0))
    found = build_summary(tmp_path / "run")["labels"]["gold_agreement"]
    assert len(hits) > 10
    assert math.isclose(found, sum(hits) / len(hits))
