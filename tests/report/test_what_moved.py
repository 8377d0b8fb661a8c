"""The report tells what training moved before anything else, and marks what two texts differ in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlaif.evaluation.cases import decisive
from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.labels import DECIDED, principle_agreement
from rlaif.report.build import build_report
from rlaif.report.data import Run
from rlaif.store import RunStore, write_json


def page(run: Path) -> str:
    return build_report(run).read_text()


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def box(html: str) -> str:
    found = re.search(r'<section id="moved".*?</section>', html, re.DOTALL)
    assert found
    return plain(found[0])


def edit(path: Path, **changes: object) -> None:
    said = json.loads(path.read_text())
    for name, value in changes.items():
        policy, _, key = name.partition("__")
        (said.setdefault(policy, {}) if key else said)[key or policy] = value
    write_json(path, said)


def test_a_fall_is_told_above_the_tiles(whole_run: Path) -> None:
    policies = whole_run / "evaluation" / "policies.json"
    said = json.loads(policies.read_text())
    said["dpo"]["traits"]["helpful"] = {"value": 0.18, "low": 0.13, "high": 0.24, "n": 209}
    write_json(policies, said)
    html = page(whole_run)
    assert html.index('id="moved"') < html.index('id="headline"') < html.index('id="policies"')
    told = box(html)
    assert "helpful fell: 44 % → 18 % (−26 points, 95 % interval" in told.replace("\u202f", " ")
    assert told.index("helpful fell") < told.index("harmless rose")
    assert "concise" in told.split("Not beyond the interval:")[1]
    assert "nothing that was measured fell" not in told


def test_nothing_fell_is_said_too(whole_run: Path) -> None:
    assert "nothing that was measured fell beyond its interval" in box(page(whole_run))


def test_shorter_answers_are_told_with_their_interval(whole_run: Path) -> None:
    told = box(page(whole_run))  # of the samples kept: "Tie a string." and "No."
    assert "answers became shorter : 3.0 → 1.0 words" in told
    assert "12 prompts" in told
    policies = whole_run / "evaluation" / "policies.json"
    counted = {"low": 21.0, "high": 22.4, "n": 400}
    edit(
        policies,
        base__words={"value": 21.7, **counted},
        dpo__words={"value": 28.8, "low": 28, "high": 29, "n": 400},
        dpo__words_change={"value": 7.1, "low": 6.2, "high": 8.0, "n": 400},
    )
    told = box(page(whole_run))
    assert "answers became longer : 21.7 → 28.8 words on average (+7.1," in told
    assert "+6.2 to +8.0; 400 prompts" in told
    edit(policies, dpo__words_change={"value": 0.1, "low": -0.2, "high": 0.4, "n": 400})
    assert "answers are about as long" in box(page(whole_run))


def test_a_principle_under_which_it_fell_is_named(whole_run: Path) -> None:
    edit(
        whole_run / "evaluation" / "winrate.json",
        by_principle={
            "no-harm": {"value": 0.8, "low": 0.75, "high": 0.85, "n": 90},
            "gentle": {"value": 0.4, "low": 0.35, "high": 0.45, "n": 90},
            "refuse-harm": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 90},
        },
    )
    told = box(page(whole_run))
    assert "worse under gentle : P(better than the base) 40.0" in told
    assert "better under no-harm" in told
    assert "refuse-harm" not in told


def test_a_run_without_training_has_no_such_box(labelled_run: Callable[..., Path]) -> None:
    assert 'id="moved"' not in page(labelled_run())


def test_the_matrix_is_counted_pair_by_pair(whole_run: Path) -> None:
    cube = Run(whole_run).cube
    found = principle_agreement(cube)
    for i in range(3):
        for j in range(3):
            a, b = cube.debiased[:, i] - 0.5, cube.debiased[:, j] - 0.5
            rows = [
                (x > 0) == (y > 0)
                for x, y in zip(a, b, strict=True)
                if np.isfinite([x, y]).all() and min(abs(x), abs(y)) >= DECIDED
            ]
            assert found[i][j] == (sum(rows) / len(rows), len(rows))
    text = plain(page(whole_run))
    share, n = found[0][1]
    assert share is not None
    assert f"{share * 100:.0f} % {n}" in text


def test_each_principle_has_its_share_of_decisions(whole_run: Path) -> None:
    preferences = RunStore.open_readonly(whole_run).table("preferences").read()
    rule = LabelRule("mean")
    counts = Counter(decisive(p, rule) for p in preferences if p.status == "preferred")
    text = plain(page(whole_run))
    for name, n in counts.items():
        assert re.search(rf"{name} [\d.]+\s%? ?\({n}\)", text), (name, n)


def test_what_two_texts_differ_in_is_marked_and_stays_text(whole_run: Path) -> None:
    samples = whole_run / "evaluation" / "samples.json"
    hostile = "Tie the <script>alert(1)</script> string to the door."
    write_json(
        samples,
        [{"prompt": "How?", "base": hostile, "dpo": hostile.replace("door", "<b>gate</b>")}],
    )
    html = page(whole_run)
    assert "<mark>door</mark>" in html
    assert "gate" in "".join(re.findall(r"<mark>(.*?)</mark>", html))
    assert "<script>" not in html
    assert "<b>gate</b>" not in html


def test_a_long_text_in_pieces_is_cut_as_others_are() -> None:
    from rlaif.report.build import _marked

    shown = _marked([("a" * 8, False), ("b" * 8, True), ("c" * 8, False)], letters=12)
    assert shown == 'aaaaaaaa<mark>bbbb</mark><span class="more"> … 12 more characters</span>'


def test_the_score_is_drawn_over_the_kl_that_it_cost(whole_run: Path) -> None:
    folder = whole_run / "models" / "ppo"
    folder.mkdir(parents=True)
    rows = [{"step": i + 1, "score": 0.1 * i, "kl": 0.02 * i - 0.01} for i in range(5)]
    (folder / "training.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_json(folder / "metrics.json", {"kl": 0.07})
    html = page(whole_run)
    assert 'aria-label="ppo: mean score against KL"' in html
    assert "Score against KL" in html
