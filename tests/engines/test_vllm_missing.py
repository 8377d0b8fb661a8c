"""Without vLLM its engine says how to get it. With it, see tests/on_vllm."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from rlaif.engines.load import load_engine
from rlaif.errors import ConfigError

_found = find_spec("vllm")


@pytest.mark.skipif(_found is not None and _found.origin is not None, reason="vLLM is installed")
def test_the_error_names_the_command_that_installs_it():
    with pytest.raises(ConfigError, match=r'pip install "vllm>='):
        load_engine("tiny", engine="vllm")
