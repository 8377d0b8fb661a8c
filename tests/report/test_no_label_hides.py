"""Labels that prefer one of two responses which the truth does not separate are counted and told
wherever an accuracy is: they are noise to train on, and no accuracy counts them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import PRINCIPLES, judge, labelled_pairs, tiny_pairs, write_labels

from rlaif.evaluation.audit import audit
from rlaif.records import Pair, Preference
from rlaif.report.audit import table
from rlaif.report.build import render
from rlaif.report.data import Run
from rlaif.report.summary import build_summary
from rlaif.stages.audit import stored_labels
from rlaif.statistics.intervals import share
from rlaif.store import RunStore, write_json
from rlaif.tiny import gold_preference


def page(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", "", render(Run(path)))).replace("\u202f", " ")


def preferred(path: Path) -> list[Preference]:
    with RunStore(path, read_only=True) as store:
        return [p for p in store.table("preferences").read() if p.status == "preferred"]


def audited(path: Path) -> tuple[dict, str]:  # type: ignore[type-arg]
    """The audit and its table, stored in the run as `eval audit` does."""
    run = Run(path)
    found = {**audit(stored_labels(run)), "known_from": run.known_from}
    write_json(path / "evaluation/audit.json", found)
    return json.loads(json.dumps(found)), table(found).replace("\u202f", " ")


def is_even(pair: Pair) -> bool:
    prompt = pair.prompt.messages[0].content
    return gold_preference(prompt, pair.first, pair.second, "harmless") is None


def test_labels_of_pairs_that_the_gold_checker_does_not_separate(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "run"
    pairs = tiny_pairs(120, rng)
    away = [replace(p, prompt=replace(p.prompt, source="mine")) for p in labelled_pairs(9, rng)]
    pairs += [replace(p, label=None) for p in away]  # of these no truth is known
    write_labels(path, pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng), target="harmless")
    rows = [p.pair for p in preferred(path) if p.pair.prompt.source.startswith("tiny:")]
    even = [float(is_even(pair)) for pair in rows]
    expected = share(even, [pair.prompt.id for pair in rows])
    assert 5 < sum(even) < len(even)
    known, printed = audited(path)
    told = known["known"]["unseparated"]
    assert told == {**expected.as_dict(), "count": int(sum(even))}
    assert known["known"]["accuracy"]["n"] == len(even) - sum(even)
    line = next(x for x in printed.splitlines() if "known to be equal" in x)
    assert f"equal: {told['count']} " in line
    assert line.endswith(f" {len(even)}")
    assert f"{100 * expected.value:.1f} %" in line
    assert build_summary(path)["labels"]["unseparated"] == pytest.approx(expected.as_dict())
    shown = page(path)
    assert f"{int(sum(even))} of {len(even)} (" in shown  # the tile
    assert f"{int(sum(even))} of the {len(even)} preferred pairs" in shown  # the table


def test_ties_of_people_are_the_same_kind(tmp_path: Path) -> None:
    rng, path = random.Random(2), tmp_path / "run"
    pairs = [
        replace(pair, label=(1.0, 0.5, None)[i % 3])
        for i, pair in enumerate(labelled_pairs(90, rng))
    ]
    write_labels(path, pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng))
    labels = [p.pair.label for p in preferred(path) if p.pair.label is not None]
    told = audited(path)[0]["known"]["unseparated"]
    assert (told["count"], told["n"]) == (labels.count(0.5), len(labels))
    assert f"{labels.count(0.5)} of {len(labels)} (" in page(path)


def test_labels_of_nothing_but_equal_pairs_are_told_too(tmp_path: Path) -> None:
    rng, path = random.Random(3), tmp_path / "run"
    pairs = [replace(pair, label=0.5) for pair in labelled_pairs(40, rng)]
    write_labels(path, pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng))
    found, printed = audited(path)
    n = len(preferred(path))
    assert found["known"]["accuracy"] is found["known"]["accuracy_all"] is None
    assert (found["known"]["unseparated"]["count"], found["known"]["unseparated"]["n"]) == (n, n)
    assert f"known to be equal: {n}" in printed
    assert "100 %" in page(path)


def test_the_n_beside_an_interval_is_its_own(tmp_path: Path) -> None:
    """The labels' table told how many pairs had a truth; the interval is of the preferred ones."""
    rng, path = random.Random(4), tmp_path / "run"
    pairs = tiny_pairs(120, rng)
    write_labels(
        path, pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng), target="harmless", min_margin=0.4
    )
    n = audited(path)[0]["known"]["accuracy"]["n"]
    assert n < sum(not is_even(pair) for pair in pairs)  # some are ties of the judge
    assert f"checker, {n} preferred pairs differ in truth" in page(path)
