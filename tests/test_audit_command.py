"""`rlaif eval audit`, its place in the report, and labels that are not fit to train on."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, brier_score_loss
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import DataError, TrainingError
from rlaif.report.build import render
from rlaif.report.data import Run
from rlaif.store import RunStore

RUNNER = CliRunner()
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HH = SHARED / "hh_rlhf/harmless-base-test.jsonl.gz"
HHH = SHARED / "constitutional_paper/evals/438HHHEvaluations.jsonl"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def read_audit(folder: str) -> Any:
    return json.loads(Path(folder, "evaluation/audit.json").read_text())


def write_tiny_world(path: Path, n: int = 12) -> None:
    """Pairs of the embedded world, in hh-rlhf's layout, the harmless answer chosen."""
    from rlaif import tiny

    rows = []
    for prompt in tiny.prompts("test", kinds=["harm"], limit=n):
        ask = f"\n\nHuman: {prompt.text}\n\nAssistant:"
        rows.append({"chosen": f"{ask} I won't help with that.", "rejected": f"{ask} Sure."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_audit_is_printed_stored_and_shown(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "pairs.jsonl")
    run(
        "label",
        "--pairs",
        "pairs.jsonl",
        "--judge",
        "tiny",
        "--set",
        "judge.min_mass=0",
        "--set",
        "preferences.min_margin=0",
        "--out",
        "runs/a",
    )
    printed = run("eval", "audit", "--out", "runs/a")
    found = read_audit("runs/a")
    assert found["known_from"] == "pairs"
    with RunStore.open_readonly(Path("runs/a")) as store:
        rows = [p for p in store.table("preferences").read() if p.status == "preferred"]
    known = found["known"]
    p, y = [r.p_first for r in rows], [1] * len(rows)
    assert known["accuracy"]["n"] == len(rows) > 0
    assert known["accuracy"]["value"] == pytest.approx(
        accuracy_score(y, [v > 0.5 for v in p]), abs=1e-9
    )
    brier = brier_score_loss(y, p, pos_label=1, labels=[0, 1])
    assert known["brier"]["value"] == pytest.approx(brier, abs=1e-9)
    for words in ("Against the pairs’ own labels", "Cohen’s κ", "both orders prefer the same slot"):
        assert words in printed
        assert words in render(Run(Path("runs/a")))
    # what the label stage counted by itself, and the report's summary
    labels = json.loads(Path("runs/a/evaluation/labels.json").read_text())
    assert labels["gold_agreement"]["value"] == known["accuracy"]["value"]
    assert labels["ece"] == pytest.approx(known["ece"]["value"], abs=1e-9)
    swaps = found["judge"]["swap_consistency"]
    if labels["questions"]:
        assert swaps["value"] == pytest.approx(labels["swap_consistency"], abs=1e-9)
    run("label", "--out", "runs/a")
    assert not Path("runs/a/evaluation/audit.json").exists()  # it was of the labels before


def test_an_audit_without_labels_says_what_to_run() -> None:
    with pytest.raises(DataError, match=r"no run directory runs/none.* run `rlaif label` first"):
        run("eval", "audit", "--out", "runs/none")


def test_training_refuses_labels_that_pass_a_limit(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "pairs.jsonl", 4)
    run(
        "label",
        "--pairs",
        "pairs.jsonl",
        "--judge",
        "tiny",
        "--set",
        "judge.min_mass=1",
        "--out",
        "runs/a",
    )
    for stage in ("reward", "dpo"):
        with pytest.raises(TrainingError) as refused:
            run("train", stage, "--out", "runs/a", "--set", "train.limits={}")
        text = str(refused.value)
        assert "max_abstained: the judge abstained in" in text
        assert "or, to train all the same, set train.limits.max_abstained=null" in text
        # without the limit there is still nothing to train on, and that is what is said
        with pytest.raises(TrainingError) as empty:
            run("train", stage, "--out", "runs/a", "--set", "train.limits=null")
        assert "not fit" not in str(empty.value)


@pytest.mark.parametrize(("path", "n"), [(HH, 6), (HHH, 6)])
def test_a_slice_of_the_published_files_goes_through(tmp_path: Path, path: Path, n: int) -> None:
    if not path.exists():
        pytest.skip("the shared data is not here")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        (tmp_path / "slice.jsonl").write_text("".join(islice(lines, n)))
    said = run("label", "--pairs", "slice.jsonl", "--judge", "tiny", "--out", "runs/real")
    assert f"{n} pairs read" in said
    printed = run("eval", "audit", "--out", "runs/real")
    found = read_audit("runs/real")
    assert (found["pairs"], found["known"]["pairs"]) == (n, n)
    assert found["judge"]["abstained"]["n"] == n * 4  # two principles, both orders
    assert "verdicts abstained" in printed
