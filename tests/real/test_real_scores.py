"""Log-probabilities of a real model: packed equals plain within rounding, and nothing twice."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from judging import FIRST, SECOND, long_text, requests

from rlaif.engines.base import Usage
from rlaif.engines.faster.prepacked import Prepacked
from rlaif.engines.hf import HFEngine

OPTIONS = [" A", " B", " C", " the", " Response", " No", "1", " Human"]


def plain(model: torch.nn.Module, paths: list[np.ndarray], engine: HFEngine) -> np.ndarray:
    """Log P(option | prompt), (prompts, options), by one pass a prompt and nothing of ours."""
    targets = [int(engine.encoder.option(option)[0]) for option in OPTIONS]
    rows = []
    for ids in paths:
        with torch.no_grad():
            logits = model(torch.tensor(ids.astype(np.int64))[None], logits_to_keep=1).logits
        rows.append(torch.log_softmax(logits[0, -1].double(), -1)[targets].numpy())
    return np.array(rows)


@pytest.fixture(scope="module")
def exact(folder: str):  # type: ignore[no-untyped-def]
    """The same model in float64, by Transformers' eager attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()


# Pairs of texts, principles, and every how many requests one is computed by plain passes, too.
SHORT = (FIRST, SECOND, 16, 8)
LONG = (long_text(40, "baking"), long_text(8, "buying"), 2, 3)  # past the window of 512 tokens


@pytest.mark.parametrize(("first", "second", "principles", "every"), [SHORT, LONG])
def test_packed_equals_plain_within_twice_the_models_own_rounding(
    engine: HFEngine, exact, first: str, second: str, principles: int, every: int
) -> None:  # type: ignore[no-untyped-def]
    prompts = requests(engine, first, second, principles)
    paths = [engine.encoder.prompt(prompt) for prompt in prompts]
    engine.usage = Usage()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one tells of paths that are not packed
        scores = engine.score(prompts, [OPTIONS] * len(prompts))
    assert all(score.failure is None for score in scores)
    ratio = engine.usage.computed_tokens / engine.usage.bound_tokens
    packed = np.array([score.logprobs for score in scores])[::every]
    float32, float64 = (plain(m, paths[::every], engine) for m in (engine.model, exact))
    with Prepacked(engine.model).active():  # packed passes take oneDNN's products: so does this one
        by_onednn = plain(engine.model, paths[::every], engine)
    # What plain passes are off by depends on whose products they take: here up to twice as much.
    rounding = max(np.abs(x - float64).max() for x in (float32, by_onednn))
    off = np.abs(packed - float64).max()
    print(
        f"{len(prompts)} requests of up to {max(map(len, paths))} tokens: computed/bound "
        f"{ratio:.4f}, packed {off:.1e} from float64, plain {rounding:.1e}"
    )
    assert ratio <= 1.02
    assert off <= 2 * rounding
    assert np.abs(packed - float32).max() <= 2 * rounding


def test_the_model_is_broken_without_its_bos(engine: HFEngine) -> None:
    """What the beginning of a text is worth: so it is no matter of taste whether it is there."""
    text = "The capital of France is Paris, and the capital of Germany is Berlin. Both are big."
    ids = torch.tensor([engine.tokenizer(text).input_ids])
    assert ids[0, 0] == engine.tokenizer.bos_token_id
    nats = []
    for row in (ids, ids[:, 1:]):
        with torch.no_grad():
            table = torch.log_softmax(engine.model(row).logits[0, :-1].double(), -1)
        nats.append(-table.gather(1, row[0, 1:, None])[-15:].mean().item())
    print("nats a token with <bos> {:.2f}, without {:.2f}".format(*nats))
    assert nats[0] < 2.5
    assert nats[1] > nats[0] + 1
