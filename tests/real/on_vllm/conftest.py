"""vLLM's CPU build beside Transformers on the real model: run by .venv-vllm's Python."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

_found = find_spec("vllm")
HAS_VLLM = _found is not None and _found.origin is not None

if HAS_VLLM:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    skip = pytest.mark.skip(reason="vLLM is not installed here: make test-vllm")
    for item in items:
        if not HAS_VLLM and here in item.path.parents:
            item.add_marker(skip)
