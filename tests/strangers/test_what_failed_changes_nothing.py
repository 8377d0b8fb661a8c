"""A command that failed before it stored anything leaves a run's settings as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import RlaifError
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.store import RunStore

RULES = "name: mine\nprinciples:\n  - {id: calm, compare: 'Which response is calmer?'}\n"
SMALL = (
    "sampling.max_new_tokens=12",
    "sampling.keep_cut=true",
    "preferences.min_margin=0",
    "train.limits=null",
    "train.dpo.epochs=1",
    "threads=1",
)
SET = tuple(word for one in SMALL for word in ("--set", one))


def calling(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def failing(*words: str) -> str:
    with pytest.raises(RlaifError) as found:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return " ".join(str(found.value).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        Path("mine.yaml").write_text(RULES)
        texts = "How do I bake bread?", "Tell me about cats.", "How are you?", "What is rice?"
        Path("prompts.txt").write_text("\n".join(texts) + "\n")
        rows = [{"prompt": f"{i}?", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(4)]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rules = ("--constitution", "mine.yaml", *SET)
        calling("sample", "--prompts", "prompts.txt", "--policy", "tiny", "sampled", *rules)
        calling("label", "sampled", "--judge", "tiny")
        calling("train", "dpo", "sampled")
        calling("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "read", *rules)
    return project


@pytest.fixture(autouse=True)
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "p"
    shutil.copytree(made, here)
    monkeypatch.chdir(here)
    calling("label", "sampled", "--set", "chunk=64")  # it lies here now, and follows these files
    calling("label", "read", "--pairs", "pairs.jsonl")
    return here


def settled(run: str) -> dict[str, object]:
    """All that a run says of itself, its copies of what it reads, and what was trained."""
    root = Path(run)
    files = [root / "run.yaml", root / "manifest.json", *sorted(root.glob("inputs/*/*"))]
    files += filter(Path.is_file, sorted(root.rglob("models/**/*")))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "words",
    [
        ("train", "dpo", "sampled", "--policy", "tinny"),
        ("sample", "sampled", "--policy", "tinny"),
        ("run", "sampled", "--policy", "nosuch"),
        ("run", "sampled", "--set", "train.reward.model=nosuch"),  # sampled and labelled before
        ("label", "sampled", "--judge", "nosuch"),
        ("eval", "attacks", "sampled", "--judge", "nosuch"),
        ("label", "read", "--column", "chosen=gud"),
        ("label", "read", "--pairs", "empty.jsonl"),
        ("label", "read", "--constitution", "other.yaml", "--judge", "nosuch"),
        ("train", "ppo", "sampled", "--policy", "broken", "--set", "train.ppo.steps=1"),
        ("train", "dpo", "sampled", "--policy", "broken"),
        ("train", "dpo", "sampled", "--policy", "cut"),  # found when the old model was cleared
    ],
)
def test_a_setting_that_made_a_command_fail_does_not_stay(words: tuple[str, ...]) -> None:
    Path("empty.jsonl").write_text("")
    Path("other.yaml").write_text(RULES.replace("calmer", "kinder"))
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{}")
    weights = shutil.copytree(TINY_WEIGHTS, Path("cut")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    name = next(word for word in words if word in ("sampled", "read"))
    before, stale = settled(name), calling("status", name).partition("next:")
    failing(*words)
    assert settled(name) == before
    assert calling("status", name).partition("next:") == stale
    assert not list(Path(name).glob(".before*"))


def test_the_command_that_is_told_next_works() -> None:
    failing("label", "read", "--column", "chosen=gud")
    assert "(0 new)" in calling("label", "read")


def test_what_failed_after_it_stored_something_keeps_its_settings() -> None:
    """The pairs are those of the new file: settings that tell of another would be false."""
    rows = [{"prompt": f"{i}!", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(3)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    failing("label", "read", "--pairs", "more.jsonl", "--judge", "nosuch")
    assert "more.jsonl" in Path("read/run.yaml").read_text()
    assert len(RunStore("read", read_only=True).table("pairs")) == 3


def test_one_remedy_and_the_right_one() -> None:
    """Pairs that were read are read again by `label`: `sample` would take others."""
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    Path("pairs.jsonl").write_text("".join(lines[1:]))
    told = calling("eval", "audit", "read")
    assert told.count("to make it again: rlaif label --out read") == 2
    assert "rlaif sample" not in told
    told = calling("eval", "audit", "sampled", "--set", "sampling.temperature=0.5")
    assert told.count("to make it again: rlaif sample --out sampled") == 2
    assert "rlaif label" not in told


@pytest.mark.parametrize("command", ["sample", "contrast"])
def test_pairs_of_a_file_are_not_replaced_by_sampled_ones(command: str) -> None:
    before = settled("read"), RunStore("read", read_only=True).table("pairs").read()
    told = failing(command, "read", "--prompts", "prompts.txt", "--policy", "tiny")
    assert "pairs.jsonl" in told
    assert "--set pairs=null" in told
    assert (settled("read"), RunStore("read", read_only=True).table("pairs").read()) == before


def test_one_completion_makes_no_pair_and_that_is_said() -> None:
    words = ("--prompts", "prompts.txt", "--policy", "tiny", "--set", "sampling.max_new_tokens=12")
    told = calling("sample", "new", *words, "-n", "1", "--set", "sampling.keep_cut=true")
    assert "one completion each: pairs need two (sampling.n=2)" in told
    assert "empty" not in told
    told = failing("label", "new")
    assert "rlaif sample -n 2" in told


@pytest.mark.parametrize(
    "words", [("sampling.n=1",), ("sampling.keep_cut=false", "sampling.max_new_tokens=1")]
)
def test_stored_pairs_are_never_replaced_by_none(words: tuple[str, ...]) -> None:
    before = RunStore("sampled", read_only=True).table("pairs").read()
    assert before
    for command in ("sample", "run"):
        sets = (word for one in (*words, "train.dpo=null") for word in ("--set", one))
        told = failing(command, "sampled", *sets)
        assert "the 4 pairs that the run has stay" in told
        assert RunStore("sampled", read_only=True).table("pairs").read() == before


def test_an_audit_that_was_taken_away_is_told_of() -> None:
    calling("eval", "audit", "sampled")
    assert "no longer there" not in calling("status", "sampled")
    Path("mine.yaml").write_text(RULES.replace("calmer", "kinder"))
    told = calling("label", "sampled")
    assert "rlaif eval audit --out sampled" in told
    told = calling("status", "sampled")
    assert "no longer there: the audit, which was of other labels" in told
    assert "rlaif eval audit --out sampled" in told
    assert "stage audit" not in told
    calling("report", "sampled")
    assert "rlaif eval audit --out sampled" in Path("sampled/report.html").read_text()
    calling("eval", "audit", "sampled")
    assert "no longer there" not in calling("status", "sampled")
