"""What has no end is never paid for it, and a prompt that a step holds twice is sampled twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_tokenizer, save_causal
from test_ppo import make_ppo

from rlaif.config.sections import GRPOConfig, PPOConfig, RLOOConfig
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.data import encode_rows
from rlaif.training.models import load_policy
from rlaif.training.rl.group import Reward, train_group
from rlaif.training.rl.loop import prompts_of_step
from rlaif.training.rl.online_dpo import OnlineDPO
from rlaif.training.rl.ppo import Meter
from rlaif.training.rl.rollout import Episode, Sampler, occurrences
from rlaif.training.rl.scorers import FunctionScorer, GroupScorer, Labels, without_reward
from rlaif.training.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
)
from rlaif.training.settings import Runtime

PROMPTS = [Prompt.user(text) for text in ("the cat", "a big dog", "red mat", "sat on", "tree")]
finite = st.floats(-1e6, 1e6)


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    """A model that ends some of its completions, and is cut off in others."""
    folder = save_causal(tmp_path_factory.mktemp("ends"), make_tokenizer())
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.eos_token_id] *= 8
    model.save_pretrained(folder)
    return str(folder)


# ---- the score without an end


@given(st.lists(st.tuples(st.none() | finite, st.booleans()), max_size=9), st.none() | finite)
def test_no_score_is_above_its_own_and_none_above_the_most(rows, most):
    scores, ended = [x for x, _ in rows], [end for _, end in rows]
    for x, end, y in zip(scores, ended, without_reward(scores, ended, most), strict=True):
        if x is None or end or most is None:
            assert y == x
        else:
            assert y == min(x, most)


def test_by_default_no_mark_of_a_judge_is_lower():
    """Marks run from −1 to 1, P from 0 to 1: what is cut off scores as the worst does."""
    everyone = (PPOConfig(), GRPOConfig(), RLOOConfig(), PPOSettings(), GRPOSettings())
    for settings in everyone:
        assert settings.no_end_score == -1
        assert without_reward([1.0, -1.0, 0.0], [False] * 3, settings.no_end_score) == [-1] * 3


# of any scale: marks, probabilities, costs far below any fixed score
SCALES = {"marks": (-1, 1), "costs": (-100, -50), "many": (-3, 200)}


@pytest.mark.parametrize("scale", list(SCALES))
def test_ppo_pays_no_one_for_having_no_end(causal, scale):
    low, high = SCALES[scale]

    def score(_, texts):
        return [low + (high - low) * (len(text) % 7) / 6 for text in texts]

    ppo = make_ppo(causal, FunctionScorer(score), max_new_tokens=60)
    episodes, found = ppo.rollout(0, PROMPTS * 6, Meter())
    own = score(None, [e.text for e in episodes])
    assert {e.ended for e in episodes} == {True, False}
    for episode, mine, given_ in zip(episodes, own, found.tolist(), strict=True):
        wanted = mine if episode.ended else min(mine, -1)
        assert given_ == pytest.approx(wanted)


def episode(text: str, ended: bool) -> Episode:
    ids = np.array([1], np.int32)
    return Episode(PROMPTS[0], ids, ids, text, ended, np.zeros(1))


def test_grpo_and_rloo_pay_no_one_for_having_no_end():
    scorer = FunctionScorer(lambda _, texts: [None if t == "?" else float(t) for t in texts])
    reward = Reward(scorer, GRPOSettings().no_end_score, None)
    said = [("0.8", True), ("0.8", False), ("-5", False), ("?", False), ("-1", True)]
    reward.episodes = [episode(*x) for x in said]
    assert reward(log_metric=lambda *_: None) == [0.8, -1, -5, None, -1]


def test_online_dpo_never_prefers_what_did_not_end_to_what_did(causal):
    def longer(pairs):
        return [
            Preference(p, "preferred", 0.9 if len(p.first) > len(p.second) else 0.1) for p in pairs
        ]

    loaded = load_policy(causal)
    sampler = Sampler(loaded, temperature=1.0, max_new_tokens=100)
    trainer = OnlineDPO(loaded, sampler, Labels(longer, "k"), OnlineDPOSettings(keep_cut=True))
    rows, facts = trainer.gather(0, PROMPTS * 12)
    end = loaded.tokenizer.eos_token_id
    found = [(row.chosen[-1] == end, row.rejected[-1] == end) for row in rows]
    assert (False, True) not in found  # judged better, and cut off
    assert {(True, True), (False, False)} <= set(found)
    assert facts["cut"] > 0


def test_dpo_never_prefers_what_did_not_end_to_what_did(causal):
    encoder = load_policy(causal).encoder
    rows = [Preference(Pair(p, "the cat", "a dog"), "preferred", 0.9) for p in PROMPTS[:4]]
    names = [p.pair.prompt.id for p in rows]
    cut = {(names[0], "the cat"), (names[1], "a dog")}
    cut |= {(names[2], "the cat"), (names[2], "a dog")}
    kept, refused = encode_rows(rows, encoder, 128, cut, policy=True)
    assert refused.pairs == {"cut": [rows[0].pair.id]}
    assert [row.prompt_id for row in kept] == names[1:]
    assert len(encode_rows(rows, encoder, 128, cut)[0]) == 4  # a reward model's: no end to learn


# ---- a prompt twice in a step


def test_a_step_between_two_passes_may_hold_a_prompt_twice():
    steps = [prompts_of_step(PROMPTS, i, 4, seed) for seed in range(5) for i in range(6)]
    twice = [step for step in steps if len({p.id for p in step}) < len(step)]
    assert twice
    for step in twice:
        again = occurrences(step)
        assert sorted(set(again)) == [0, 1]
        assert len(set(zip([p.id for p in step], again, strict=True))) == len(step)


def test_its_samples_are_those_that_one_prompt_with_more_samples_gets(causal):
    loaded = load_policy(causal)
    sampler = Sampler(loaded, temperature=1.0, max_new_tokens=10)
    step = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    found = sampler.sample(loaded.model, step, 5, 2, draws=occurrences(step))
    more = sampler.sample(loaded.model, PROMPTS[:1], 5, 4)
    assert [e.ids.tolist() for e in [*found[:2], *found[4:]]] == [e.ids.tolist() for e in more]
    other = sampler.sample(loaded.model, PROMPTS[1:2], 5, 2)
    assert [e.ids.tolist() for e in found[2:4]] == [e.ids.tolist() for e in other]


def test_ppo_and_online_dpo_draw_anew_for_it(causal):
    ppo = make_ppo(causal, max_new_tokens=10, samples=2, batch_size=4, minibatches=1)
    episodes, _ = ppo.rollout(0, [PROMPTS[0]] * 2, Meter())
    assert len({e.ids.tobytes() for e in episodes}) == 4
    asked = []

    def label(pairs):
        asked.extend(pairs)
        return [Preference(p, "preferred", 0.9) for p in pairs]

    loaded = load_policy(causal)
    sampler = Sampler(loaded, temperature=1.0, max_new_tokens=10)
    OnlineDPO(loaded, sampler, Labels(label, "k"), OnlineDPOSettings(keep_cut=True)).gather(
        0, [PROMPTS[0]] * 2
    )
    assert len({text for pair in asked for text in (pair.first, pair.second)}) == 4


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_grpo_and_rloo_draw_anew_for_it(causal, tmp_path, algorithm):
    batches = []

    def score(prompts, texts):
        batches.append(list(zip([p.id for p in prompts], texts, strict=True)))
        return [float(len(text)) for text in texts]

    step = [prompts_of_step(PROMPTS, 1, 4, seed) for seed in range(20)]
    seed = next(i for i, found in enumerate(step) if max(occurrences(found)))
    kind = {"grpo": GRPOSettings, "rloo": RLOOSettings}[algorithm]
    settings = kind(steps=2, batch_size=8, group=2, max_new_tokens=10, seed=seed)
    runtime = Runtime("cpu")
    train_group(PROMPTS, causal, tmp_path, FunctionScorer(score), settings, runtime=runtime)
    twice = [b for b in batches if len({name for name, _ in b}) < 4]
    assert twice  # the second step: four prompts, of five
    for batch in twice:
        assert len(set(batch)) == len(batch)


def test_its_two_groups_do_not_meet():
    asked = []

    def label(pairs: list[Pair]) -> list[Preference]:
        asked.extend((p.first, p.second) for p in pairs)
        return [Preference(p, "preferred", 0.9) for p in pairs]

    scorer = GroupScorer(label, "k", size=2)
    scores = scorer.score([PROMPTS[0]] * 4, ["a", "b", "c", "d"], [True] * 4)
    assert asked == [("a", "b"), ("c", "d")]
    assert scores == pytest.approx([0.9, 0.1, 0.9, 0.1])
