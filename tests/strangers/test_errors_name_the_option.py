"""What is wrong with an option of a command is told of that option, not of a correct file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.errors import ConfigError, RlaifError

FILE = "mine.yaml"


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, RlaifError | SystemExit), repr(result.exception)
    assert result.exit_code
    text = str(result.exception) if isinstance(result.exception, RlaifError) else result.output
    return re.sub(r"\s+", " ", text)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text("judge: {model: tiny}\nout: runs/mine\n")
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/run.yaml").write_text("judge: {model: tiny}\n")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("run", "--config", FILE, "--method", "pairwize"), "--method: 'judge.method'"),
        (("run", "--config", FILE, "--limit", "-3"), "--limit: 'prompts.limit'"),
        (
            ("run", "--config", FILE, "--pairs", "p.jsonl", "--limit", "-3"),
            "--limit: 'pairs.limit'",
        ),
        (("run", "--config", FILE, "--seed", "-1"), "--seed: 'sampling.seed'"),
        (("run", "--config", FILE, "--executor", "dask"), "--executor: 'executor'"),
        (("label", "runs/old", "--method", "pairwize"), "--method: 'judge.method'"),
        (("sample", "runs/old", "-n", "0"), "--n: 'sampling.n'"),
        (("label", "runs/old", "--column", "gud=x"), "--column gud=x: unknown key 'gud'"),
        (("train", "ppo", "runs/old", "--steps", "0"), "--steps: 'train.ppo.steps'"),
        (("train", "ppo", "runs/old", "--set", "train.ppo.steps=0"), "--set: 'train.ppo.steps'"),
        (("eval", "winrate", "runs/old", "--limit", "0"), "--limit: 'evaluate.prompts.limit'"),
        (("eval", "best-of-n", "runs/old", "--n", "0"), "--n"),
        (("eval", "attacks", "runs/old", "--limit", "-3"), "--limit"),
        (
            ("label", "runs/old", "--method", "pairwize", "--set", "judge.min_mass=0.2"),
            "--method: 'judge.method'",
        ),
        (
            ("label", "runs/old", "--method", "text", "--set", "judge.min_mass=7"),
            "--set: 'judge.min_mass'",
        ),
    ],
)
def test_the_option_is_named(command: tuple[str, ...], option: str) -> None:
    text = told(*command)
    assert option in text
    assert FILE not in text
    assert "run.yaml" not in text


def test_a_fault_of_the_file_is_the_files() -> None:
    Path(FILE).write_text("judge: {model: tiny, method: pairwize}\n")
    assert f"{FILE}:1:22: 'judge.method'" in told("run", "--config", FILE, "--limit", "3")


def test_a_fault_of_two_options_together_names_both() -> None:
    text = told(
        "label",
        "runs/old",
        "--method",
        "cot",
        "--set",
        "judge.rationale.clamp=0.48",
        "--set",
        "preferences.min_margin=0.1",
    )
    assert text.startswith(("--method, --set: judge.rationale.clamp", "error: --method, --set:"))


def test_python_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^defaults: 'judge.method'"):
        load_config(FILE, defaults={"judge.method": "pairwize"})
