from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import DataError
from rlaif.evaluation.policy import divergence, gold_traits, kl_to_base
from rlaif.files.templates import Rendered
from rlaif.records import Prompt
from rlaif.tiny import gold, prompts

sys.path.append(str(Path(__file__).parent.parent / "training"))
from small_models import make_tokenizer, save_causal


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> tuple[HFEngine, HFEngine]:
    folders = [tmp_path_factory.mktemp(name) for name in ("policy", "base")]
    for seed, folder in enumerate(folders):
        save_causal(folder, make_tokenizer(), seed=seed)
    policy, base = (HFEngine(str(folder), EngineSettings(device="cpu")) for folder in folders)
    return policy, base


QUESTIONS = [Prompt.user(f"the cat {i}") for i in range(6)]
ANSWERS = ["the dog ran", "red", "a tree on the mat", "big blue", "sat happily", "small"]


def test_no_distance_to_oneself(engines):
    found = kl_to_base(engines[0], engines[0], QUESTIONS, ANSWERS)
    assert (found.value, found.k3, found.stderr, found.n) == (0, 0, 0, 6)


def test_against_the_engines_own_scores(engines):
    policy, base = engines
    cut = [(q.id, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    found = kl_to_base(policy, base, QUESTIONS, ANSWERS, cut=cut)
    asks = [Rendered.chat(q.messages) for q in QUESTIONS]
    scores = [e.score(asks, [[a] for a in ANSWERS]) for e in (policy, base)]
    by_hand = [p.logprobs[0] - b.logprobs[0] for p, b in zip(*scores, strict=True)]
    assert found.value == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert found.stderr == pytest.approx(np.std(by_hand, ddof=1) / 6**0.5, abs=1e-5)
    assert found.k3 > 0
    with_end = kl_to_base(policy, base, QUESTIONS, ANSWERS)
    assert with_end.value != pytest.approx(found.value, abs=1e-6)


def test_estimates_agree_with_the_closed_form():
    random = np.random.default_rng(0)
    pi, ref = (random.dirichlet(np.ones(6)) for _ in range(2))
    exact = 3 * float(np.sum(pi * np.log(pi / ref)))  # three independent tokens
    tokens = random.choice(6, p=pi, size=(20_000, 3))
    found = divergence(np.log(pi)[tokens], np.log(ref)[tokens], [str(i) for i in range(20_000)])
    assert found.value == pytest.approx(exact, abs=4 * found.stderr)
    assert found.k3 == pytest.approx(exact, abs=4 * found.k3_stderr)
    assert found.per_token == pytest.approx(found.value / 3)
    assert found.low < exact < found.high


def test_too_long_is_counted_and_unlike_vocabularies_refused(engines, tmp_path):
    policy, base = engines
    found = kl_to_base(policy, base, QUESTIONS[:2], ["red", "dog " * 300])
    assert (found.n, found.too_long) == (1, 1)
    with pytest.raises(DataError, match="fits 128"):
        kl_to_base(policy, base, QUESTIONS[:1], ["dog " * 300])
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zebra"])
    other = HFEngine(str(save_causal(tmp_path, tokenizer)), EngineSettings(device="cpu"))
    with pytest.raises(DataError, match="unlike vocabularies"):
        kl_to_base(policy, other, QUESTIONS, ANSWERS)


def test_gold_traits_against_the_checker():
    from rlaif.tiny.grammar import scenes

    scene = next(iter(scenes().values()))
    text = next(iter(scenes()))
    core = " ".join(part.cores[next(iter(part.cores))][0] for part in scene.parts)
    known = gold(text, core)
    assert known.legal
    found = gold_traits([Prompt.user(text)] * 3, [core, core, "No grammar says this."])
    assert found["legal"]["value"] == pytest.approx(2 / 3)
    assert found["legal"]["n"] == 3
    at_stake = {k: v for k, v in known.traits.items() if v is not None}
    assert found["traits"].keys() == at_stake.keys()
    for trait, value in at_stake.items():
        assert found["traits"][trait]["value"] == pytest.approx(value)
        assert found["traits"][trait]["n"] == 2


def test_prompts_from_elsewhere_are_an_error():
    with pytest.raises(KeyError, match="not a prompt"):
        gold_traits([Prompt.user("What is the capital of France?")], ["Paris."])
    with pytest.raises(DataError, match="at least one"):
        gold_traits([], [])
    assert prompts("test", limit=1)
