"""A real model from its GGUF file: what Transformers leaves out of it is put in, and said."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from judging import FIRST, SECOND, requests

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.training.models import fingerprint_of


@pytest.fixture(scope="module")
def from_gguf(gguf: Path):  # type: ignore[no-untyped-def]
    """The engine of the folder that holds the file, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = HFEngine(str(gguf.parent), EngineSettings(device="cpu"))
    yield engine, [str(w.message) for w in said]
    engine.close()


def test_the_bos_that_transformers_leaves_out_is_put_in_and_told_by_name(from_gguf) -> None:  # type: ignore[no-untyped-def]
    engine, said = from_gguf
    assert any("puts no <bos>" in text and "is put there" in text for text in said), said
    ids = engine.encoder.prompt(requests(engine, FIRST, SECOND, 1)[0])
    assert ids[0] == engine.tokenizer.bos_token_id == 2
    assert (ids[1:] != 2).all()


def test_it_says_what_the_converted_folder_says(from_gguf, engine: HFEngine) -> None:  # type: ignore[no-untyped-def]
    """But for the rounding of the folder's weights to bfloat16."""
    ours, _ = from_gguf
    prompts = requests(engine, FIRST, SECOND, 2)
    for prompt in prompts:
        assert ours.encoder.prompt(prompt).tolist() == engine.encoder.prompt(prompt).tolist()
    found, expected = (e.score(prompts, [[" A", " B"]] * len(prompts)) for e in (ours, engine))
    off = max(
        np.abs(np.subtract(a.logprobs, b.logprobs)).max()
        for a, b in zip(found, expected, strict=True)
    )
    print(f"largest difference from the weights in bfloat16: {off:.3f} nats")
    assert 0 < off < 0.1


def test_its_content_is_its_fingerprint_wherever_it_lies(gguf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another-name.gguf"
    copy.symlink_to(gguf)
    assert (
        fingerprint_of(str(copy)) == fingerprint_of(str(gguf)) == fingerprint_of(str(gguf.parent))
    )


def test_it_can_be_saved(from_gguf, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    engine, _ = from_gguf
    engine.model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    saved = HFEngine(str(tmp_path), EngineSettings(device="cpu"))
    prompts = requests(engine, FIRST, SECOND, 1)
    options = [[" A", " B"]] * len(prompts)
    assert [s.logprobs for s in saved.score(prompts, options)] == [
        s.logprobs for s in engine.score(prompts, options)
    ]
