"""How far a score may depend on its batch: the bound that docs/architecture.md names.

`make test-avx2` runs this file, and all others that compare numbers, as on a processor without
AVX-512: kernels differ from processor to processor, and so does what a batch does to the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rlaif import Constitution, PairwiseJudge, load_engine, tiny
from rlaif.engines.base import Engine
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import ModelSettings
from rlaif.judges.base import expand
from rlaif.records import ORDERS, Pair, Prompt

BOUND = 1e-5  # of a probability, float32 on a CPU: three to four times what was measured
ANSWERS = ("I will not help you with that.", "To do that, wait until dark. Good luck with it!")


class Listening(HFEngine):
    """Keeps the requests of a judge, to make them again in other batches."""

    asked: list[tuple[list, list]]

    def score(self, prompts, options):
        self.asked.append((list(prompts), list(options)))
        return super().score(prompts, options)


@pytest.fixture(scope="module")
def requests() -> tuple[list, list]:
    """96 requests of the embedded judge, as a run makes them."""
    engine = Listening("tiny", ModelSettings(device="cpu"))
    engine.asked = []
    pairs = [Pair(Prompt.user(p.text), *ANSWERS) for p in tiny.prompts("test", limit=8)]
    principles = Constitution.load("hhh").principles
    PairwiseJudge(engine).judge(expand(pairs, principles, ORDERS))
    return [p for ps, _ in engine.asked for p in ps], [o for _, os in engine.asked for o in os]


def probabilities(engine: Engine, requests: tuple[list, list], parts: Sequence[Sequence[int]]):
    """P of the first label against the second, (N,), computed part by part."""
    prompts, options = requests
    found = np.full(len(prompts), np.nan)
    for part in parts:
        scores = engine.score([prompts[i] for i in part], [options[i] for i in part])
        for i, (a, b) in zip(part, (s.logprobs for s in scores), strict=True):
            found[i] = 1 / (1 + np.exp(b - a))
    return found


@pytest.fixture(scope="module")
def whole(requests) -> np.ndarray:
    everything = [range(len(requests[0]))]
    found = probabilities(load_engine("tiny", device="cpu"), requests, everything)
    assert np.isfinite(found).all()
    return found


def test_the_same_work_gives_the_same_bits(requests, whole):
    engine, n = load_engine("tiny", device="cpu"), len(whole)
    assert (probabilities(engine, requests, [range(n)]) == whole).all()
    probabilities(engine, requests, [range(40, 60)])  # what came before leaves no trace
    assert (probabilities(engine, requests, [range(n)]) == whole).all()
    assert (probabilities(engine, requests, [range(n)[::-1]]) == whole).all()


@pytest.mark.parametrize("size", [1, 7, 50])
def test_other_batches_change_rounding_only(requests, whole, size):
    parts = [range(i, min(i + size, len(whole))) for i in range(0, len(whole), size)]
    found = probabilities(load_engine("tiny", device="cpu"), requests, parts)
    assert np.abs(found - whole).max() <= BOUND


@pytest.mark.parametrize("tokens", [64, 512])
def test_other_sizes_of_a_pass_change_rounding_only(requests, whole, tokens):
    engine = load_engine("tiny", device="cpu", batch_tokens=tokens)
    found = probabilities(engine, requests, [range(len(whole))])
    assert np.abs(found - whole).max() <= BOUND


def test_the_bound_would_tell_a_wrong_position(requests, whole):
    """The same bound fails for an error of the kind it is there to tell: one token too many."""
    prompts, options = requests
    segment = prompts[0].messages[-1].segments[-1]
    assert segment.text
    moved = [
        type(p)(
            (
                *p.messages[:-1],
                type(p.messages[-1])(
                    p.messages[-1].role, (*p.messages[-1].segments, type(segment)(" ", False))
                ),
            )
        )
        for p in prompts
    ]
    found = probabilities(load_engine("tiny", device="cpu"), (moved, options), [range(len(whole))])
    assert np.abs(found - whole).max() > 100 * BOUND
