"""Thoughts on vLLM are those of the Transformers engine, and so are the labels behind them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.engines.base import Engine, Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import VLLMSettings
from rlaif.files.templates import Rendered, RenderedMessage, Segment, Thought

USER = RenderedMessage("user", (Segment("Which response is better?", True),))
CUE = RenderedMessage("assistant", (Segment("The better answer is", False),))


@pytest.fixture(scope="module", params=["added", "special", "text"])
def thinker(request: Any, folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose template opens a thought; its marks are tokens, or letters."""
    to = tmp_path_factory.mktemp("thinker") / request.param
    shutil.copytree(folder("qwen2"), to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    if request.param != "text":
        marks = ["<think>", "</think>"]
        tokenizer.add_tokens(marks, special_tokens=request.param == "special")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
    )
    tokenizer.save_pretrained(to)
    model = AutoModelForCausalLM.from_pretrained(to)
    assert len(tokenizer) <= model.config.vocab_size
    return to


@pytest.fixture(scope="module")
def engine(thinker: Path) -> Any:
    engine = load_engine(str(thinker), engine="vllm", vllm=VLLMSettings(cache_gib=0.25))
    yield engine
    engine.close()


def test_thoughts_and_labels_are_those_of_transformers(thinker: Path, engine: Engine) -> None:
    reference = HFEngine(str(thinker))
    prompts = [Rendered((USER,)), Rendered((USER, USER))]
    for drawn in (
        Sampling(n=1, temperature=0, max_new_tokens=0, thinking=20),
        Sampling(n=1, temperature=0, max_new_tokens=8, thinking=20),
    ):
        found, plain = engine.generate(prompts, drawn), reference.generate(prompts, drawn)
        assert found == plain
        assert all(len(g.ids) <= drawn.limit for row in found for g in row)
    for mode in ("off", "on", "open"):
        assert engine.thinking_id(mode) == reference.thinking_id(mode)
    asked = Rendered((USER, CUE))
    ids = tuple(plain[0][0].ids[:9])
    prompts = [asked.after(Thought("x", ids, cut)) for cut in (True, False)]
    prompts.append(Rendered(asked.messages, "off"))
    scores = engine.score(prompts, [[" A", " B"]] * 3)
    for one, other in zip(scores, reference.score(prompts, [[" A", " B"]] * 3), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_the_end_mark_ends_a_thought_and_stop_strings_do_not(engine: Any) -> None:
    drawn = Sampling(n=16, temperature=2.0, max_new_tokens=0, thinking=400)
    (row,) = engine.generate([Rendered((USER,))], drawn)
    end = engine.encoder.marks.end
    ended = [g for g in row if g.finish_reason == "stop"]
    assert all(end not in engine.encoder.decode(g.ids) for g in row)
    for g in row:
        assert (len(g.ids) == 400) is (g.finish_reason == "length")
    stops = Sampling(n=4, temperature=2.0, max_new_tokens=4, thinking=40, stop=("e", "a"))
    (row,) = engine.generate([Rendered((USER,))], stops)
    assert any("e" in g.thought for g in row)
    assert not any("e" in g.text for g in row)
    assert ended or engine.encoder.ids_of_mark(end) == []
