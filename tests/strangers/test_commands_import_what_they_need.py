"""A command loads what it needs and no more: starting costs what its own work costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, json, sys
heavy = sys.argv.pop(1).split(",")
atexit.register(lambda: print("LOADED", *[name for name in heavy if name in sys.modules]))
from rlaif.cli import main
main()
"""
MODELS = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "sklearn", "scipy")
OTHERS = ("ray", "vllm", "httpx", "wandb")
STAGES = tuple(
    f"rlaif.{name}"
    for name in (
        "stages.attacks",
        "stages.audit",
        "stages.best_of_n",
        "stages.evaluation",
        "stages.learning",
        "stages.online",
        "stages.ppo",
        "stages.rewards",
        "stages.sft",
        "evaluation.attacks",
        "training.loop",
        "training.models",
    )
)
TABLES = ("pyarrow", "numpy", "pandas")
# Transformers loads them by itself, where they are installed, for any causal language model.
OF_TRANSFORMERS = {"torch", "transformers", "accelerate", "sklearn", "scipy"}


def loaded(folder: Path, heavy: tuple[str, ...], *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(heavy), *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "LOADED"
    return last[1:]


def test_help_loads_no_libraries_of_data_or_models(tmp_path: Path) -> None:
    heavy = (*MODELS, *OTHERS, *STAGES, *TABLES, "pydantic", "jinja2", "rlaif.stages")
    assert loaded(tmp_path, heavy, "--help") == []


@pytest.mark.parametrize("command", ["label", "train", "report"])
def test_help_of_a_command_loads_no_models(tmp_path: Path, command: str) -> None:
    assert loaded(tmp_path, (*MODELS, *OTHERS, *STAGES), command, "--help") == []


def test_checking_a_config_loads_no_models(tmp_path: Path) -> None:
    assert loaded(tmp_path, (*MODELS, *OTHERS, *STAGES), "config", "check", "demo") == []


def test_a_label_by_a_small_model_loads_no_trainer_and_no_other_stage(tmp_path: Path) -> None:
    rows = [{"prompt": f"Can you help {i} ?", "chosen": "Yes .", "rejected": "No ."} for i in "ab"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heavy = (*MODELS, *OTHERS, *STAGES, "pyarrow.dataset")
    label = ("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "run")
    min_margin = ("--set", "preferences.min_margin=0")
    assert set(loaded(tmp_path, heavy, *label, *min_margin)) <= OF_TRANSFORMERS
    # What looks at labels needs no model at all.
    stages = tuple(name for name in STAGES if name != "rlaif.stages.audit")
    for command in (["report", "run"], ["export", "run", "labels.jsonl"], ["status", "run"]):
        assert loaded(tmp_path, (*MODELS, *OTHERS, *stages), *command) == [], command
