"""Thoughts over HTTP: told to think, told apart from the answer, never read for a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.constitution import Principle
from rlaif.engines.base import Sampling
from rlaif.engines.thinking import split_thought
from rlaif.judges.base import expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings, RationaleSettings, TextSettings
from rlaif.judges.text import TextJudge
from rlaif.records import Pair, Prompt
from rlaif.steps.sampling import completion_keys, sample_prompts

CHAT = "/v1/chat/completions"
PROMPT = Prompt.user("Is it A?")
KIND = (Principle(id="kind", compare="Which is kinder?"),)


def says(wire: Any, text: str | None, finish: str = "stop", **message: Any) -> Any:
    """A script of the server: each chat completion says this."""
    reply = wire.chat({}, text, finish, completion_tokens=7)
    reply.body["choices"][0]["message"] |= message
    return lambda path, *_: reply if path == CHAT else None


@pytest.mark.parametrize(
    ("owner", "thinking", "sent"),
    [
        ("vllm", None, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("vllm", 0, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ("sglang", 64, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ("else", None, {}),
        ("else", 0, {"reasoning_effort": "none"}),
        ("else", 64, {"reasoning_effort": "medium"}),
    ],
)
def test_what_each_server_is_told(
    server: Any, connect: Any, wire: Any, owner: str, thinking: int | None, sent: dict[str, Any]
) -> None:
    server.models = [{"id": "judge", "owned_by": owner}]
    server.script = says(wire, "A.")
    engine = connect()
    sample_prompts(engine, [PROMPT], Sampling(n=1, max_new_tokens=10, thinking=thinking))
    (body,) = server.bodies()
    told = {k: v for k, v in body.items() if k in ("chat_template_kwargs", "reasoning_effort")}
    assert told == sent
    assert body["max_tokens"] == 10 + (thinking or 0)  # the budget is on top of the answer's


def test_extra_fields_say_otherwise(server: Any, connect: Any, wire: Any) -> None:
    server.script = says(wire, "A.")
    engine = connect(extra_body={"reasoning_effort": "high", "temperature": None})
    sample_prompts(engine, [PROMPT], Sampling(n=1, thinking=64))
    (body,) = server.bodies()
    assert body["reasoning_effort"] == "high"
    assert "temperature" not in body


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("thinking", [None, 64])
def test_a_thought_that_is_told_apart_is_kept_apart(
    server: Any, connect: Any, wire: Any, name: str, thinking: int | None
) -> None:
    server.script = says(wire, "It is.", **{name: "Hm, is it B?"})
    (made,) = sample_prompts(connect(), [PROMPT], Sampling(n=1, thinking=thinking))
    assert (made.text, made.thought, made.tokens) == ("It is.", "Hm, is it B?", 7)


@pytest.mark.parametrize(
    ("text", "finish", "answer", "thought"),
    [
        ("<think>\nHm?\n</think>\n\nIt is.", "stop", "It is.", "Hm?"),
        ("Hm?\n</think>\n\nIt is.", "stop", "It is.", "Hm?"),  # its template opened it
        ("<think>Hm, hm, hm", "length", "", "Hm, hm, hm"),
        ("It is.", "stop", "It is.", ""),
        (None, "length", "", ""),
    ],
)
def test_a_thought_that_is_not_told_apart_is_known_by_its_marks(
    server: Any, connect: Any, wire: Any, text: str, finish: str, answer: str, thought: str
) -> None:
    server.script = says(wire, text, finish)
    (made,) = sample_prompts(connect(), [PROMPT], Sampling(n=1, thinking=64))
    assert (made.text, made.thought, made.finish_reason) == (answer, thought, finish)
    (made,) = sample_prompts(connect(), [PROMPT], Sampling(n=1))  # nobody asked for thoughts
    assert (made.text, made.thought) == (text or "", "")


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("[THINK]Hm?[/THINK]A.", ("Hm?", "A.")),
        ("<|channel>thought\nHm?\n<channel|>A.", ("Hm?", "A.")),
        ("<seed:think>Hm?</seed:think>A.", ("Hm?", "A.")),
        (
            "<|channel|>analysis<|message|>Hm?<|end|><|start|>assistant<|channel|>final"
            "<|message|>A.",
            ("Hm?", "A."),
        ),
        ("Put it into <b> marks.", ("", "Put it into <b> marks.")),
    ],
)
def test_the_marks_of_families(text: str, parted: tuple[str, str]) -> None:
    assert split_thought(text) == parted


def test_half_a_character_in_a_thought_costs_its_row(server: Any, connect: Any, wire: Any) -> None:
    server.script = says(wire, "A.", reasoning="\ud83d")
    with pytest.warns(UserWarning, match="half a character"):
        (made,) = sample_prompts(connect(), [PROMPT], Sampling(n=1, thinking=64))
    assert (made.text, made.thought, made.finish_reason) == ("", "", "malformed")


def test_a_judge_reads_its_verdict_and_not_its_thought(
    server: Any, connect: Any, wire: Any
) -> None:
    """Without log-probabilities: `text` is the method for servers of models that think."""
    pair = Pair(PROMPT, "Yes.", "No.")
    asks = expand([pair], KIND)
    judge = TextJudge(
        connect(), TextSettings(rationale=RationaleSettings(max_new_tokens=32), thinking=64)
    )
    server.script = says(wire, "So: [[A]]", reasoning_content="[[B]], surely [[B]]")
    first, second = judge.judge(asks)
    assert (first.p_first, second.p_first) == (1.0, 0.0)
    assert first.thoughts == ("[[B]], surely [[B]]",)
    assert first.rationales == ("So: [[A]]",)
    assert server.bodies()[-1]["max_tokens"] == 96
    server.script = says(wire, "", "length", reasoning_content="[[B]]")
    first, _ = judge.judge(asks)
    assert (first.reason, first.thoughts_cut, first.tokens) == ("cut", 1, 7)
    server.script = says(wire, "So: [[A]]", reasoning_content="unasked")  # it thinks all the same
    first, _ = TextJudge(connect()).judge(asks)
    assert (first.p_first, first.thoughts) == (1.0, ("unasked",))


def test_how_a_server_is_told_is_in_the_keys(server: Any, connect: Any) -> None:
    engine = connect()
    (ask, _) = expand([Pair(PROMPT, "Yes.", "No.")], KIND)
    keys = {TextJudge(engine, TextSettings(thinking=t)).key(ask) for t in (None, 0, 64, 65)}
    assert len(keys) == 4
    ways = [Sampling(n=1, thinking=t) for t in (None, 0, 64)]
    assert len({completion_keys(engine, way, PROMPT)[0] for way in ways}) == 3
    # labels by log-probability: the model is told not to think
    quiet = PairwiseJudge(engine, PairwiseSettings(thinking=False))
    assert quiet.judge([ask])[0].p_first is not None
    assert server.bodies()[-1]["reasoning_effort"] == "none"
