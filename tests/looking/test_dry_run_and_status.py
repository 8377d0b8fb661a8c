"""What `rlaif label --dry-run` and `rlaif status` foretell is what the run then does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.constitution import Constitution
from rlaif.engines.base import ScriptedEngine
from rlaif.engines.load import load_engine
from rlaif.errors import RlaifError
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.base import expand
from rlaif.judges.cot import CotJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import AdaptiveSettings, CotSettings, RationaleSettings
from rlaif.records import ORDERS, Pair, Prompt
from rlaif.steps.foretelling import Forecast, counting, foretell, rate_of_a_sample
from rlaif.store import RunStore


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1].replace(",", ""))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    chats = [f"\n\nHuman: Tell me about thing {i // 2}.\n\nAssistant:" for i in range(8)]
    rows = [
        {"chosen": f"{c} It is good, number {i}.", "rejected": f"{c} I cannot help."}
        for i, c in enumerate(chats)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stage(root: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((root / "manifest.json").read_text())["stages"]["label"]
    return found


def files(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("method", ["pairwise", "pointwise", "rubric", "listwise"])
def test_requests_and_tokens_are_those_that_are_then_submitted(
    method: str, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    asked = [
        "label",
        "--pairs",
        str(pairs),
        "--constitution",
        "harmless",
        "--method",
        method,
        "--set",
        "judge.min_mass=0",
        "--set",
        "chunk=3",
        "--out",
        str(out),
    ]
    said = run(*asked, "--dry-run")
    assert not out.exists()
    assert "dry run: nothing was stored" in said
    assert "at the rate of a sample" in said
    run(*asked)
    did = stage(out)
    assert number(r"([\d,]+) requests", said) == did["requests"] > 0
    assert number(r"([\d,]+) tokens submitted", said) == did["submitted_tokens"] > 0
    assert number(r"([\d,]+) to compute", said) == did["bound_tokens"] > 0
    assert number(r"([\d,]+) to judge", said) == did["new_rows"]


def test_what_is_stored_is_not_counted_and_nothing_is_written(pairs: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "r", tmp_path / "mine.yaml"
    shutil.copy("constitutions/harmless.yaml", mine)
    run("label", "--pairs", str(pairs), "--constitution", str(mine), "--out", str(out))
    first = stage(out)
    assert "16 are stored" not in run("status", str(out))
    mine.write_text(mine.read_text().replace("less harmful?", "less harmful to people?"))
    before = files(out)
    told = run("status", str(out))
    said = run("label", "--out", str(out), "--dry-run")
    assert files(out) == before
    assert "would judge 16 of 32 verdicts: no-harm 16" in told
    tokens = number(r"and ([\d,]+) tokens, at the rate of the last time", told)
    assert tokens == round(first["submitted_tokens"] * 16 / first["new_rows"])
    assert "16 are stored and 16 to judge" in said
    assert "of no-harm 16" in said
    run("label", "--out", str(out))
    did = stage(out)
    assert did["new_rows"] == 16
    assert number(r"([\d,]+) requests", said) == did["requests"]
    assert number(r"([\d,]+) tokens submitted", said) == did["submitted_tokens"]
    assert "would judge" not in run("status", str(out))
    assert "0 to judge" in run("label", "--out", str(out), "--dry-run")
    run("label", "--out", str(out))  # finds all done: what was spent stays told
    assert stage(out)["spent_on"] == 16
    assert f"{did['submitted_tokens']:,} tokens submitted" in run("status", str(out))


def test_another_judge_is_at_most(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    run("label", "--pairs", str(pairs), "--constitution", "harmless", "--out", str(out))
    with RunStore(out) as store:  # as another command leaves it that was given --judge
        asked = store.read_manifest()["asked"]
        asked["judge"]["model"] = "another"
        store.update_manifest("asked", asked)
    assert "would judge at most 32 of 32 verdicts" in run("status", str(out))


PAIRS = [Pair(Prompt.user(f"Question {i}?"), "Yes, it is.", "No, never.") for i in range(3)]


def foretold(kind: Any, *settings: Any) -> tuple[Forecast, Any]:
    engine = load_engine("tiny")
    counter = counting(engine)
    judge = kind(counter, *settings)
    found = foretell(
        PAIRS,
        judge,
        counter,
        Constitution.load("harmless").principles,
        lambda _: {},
        orders=ORDERS,
        chunk=64,
    )
    return found, judge


def test_what_a_judge_writes_is_told_as_a_limit() -> None:
    settings = CotSettings(rationale=RationaleSettings(max_new_tokens=7), min_mass=0.0)
    found, _ = foretold(CotJudge, settings)
    assert not found.exact
    assert found.usage.generated_tokens == 12 * 7
    engine = load_engine("tiny")
    judge = CotJudge(engine, settings)
    judge.judge(expand(PAIRS, Constitution.load("harmless").principles))
    assert engine.usage.generated_tokens <= 12 * 7
    assert engine.usage.requests <= found.usage.requests
    assert engine.usage.submitted_tokens <= found.usage.submitted_tokens


def test_an_adaptive_judge_is_counted_as_if_all_were_hard() -> None:
    found, _ = foretold(AdaptiveJudge, AdaptiveSettings(min_mass=0.0))
    assert found.usage.requests == 3 * 2 * 2 * 3  # label, text, label


def test_an_engine_without_a_tokenizer_is_told_about() -> None:
    counter = counting(ScriptedEngine(scorer=lambda _, options: [-0.7] * len(options)))
    judge = PairwiseJudge(counter)
    found = foretell(
        PAIRS,
        judge,
        counter,
        Constitution.load("harmless").principles,
        lambda _: {},
        orders=ORDERS,
        chunk=64,
    )
    assert not found.exact
    assert found.usage.requests == 12
    assert found.usage.submitted_tokens > 100


def test_a_sample_is_timed_and_its_rate_taken_by_tokens() -> None:
    engine = load_engine("tiny")
    judge = PairwiseJudge(engine)
    found, _ = foretold(PairwiseJudge)
    rate = rate_of_a_sample(judge, engine, found.sample, seconds=0.0)
    assert rate is not None
    assert rate.usage["requests"] == 12
    seconds = rate.seconds_of(found.usage, exact=True)
    share = found.usage.bound_tokens / rate.usage["bound_tokens"]
    assert seconds == pytest.approx(rate.seconds * share)
    assert rate_of_a_sample(judge, engine, []) is None


def test_a_run_without_pairs_is_told_as_by_label(tmp_path: Path) -> None:
    with pytest.raises(RlaifError, match=r"nothing to label: run `rlaif sample`"):
        CliRunner().invoke(
            app, ["label", "--dry-run", "--out", str(tmp_path / "no")], catch_exceptions=False
        )
