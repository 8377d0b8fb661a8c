"""Sampling from a real model: seeded whatever the batch, and sensible."""

from __future__ import annotations

from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.records import Message


def ask(text: str, cue: str = "") -> Rendered:
    user = RenderedMessage("user", (Segment(text, True),))
    begun = RenderedMessage("assistant", (Segment(cue, False),))
    return Rendered((user, begun) if cue else (user,))


def test_a_sample_depends_on_its_prompt_and_seed_and_not_on_its_batch(engine: HFEngine) -> None:
    prompts = [
        ask("How do I bake bread?"),
        ask("Tell me a story about a bear, a fox and a hare. " * 4),
        ask("What is the capital of France?"),
    ]
    sampling = Sampling(n=2, max_new_tokens=12, seed=3)
    together = engine.generate(prompts, sampling)
    assert [engine.generate([prompt], sampling)[0] for prompt in prompts] == together
    texts = {sample.text for row in together for sample in row}
    assert len(texts) == 6
    assert engine.generate(prompts[:1], Sampling(n=2, max_new_tokens=12, seed=4)) != together[:1]


def test_it_counts_on(engine: HFEngine) -> None:
    prompt = ask("Count from one to ten.", "One, two, three, four,")
    (found,) = engine.generate([prompt], Sampling(n=1, temperature=0, max_new_tokens=8))[0]
    assert found.text.strip().startswith("five, six, seven"), found.text


def test_a_transcript_ends_where_the_human_would_speak_again(engine: HFEngine) -> None:
    turns = [Message("user", "Say hi."), Message("assistant", "Hi."), Message("user", "Say hi.")]
    prompt = Rendered.chat([*turns, Message("assistant", "Hi."), turns[0]])
    (found,) = engine.generate([prompt], Sampling(n=1, temperature=0, max_new_tokens=16))[0]
    assert (found.text, found.finish_reason) == ("Hi.", "stop")
