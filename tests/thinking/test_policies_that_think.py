"""A policy's thought is kept apart from its answer, and trained on as it was sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlaif import PairwiseJudge, load_engine
from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.constitution import Principle
from rlaif.engines.base import Engine, Sampling, ScriptedEngine
from rlaif.errors import ConfigError, EngineError
from rlaif.evaluation.policy import kl_to_base
from rlaif.files.templates import Rendered
from rlaif.judges.base import expand
from rlaif.judges.load import make_judge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Completion, Demonstration, Pair, Preference, Prompt
from rlaif.stages.inputs import sampling_of
from rlaif.stages.learning import cut_completions, sampled_tokens
from rlaif.steps.sampling import completion_keys, make_pairs, sample_prompts
from rlaif.store import RunStore
from rlaif.training.data import encode_rows
from rlaif.training.models import load_policy
from rlaif.training.rl.rollout import Sampler
from rlaif.training.sft import encode

PROMPTS = [Prompt.user(f"Tell me about the {x}.") for x in ("cake", "river", "garden", "book")]
DRAWN = Sampling(n=4, temperature=1.5, max_new_tokens=16, seed=3, thinking=24)


@pytest.fixture(scope="module")
def engine(thinker: Path) -> Any:
    return load_engine(str(thinker), device="cpu")


@pytest.fixture(scope="module")
def made(engine: Engine) -> list[Completion]:
    return sample_prompts(engine, PROMPTS, DRAWN)


def marks_of(engine: Any) -> tuple[int, int]:
    return tuple(engine.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))


def test_text_is_the_answer_alone_and_ids_are_all_that_was_sampled(
    engine: Any, made: list[Completion]
) -> None:
    _, end = marks_of(engine)
    kinds = set()
    for c in made:
        assert len(c.ids) == c.tokens <= DRAWN.limit
        if end in c.ids:
            kinds.add("thought")
            thought = c.ids[: c.ids.index(end)]
            assert c.thought == engine.encoder.decode(thought).strip()
            assert c.text == engine.encoder.decode(c.ids[len(thought) + 1 :]).strip()
        else:
            kinds.add(c.finish_reason)
            assert (c.text, c.thought) == ("", engine.encoder.decode(c.ids).strip())
    assert {"thought", "stop"} <= kinds
    # what was cut within its thought makes no pair, and no answer holds a thought
    for pair in make_pairs(PROMPTS, made, keep_cut=True):
        assert pair.first.strip()
        assert pair.second.strip()


def test_thoughts_are_stored_and_older_keys_are_what_they_were(
    engine: Any, made: list[Completion], tmp_path: Path
) -> None:
    with RunStore(tmp_path / "run", command="test") as store:
        store.table("completions").append(made)
        assert store.table("completions").read() == made
    ways = [DRAWN.but(thinking=t) for t in (None, 0, 24, 25)]
    keys = [completion_keys(engine, way, PROMPTS[0])[0] for way in ways]
    assert len(set(keys)) == 4
    before = {k: v for k, v in ways[0].settings().items() if k != "n"}
    assert "thinking" not in before
    with pytest.raises(EngineError, match="cannot think"):
        completion_keys(load_engine("tiny", device="cpu"), DRAWN, PROMPTS[0])


def test_training_reads_the_thought_id_by_id_behind_the_prompt_it_was_sampled_after(
    engine: Any, made: list[Completion], thinker: Path, tmp_path: Path
) -> None:
    loaded = load_policy(str(thinker), thinking=24)
    with RunStore(tmp_path / "run", command="test") as store:
        store.table("completions").append(made)
        known, cut = sampled_tokens(store), cut_completions(store)
    told = engine.encoder.prompt(Rendered.chat(PROMPTS[0].messages, "on")).tolist()
    quiet = engine.encoder.prompt(Rendered.chat(PROMPTS[0].messages, "off")).tolist()
    assert told != quiet
    answers = [c for c in made if c.prompt_id == PROMPTS[0].id and c.text]
    assert any(c.thought for c in answers)
    for c in answers:
        demonstration = Demonstration(PROMPTS[0], c.text)
        (row,), _ = encode([demonstration], loaded, 512, cut, known)
        learnt = [i for i in row["labels"] if i != -100]
        assert row["input_ids"] == told + learnt
        assert tuple(learnt) == known[c.prompt_id, c.text]
        other = Pair(PROMPTS[0], c.text, "Then wait.")
        (pair,), _ = encode_rows(
            [Preference(other, "preferred", 0.9)], loaded.encoder, 512, cut, known
        )
        assert pair.chosen.tolist()[-len(learnt) :] == learnt
    # an answer that nobody sampled stands where the policy does not think
    (row,), _ = encode([Demonstration(PROMPTS[0], "Then wait.")], loaded, 512)
    assert row["input_ids"][: len(quiet)] == quiet
    # unless it begins with a thought of its own
    own = "<think> it is good </think> Then wait."
    (row,), _ = encode([Demonstration(PROMPTS[0], own)], loaded, 512)
    begin, end = marks_of(engine)
    assert row["input_ids"][: len(told)] == told
    assert [row["input_ids"].count(m) for m in (begin, end)] == [1, 1]  # the template's own
    # without the setting all is as it was
    plain = load_policy(str(thinker)).encoder.sequence(PROMPTS[0], "Then wait.")
    assert plain[0].tolist() == engine.encoder.prompt(Rendered.chat(PROMPTS[0].messages)).tolist()


def test_rollouts_think_and_are_scored_by_their_answers(
    made: list[Completion], thinker: Path
) -> None:
    """The same weights, seed and settings: a rollout is what the engine samples, id by id."""
    loaded = load_policy(str(thinker), thinking=24)
    sampler = Sampler(loaded, temperature=1.5, max_new_tokens=DRAWN.limit)
    episodes = sampler.sample(loaded.model, PROMPTS, seed=3, n=4)
    assert [tuple(e.ids.tolist()) for e in episodes] == [c.ids for c in made]
    assert [e.text for e in episodes] == [c.text for c in made]
    assert all(len(e.logprobs) == len(e.ids) for e in episodes)  # the thought's too


def test_the_kl_is_of_the_thought_and_the_answer(engine: Any, made: list[Completion]) -> None:
    rows = [c for c in made if c.text]
    prompts = [next(p for p in PROMPTS if p.id == c.prompt_id) for c in rows]
    found = kl_to_base(
        engine, engine, prompts, [c.text for c in rows], ids=[c.ids for c in rows], thinking=24
    )
    assert (found.value, found.n) == (pytest.approx(0, abs=1e-6), len(rows))


def test_a_judge_reads_a_policys_thoughts_only_if_asked(tmp_path: Path) -> None:
    texts: list[str] = []

    def score(text: str, _: Any) -> list[float]:
        texts.append(text)
        return [-1.0, -2.0]

    said = [
        Completion("k0", PROMPTS[0].id, "p", 0, "Yes.", "stop", 4, thought="Hm, why not?"),
        Completion("k1", PROMPTS[0].id, "p", 1, "No.", "stop", 4),
        Completion("k2", PROMPTS[0].id, "p", 2, "Yes.", "stop", 4, thought="other"),
    ]
    (pair,) = make_pairs([PROMPTS[0]], said)
    assert pair.thoughts == ("Hm, why not?", "")
    assert pair.swap().thoughts == ("", "Hm, why not?")
    assert pair.swap().swap() == pair
    with RunStore(tmp_path / "r", command="test") as store:
        store.table("pairs").append([pair])
        assert store.table("pairs").read() == [pair]
    asks = expand([pair], (Principle(id="kind", compare="Kinder?"),))
    judge = PairwiseJudge(ScriptedEngine(score))
    plain = judge.judge(asks)
    assert not any("Hm" in text for text in texts)
    without = replace(pair, thoughts=None)
    keys = [judge.key(a) for a in expand([without], (Principle(id="kind", compare="Kinder?"),))]
    assert keys == [v.key for v in plain]  # of what is not shown nothing is in the key
    judge = PairwiseJudge(ScriptedEngine(score), PairwiseSettings(show_thoughts=True))
    texts.clear()
    shown = judge.judge(asks)
    assert all("Hm, why not?\n[end of thought]\n\nYes." in text for text in texts)
    assert not {v.key for v in shown} & set(keys)
    assert [v.pair_id for v in shown] == [pair.id] * 2
    config = load_config(None, ["judge.show_thoughts=true", "judge.method=cot"])
    assert make_judge(ScriptedEngine(), config.judge).shows_thoughts
    with pytest.raises(ConfigError, match=r"show_thoughts is of methods that read a pair's two"):
        load_config(None, ["judge.show_thoughts=true", "judge.method=listwise"])


def test_the_policys_thinking_is_in_every_sampling_of_a_run() -> None:
    config = load_config(None, ["policy.thinking=on", "sampling.max_new_tokens=100"])
    assert sampling_of(config).thinking == 1024
    assert sampling_of(config).limit == 1124
    assert sampling_of(load_config(None, [])).thinking is None


def test_a_run_whose_policy_thinks(
    thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling, labels, SFT on the best, DPO and the evaluation, by commands."""
    monkeypatch.chdir(tmp_path)
    sets = [
        f"policy.model={thinker}",
        "judge.model=tiny",
        "policy.thinking=12",
        "sampling.max_new_tokens=16",
        "sampling.temperature=1.2",
        "sampling.keep_cut=true",
        "sampling.n=3",
        "prompts.limit=8",
        "judge.min_mass=0",
        "judge.principles=[no-harm]",
        "preferences.min_margin=0",
        "train.limits=null",
        "train.sft={batch_size: 4}",
        "train.dpo.batch_size=4",
        "evaluate.prompts.limit=4",
    ]

    def run(*words: str) -> str:
        told = [word for one in sets for word in ("--set", one)]
        result = CliRunner().invoke(app, [*words, "--out", "r", *told], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    told = run("sample")
    store = RunStore("r", read_only=True)
    rows = store.table("completions").read()
    facts = store.read_manifest()["stages"]["sample"]
    cut = [c for c in rows if c.thought and not c.text and c.finish_reason == "length"]
    assert facts["thoughts"] == sum(bool(c.thought) for c in rows) > 0
    assert facts["thoughts_cut"] == len(cut)
    assert ("were cut within their thought" in told) is bool(cut)
    pairs = store.table("pairs").read()
    texts = {(c.prompt_id, c.text) for c in rows}
    assert all((p.prompt.id, t) in texts for p in pairs for t in (p.first, p.second))
    run("label")
    run("train", "sft")
    run("train", "dpo")
    run("eval", "winrate")
    with RunStore("r/evaluation", read_only=True) as kept:
        sampled = kept.table("completions").read()
    assert any(c.thought for c in sampled)
    kl = json.loads(Path("r/evaluation/policies.json").read_text())["dpo"]["kl"]
    assert kl["n"] > 0
    assert np.isfinite(kl["value"])
    assert "0 new" in run("sample")
    thoughtful = sum(p.thoughts is not None for p in pairs)
    assert thoughtful
    again = run("label", "--set", "judge.show_thoughts=true")
    assert f"({2 * thoughtful} new)" in again
