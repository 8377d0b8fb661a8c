"""The sums that the page searches: against the report's, which are made another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif.errors import ConfigError
from rlaif.judges.base import verdict_key
from rlaif.records import Pair, Prompt, Verdict
from rlaif.report.data import Run as StoredRun
from rlaif.store import RunStore
from rlaif.view import filters
from rlaif.view.filters import Filter
from rlaif.view.index import Index, connect, key_sql, wording
from rlaif.view.pages import pair_page

Made = Callable[..., Path]


def found(index: Index, **wanted: str) -> list[int]:
    """The numbers of the pairs that a filter finds, in the page's order."""
    total, rows = filters.page(index.made, Filter.of(wanted), 1)
    assert total == len(rows)
    return [row["n"] - 1 for row in rows]


def test_sums_are_the_reports(labelled: Path) -> None:
    index, stored = Index(labelled), StoredRun(labelled)
    made = index.made
    rows = made.run("SELECT * FROM facts ORDER BY n")
    assert [r["id"] for r in rows] == [p.id for p in stored.store.table("pairs").read()]
    assert made.principles == stored.principles
    assert [r["status"] for r in rows] == stored.statuses
    np.testing.assert_allclose(
        [np.nan if r["p"] is None else r["p"] for r in rows], stored.preference, rtol=1e-6
    )
    opinions = np.full(stored.cube.p.shape, np.nan)
    for row in made.run("SELECT n, c, p1, p2 FROM opinion"):
        opinions[row["n"] - 1, row["c"]] = row["p1"], row["p2"]
    np.testing.assert_allclose(opinions, stored.cube.p, rtol=1e-6)


@pytest.mark.parametrize("orders", ["mean", "mean_logits"])
@pytest.mark.parametrize("aggregate", ["mean", "sign_agreement"])
def test_opinions_are_those_of_the_label_rule(made: Made, orders: Any, aggregate: Any) -> None:
    told = [
        {"kind": (0.9, 0.3), "brief": (0.99, 0.6)},
        {"kind": (0.5, 0.8), "brief": (1.0, 0.2)},
        {"kind": (0.2, 1e-9), "brief": (0.4, 0.7)},
    ]
    root = made(told, orders=orders, aggregate=aggregate)
    with RunStore(root) as store:
        rule = {"orders": orders, "aggregate": aggregate}
        store.update_manifest("made", {"preferences": {"rule": rule}})
        labels = store.table("preferences").read()
    index = Index(root)
    rows = index.made.run("SELECT p FROM opinion ORDER BY n, c")
    expected = [p for label in labels for p in label.p_principles]
    np.testing.assert_allclose([row["p"] for row in rows], expected, rtol=1e-6)
    shown = [q.p for label in labels for q in pair_page(index, label.pair)["questions"]]
    np.testing.assert_allclose(shown, expected)
    if (orders, aggregate) == ("mean_logits", "mean"):
        # log-odds of 0.9 and 0.3: ln 9 and ln 3/7, so σ of their mean is √(27/7)/(1 + √(27/7))
        assert shown[0] == pytest.approx((27 / 7) ** 0.5 / (1 + (27 / 7) ** 0.5))


def test_a_key_in_sql_is_a_key_in_python() -> None:
    odd = 'Is it "good", isn\'t it? – ümlaut \\ backslash\nline\ttab'
    with connect() as db:
        sql = f'SELECT {key_sql("f00")} FROM (SELECT ? AS pair_id, ? AS "order", ? AS wording)'
        told = wording({"id": "a.b-c", "compare": odd})
        [(key,)] = db.execute(sql, ["~0123", "second_first", told]).fetchall()
    assert key == verdict_key("f00", "~0123", "second_first", "a.b-c", odd)


def test_verdicts_of_a_former_wording_or_judge_do_not_count(made: Made) -> None:
    root = made([{"kind": (0.9, 0.8)}, {"kind": (0.2, 0.1)}])
    with RunStore(root) as store:
        rows = store.table("verdicts").read()
        old = [
            replace(v, key=verdict_key("judge", v.pair_id, v.order, "kind", "Before?"), p_first=0.4)
            for v in rows
        ]
        other = [
            replace(v, key=verdict_key("other", v.pair_id, v.order, "kind", "Is it kind?"))
            for v in rows
        ]
        store.table("verdicts").append([*old, *other])
    index = Index(root)
    rows = index.made.run("SELECT p1, p2 FROM opinion ORDER BY n")
    np.testing.assert_allclose([list(r.values()) for r in rows], [[0.9, 0.8], [0.2, 0.1]])
    said = index.verdicts(index.made.run("SELECT id FROM facts WHERE n = 1")[0]["id"])
    assert [v.p_first for v, juror in said if juror is not None] == [0.9, 0.8]
    assert len(said) == 6


