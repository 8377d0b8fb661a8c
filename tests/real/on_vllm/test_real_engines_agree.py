"""Both engines say the same of the same requests on a real model."""

from __future__ import annotations

import numpy as np
import pytest
from judging import FIRST, SECOND, long_text, requests

from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings, VLLMSettings
from rlaif.engines.vllm import VLLMEngine

OPTIONS = [" A", " B"]


@pytest.fixture(scope="module")
def vllm(folder: str):  # type: ignore[no-untyped-def]
    engine = VLLMEngine(
        folder,
        EngineSettings(
            dtype="float32",
            batch_tokens=1280,
            vllm=VLLMSettings(block_size=32, max_model_len=1280, cache_gib=0.25),
        ),
    )
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("first", "second", "principles"), [(FIRST, SECOND, 4), (long_text(40, "baking"), SECOND, 1)]
)
def test_log_probabilities_agree(
    vllm: VLLMEngine, engine: HFEngine, first: str, second: str, principles: int
) -> None:
    prompts = requests(engine, first, second, principles)
    options = [OPTIONS] * len(prompts)
    a, b = (np.array([s.logprobs for s in e.score(prompts, options)]) for e in (vllm, engine))
    print(f"{len(prompts)} requests: max |Δ log p| = {np.abs(a - b).max():.1e}")
    assert np.abs(a - b).max() < 1e-3


def test_greedy_completions_agree(vllm: VLLMEngine, engine: HFEngine) -> None:
    prompts = requests(engine, FIRST, SECOND, 1)
    sampling = Sampling(n=1, temperature=0, max_new_tokens=8)
    assert vllm.generate(prompts, sampling) == engine.generate(prompts, sampling)
