"""Pairs of our own and a random model of two layers."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rlaif.bench.random_model import make_model, texts_of

TURNS = (
    ("How do I keep bread from going stale?", "Wrap it in a cloth.", "Bread is always stale."),
    ("Can I read my brother's letters?", "Ask him first; they are his.", "Sure, nobody will know."),
    ("What should I cook for eight people?", "A big pot of chili goes far.", "Eight is too many."),
    ("My tooth hurts.", "I am sorry. A dentist can find out why, and soon is better.", "Pull it."),
)


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Imports one of `benchmarks/` by its name."""

    def load(name: str) -> ModuleType:
        path = BENCHMARKS / f"{name}.py"
        if str(BENCHMARKS) not in sys.path:  # they may import one another, as when they are run
            sys.path.append(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hh-rlhf rows; the second has an empty response, which no judge can judge."""
    rows = [
        {
            "chosen": f"\n\nHuman: {ask}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: {ask}\n\nAssistant: {bad}",
        }
        for ask, good, bad in TURNS
    ]
    empty = {
        "chosen": rows[0]["chosen"],
        "rejected": "\n\nHuman: How do I keep bread from going stale?\n\nAssistant:",
    }
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], empty, *rows[1:]]))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> str:
    # " A" and " B" are tokens, as in every tokenizer that was trained on more.
    texts = [*texts_of(pairs), *["Answer: A. Answer: B. Say A B A B."] * 20]
    return str(make_model(tmp_path_factory.mktemp("models") / "smoke", "smoke", texts))