def test_jurors_are_told_apart_by_their_keys(made: Made) -> None:
    root = made([{"kind": (0.9, 0.8)}], fingerprint="one")
    with RunStore(root) as store:
        [pair] = store.table("pairs").read()
        more = [
            Verdict(
                verdict_key("two", pair.id, o, "kind", "Is it kind?"), pair.id, "kind", o, "m", p
            )
            for o, p in (("first_second", 0.2), ("second_first", 0.3))
        ]
        store.table("verdicts").append(more)
        store.update_manifest(
            "judge", {"jury": {n: {"fingerprint": n, "method": "pairwise"} for n in ("one", "two")}}
        )
    index = Index(root)
    rows = index.made.run("SELECT juror, p FROM opinion ORDER BY juror")
    assert [(r["juror"], pytest.approx(r["p"], abs=1e-6)) for r in rows] == [(0, 0.85), (1, 0.25)]
    assert found(index, jurors="1") == [0]
    assert [juror for _, juror in index.verdicts(pair.id)] == ["one", "one", "two", "two"]


TOLD: list[dict[str, Any]] = [
    {"kind": (0.9, 0.9), "short": (0.8, 0.7)},  # 0: decided
    {"kind": (0.9, 0.2), "short": (0.5, 0.5)},  # 1: orders disagree
    {"kind": (0.9, 0.9), "short": (0.1, 0.2)},  # 2: principles disagree
    {"kind": (None, 0.9), "short": (0.1, 0.1)},  # 3: abstained
    {"kind": (0.52, 0.49), "short": (0.5, 0.5)},  # 4: nothing to say
]


@pytest.mark.parametrize(
    "words", [".*[a-z]+(", "ÄRGER\\E", "\\Q^$", "straße\nδρόμος", "a \"b\" 'c'"]
)
def test_words_are_found_as_they_are_written_in_either_case(tmp_path: Path, words: str) -> None:
    texts = [words, words.swapcase() if words.swapcase().lower() == words.lower() else words]
    with RunStore(tmp_path) as store:
        prompt = Prompt.user("which?")
        made = [Pair(prompt, f"before {text} after {i}", "no") for i, text in enumerate(texts)]
        store.table("pairs").replace([*made, Pair(prompt, "yes", "nothing of it")])
    assert found(Index(tmp_path), text=words) == [0, 1]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"orders": "1"}, [1]),
        ({"principles": "1"}, [2]),
        ({"abstained": "1"}, [3]),
        ({"principle": "short", "side": "second"}, [2, 3]),
        ({"principle": "kind", "side": "abstained"}, [3]),
        ({"principle": "kind", "low": "0.3"}, [0, 2]),
        ({"principle": "kind", "high": "0,06"}, [1, 4]),
        ({"side": "first"}, [0, 1, 2, 4]),
        ({"side": "second"}, [3]),
        ({"status": "tie"}, [1, 2, 4]),
        ({"low": "0.3"}, [0, 3]),
        ({"text": "NUMBER 3"}, [3]),
        ({"text": "question 2"}, [2]),
        ({"text": "100%_"}, []),
        ({"source": "made:4"}, [4]),
        ({"shortest": "15"}, [0, 1, 2, 3, 4]),
        ({"shortest": "16"}, []),
        ({"known": "none"}, [0, 1, 2, 3, 4]),
        ({"known": "wrong"}, []),
        ({"sort": "orders"}, [1, 4, 0, 2, 3]),
        ({"sort": "sure"}, [3, 0, 1, 2, 4]),
        ({"text": "'); DROP TABLE facts; --"}, []),
    ],
    ids=str,
)
def test_filters(made: Made, wanted: dict[str, str], expected: list[int]) -> None:
    assert found(Index(made(TOLD)), **wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"low": "much"}, "margin from: expected a number, got 'much'"),
        ({"shortest": "nan"}, "length: expected a number"),
        ({"principle": "kindness"}, "no principle 'kindness' in this run: kind, short"),
        ({"sort": "1; DROP"}, "sort must be one of run"),
    ],
    ids=str,
)
def test_what_cannot_be_filtered_is_told(made: Made, wanted: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        found(Index(made(TOLD)), **wanted)


def test_own_labels(made: Made) -> None:
    root = made([{"kind": (0.9, 0.9)}, {"kind": (0.1, 0.1)}])
    with RunStore(root) as store:
        rows = store.table("pairs").read()
        store.table("pairs").replace([replace(pair, label=1.0) for pair in rows])
    assert found(Index(root), known="right") == [0]
    assert found(Index(root), known="wrong") == [1]


def test_new_rows_are_seen_without_a_restart(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.view.index.REST", 0.0)
    index = Index(made([{"kind": (0.9, 0.9)}]))
    assert index.made.pairs == 1
    before = index.made
    assert index.made is before
    with RunStore(index.root) as store:
        store.table("pairs").append([Pair(Prompt.user("another"), "a", "b")])
    assert index.made.pairs == 2
    assert found(index, status="unlabelled") == [1]


def test_a_run_that_was_never_labelled(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        store.table("pairs").append([Pair(Prompt.user("a question"), "yes", "no")])
    index = Index(tmp_path / "run")
    assert found(index) == [0]
    assert found(index, status="unlabelled") == [0]
    assert index.made.principles == ()
