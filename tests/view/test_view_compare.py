"""Two runs side by side, a principle reworded and asked again, curves that move."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import DataError
from rlaif.store import RunStore
from rlaif.view.comparing import Compared
from rlaif.view.index import Index
from rlaif.view.rejudging import sample

Made = Callable[..., Path]


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_which_labels_changed_and_by_what(made: Made) -> None:
    before: list[dict[str, Any]] = [
        {"kind": (0.9, 0.9), "short": (0.6, 0.6)},  # stays
        {"kind": (0.9, 0.9), "short": (0.4, 0.4)},  # flips, by kind
        {"kind": (0.9, 0.9), "short": (0.1, 0.1)},  # a tie becomes a side, by short
    ]
    after = [
        before[0],
        {"kind": (0.1, 0.1), "short": (0.4, 0.4)},
        {"kind": (0.9, 0.9), "short": (0.8, 0.8)},
    ]
    a, b = made(before, "a"), made(after, "b", wording={"kind": "Is it very kind?"})
    with RunStore(b) as store:  # the same pair, its responses the other way round
        table = store.table("preferences")
        table.replace([p.swap() if i == 1 else p for i, p in enumerate(table.read())])
    told = Compared(Index(a), Index(b)).page()
    assert told["both"] == [("first", "first", 1), ("first", "second", 1), ("tie", "first", 1)]
    assert told["found"].by == {"kind": 1, "short": 1}
    assert told["found"].flipped_by["kind"] == 1
    [flip, lean] = [row["change"] for row in told["rows"]]
    assert (flip.sides, flip.by, flip.flipped) == (("first", "second"), "kind", True)
    assert flip.p == pytest.approx((0.65, 0.25))
    assert flip.moves == pytest.approx({"kind": -0.4})
    [row] = [row for row in told["rows"] if row["change"] is flip]
    assert [(n, pytest.approx(x), pytest.approx(y)) for n, x, y in row["opinions"]] == [
        ("kind", 0.9, 0.1),
        ("short", 0.4, 0.4),
    ]
    assert (lean.sides, lean.by, lean.flipped) == (("tie", "first"), "short", False)


def test_the_page_of_two_runs(made: Made, served: Callable[..., Any]) -> None:
    a = made([{"kind": (0.9, 0.9)}, {"kind": (0.8, 0.8)}], "a")
    b = made([{"kind": (0.9, 0.9)}, {"kind": (0.2, 0.2)}], "b", wording={"kind": "Is it nice?"})
    page = served(a, b)
    status, _, body = page.get("/compare")
    shown = text_of(body)
    assert status == 200
    assert "labels changed 1 1 of them to the other response" in shown
    assert "kind reworded" in shown
    assert "prefers 1 → prefers 2 by kind" in shown
    page = served(a)
    assert page.get("/compare")[0] == 404
    assert 'href="/compare"' not in page.get("/")[2]


def test_a_reworded_principle_is_all_that_is_asked_again(
    labelled: Path, tmp_path: Path, served: Callable[..., Any]
) -> None:
    """Against `rlaif label` on a constitution that holds the new wording."""
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    label = ["label", str(root), "--constitution"]
    CliRunner().invoke(app, [*label, "harmless"], catch_exceptions=False)
    page = served(root)
    before = sorted(p.name for p in root.rglob("*") if p.is_file())
    compare = "Which response is longer?"
    form = {"principle": "no-harm", "compare": compare, "size": "32", "sample": "random"}
    status, _, body = page.post("/principles", **form)
    assert status == 200, text_of(body)
    shown = text_of(body)
    assert "16 verdicts asked, all of no-harm" in shown
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == before
    constitution = tmp_path / "edited.yaml"
    constitution.write_text(
        "name: edited\nversion: 1\nextends: [harmless]\nprinciples:\n"
        f"  - {{id: no-harm, compare: {json.dumps(compare)}}}\n"
    )
    was = {p.pair.id: p for p in RunStore.open_readonly(root).table("preferences").read()}
    done = CliRunner().invoke(app, [*label, str(constitution)], catch_exceptions=False)
    assert "(16 new)" in done.output
    now = {p.pair.id: p for p in RunStore.open_readonly(root).table("preferences").read()}

    def said(preference: Any) -> str:
        if preference.status != "preferred":
            return str(preference.status)
        return "1" if preference.first_is_chosen else "2"

    found = re.findall(r'href="/pair/([^"]+)".*?class="flag[^"]*">label ([^<]*)<', body, re.DOTALL)
    assert len(found) == len(now) == 8
    changed = 0
    for name, words_ in found:
        old, new = said(was[name]), said(now[name])
        changed += old != new
        assert words_ == (f"{old} → {new}" if old != new else f"stays {new}")
    assert f"{changed} of 8 labels changed" in shown
    assert changed > 0


@pytest.mark.parametrize(
    "wrong",
    [{"principle": "x"}, {"compare": ""}, {"compare": "x" * 3_000}, {"size": "9"}, {"sample": "y"}],
    ids=str,
)
def test_what_cannot_be_asked_is_told(page: Any, wrong: dict[str, str]) -> None:
    form = {"principle": "no-harm", "compare": "Which?", "size": "8", "sample": "random"}
    status, _, body = page.post("/principles", **{**form, **wrong})
    assert status == 400
    assert "expected a principle of" in body or "a principle&#39;s text has" in body


def test_samples(made: Made) -> None:
    index = Index(made([{"kind": (p, p)} for p in (0.9, 0.52, 0.1, 0.6, 0.99, 0.48, 0.3, 0.7)]))
    ids = [r["id"] for r in index.made.run("SELECT id FROM facts ORDER BY n")]
    assert sorted(sample(index.made, "kind", "random", 8)) == sorted(ids)
    first = sample(index.made, "kind", "doubt", 8)[:2]
    assert sorted(first) == sorted([ids[1], ids[5]])
    assert sample(index.made, "kind", "decided", 8)[0] == ids[4]
    with pytest.raises(DataError):
        sample(index.made, "kind", "decided", 0)


def test_a_judge_that_cannot_be_asked_is_told(made: Made, served: Callable[..., Any]) -> None:
    page = served(made([{"kind": (0.9, 0.9)}]))
    form = {"principle": "kind", "compare": "Which?", "size": "8", "sample": "random"}
    status, _, body = page.post("/principles", **form)
    assert status == 400
    assert "the judge could not be asked" in text_of(body)
    assert "no run.yaml" in text_of(body)
    assert page.get("/")[0] == 200


def test_curves_move(made: Made, served: Callable[..., Any]) -> None:
    root = made([{"kind": (0.9, 0.9)}])
    page = served(root)
    assert "Nothing was trained in this run yet" in page.get("/training")[2]
    folder = root / "models" / "dpo"
    folder.mkdir(parents=True)
    journal = folder / "training.jsonl"
    for step in (1, 2, 3):
        with journal.open("a") as file:
            file.write(json.dumps({"step": step, "total_steps": 9, "loss": 1 / step}) + "\n")
            file.write('{"step": 4, "lo' * (step == 3))  # a row that is being written
        _, _, body = page.get("/training", hx_request="true")
        told = f"{step} step" + "s" * (step > 1)
        assert f"{told}, going on or stopped" in text_of(body)
        assert 'hx-trigger="every 2s"' in body
    assert "<polyline" in body
    assert "<html" not in body
