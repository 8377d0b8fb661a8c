from __future__ import annotations

from rlaif.engines.base import Sampling, ScriptedEngine
from rlaif.records import Completion, Prompt
from rlaif.steps.executors import Memory, run_sampling
from rlaif.steps.sampling import completion_keys, make_pairs

PROMPTS = [Prompt.user(f"q{i}") for i in range(7)]
ENGINE = ScriptedEngine(generator=lambda text, i: f"{text}#{i}")


def completion(prompt: Prompt, index: int, text: str, reason: str = "stop") -> Completion:
    return Completion(f"{prompt.id}{index}", prompt.id, "p", index, text, reason, 3)


def test_raising_n_adds_samples_and_keeps_those_that_exist() -> None:
    memory: Memory[Completion] = Memory()
    run_sampling(PROMPTS, ENGINE, Sampling(n=2), memory, chunk=3)
    before = list(memory.rows)
    done = run_sampling(PROMPTS, ENGINE, Sampling(n=3), memory, chunk=3)
    assert (done.new_rows, done.old_rows) == (7, 14)
    assert memory.rows[:14] == before
    assert {c.index for c in memory.rows[14:]} == {2}


def test_keys_cover_the_settings_but_not_n() -> None:
    base = completion_keys(ENGINE, Sampling(n=2), PROMPTS[0])
    assert completion_keys(ENGINE, Sampling(n=3), PROMPTS[0])[:2] == base
    others = [
        Sampling(n=2, temperature=0.5),
        Sampling(n=2, seed=1),
        Sampling(n=2, top_p=0.9),
        Sampling(n=2, max_new_tokens=5),
        Sampling(n=2, stop=("x",)),
    ]
    for other in others:
        assert not set(base) & set(completion_keys(ENGINE, other, PROMPTS[0]))


def test_all_pairs_of_different_completions() -> None:
    rows = [completion(PROMPTS[0], i, t) for i, t in enumerate(["a", "b", "a", "c"])]
    pairs = make_pairs(PROMPTS[:1], rows)
    assert [(p.first, p.second) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_prompts_without_a_pair_are_told_with_the_reason() -> None:
    rows = [
        completion(PROMPTS[0], 0, "a"),
        completion(PROMPTS[0], 1, "a"),
        completion(PROMPTS[1], 0, "a", "length"),
        completion(PROMPTS[1], 1, "b"),
        completion(PROMPTS[2], 0, ""),
        completion(PROMPTS[2], 1, "b"),
        completion(PROMPTS[3], 0, "", "too_long"),
    ]
    told: list[tuple[str, Prompt]] = []
    assert not make_pairs(PROMPTS[:4], rows, on_skip=lambda why, p: told.append((why, p)))
    assert [why for why, _ in told] == ["identical", "cut", "empty", "too_long"]
    assert len(make_pairs(PROMPTS[:4], rows, keep_cut=True)) == 1
