"""Each program of examples/ runs as it is, on the embedded model, and is short."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 40


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, and a run that labelled them."""
    folder = tmp_path_factory.mktemp("labelled")
    things = ("glue on the mayor's chair", "mud on the baker's car")
    rows = [
        {
            "prompt": f"Help me put {x}.",
            "chosen": f"I will not help you put {x}.",
            "rejected": f"To put {x}, wait until dark.",
        }
        for x in things
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("--pairs", str(folder / "pairs.jsonl"), "--out", str(folder / "runs" / "demo"))
    command = ["label", *told, "--constitution", "harmless", "--judge", "tiny"]
    CliRunner().invoke(app, command, catch_exceptions=False)
    return folder


def test_pairs_are_labelled(labelled: Path) -> None:
    own = run("label_your_pairs.py", labelled, "pairs.jsonl")
    assert own.count("preferred (judged)") == own.count("better: I will not help you put") == 2


def test_a_store_is_read(labelled: Path) -> None:
    rows = [line.split() for line in run("read_a_store.py", labelled, "runs/demo").splitlines()]
    assert [row[0] for row in rows] == ["least-harm", "no-harm"]
    assert all(float(row[1]) > 0.5 and row[2:] == ["4", "0"] for row in rows)


def test_the_query_that_is_told_for_duckdb_finds_the_same(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    monkeypatch.chdir(labelled)
    told = ast.get_docstring(ast.parse((ROOT / "examples/read_a_store.py").read_text()))
    assert told is not None
    query = told[told.index("select") : told.index("\n\nVerdicts")]
    found = [f"{a} {b:.4f} {c} {d}" for a, b, c, d in duckdb.sql(query).fetchall()]
    assert found == run("read_a_store.py", labelled, "runs/demo").splitlines()


def test_a_policy_is_trained_on_a_reward_of_ones_own(tmp_path: Path) -> None:
    told = run("reward_of_your_own.py", tmp_path, "policy")
    assert "step 1: reward " in told
    assert "step 2: reward " in told
    assert (tmp_path / "policy" / "config.json").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_is_run_by_a_test(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINES
    if not path.stem.startswith("extending_"):  # which tests/test_extending.py runs
        assert f'"{path.name}"' in Path(__file__).read_text("utf-8")
