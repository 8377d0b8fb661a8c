from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import make_labelled_run, make_whole_run


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    """Every stage of a run in the embedded world."""
    return make_whole_run(tmp_path / "demo")


@pytest.fixture
def labelled_run(tmp_path: Path) -> Callable[..., Path]:
    """Only labels, of pairs that people labelled before."""
    return lambda n=60, principles=4: make_labelled_run(tmp_path / "hh", n, principles)
