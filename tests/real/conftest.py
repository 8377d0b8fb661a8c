"""A real pretrained model: the folder that the environment variable RLAIF_REAL_MODEL names.

`make test-real` fetches one (Gemma 3 270M, the base model) and sets the variable; without it these
tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlaif.engines.settings import EngineSettings

FOLDER = os.environ.get("RLAIF_REAL_MODEL", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if not FOLDER:
        skip = pytest.mark.skip(reason="RLAIF_REAL_MODEL names no model: make test-real")
        for item in items:
            if here in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def folder() -> str:
    """The model's Hugging Face folder."""
    assert (Path(FOLDER) / "config.json").is_file(), f"RLAIF_REAL_MODEL={FOLDER} is no model"
    return FOLDER


@pytest.fixture(scope="session")
def gguf(folder: str) -> Path:
    """The GGUF file that the folder was converted from."""
    found = sorted((Path(folder).parent / "gguf").glob("*.gguf"))
    if not found:
        pytest.skip("the model's GGUF file does not lie beside it: make test-real puts it there")
    return found[0]


@pytest.fixture(scope="session")
def engine(folder: str):  # type: ignore[no-untyped-def]
    """The model in Transformers, in float32."""
    from rlaif.engines.hf import HFEngine

    engine = HFEngine(folder, EngineSettings(device="cpu"))
    yield engine
    engine.close()
