"""Models that think: what each family's template is told, and where its thought begins and ends.

The templates are those that TRL ships of the published families, and small ones written after
others. Tokenizers have the marks as special tokens, as added ones and as plain text.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thinking_templates import OWN

from rlaif.engines.base import Sampling
from rlaif.engines.tokens import Encoder
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment, Thought

_found = importlib.util.find_spec("trl")
SHIPPED = Path(_found.origin).parent / "chat_templates" if _found and _found.origin else Path()

# family: the ends of its prompt when thinking is off, left to it, and begun; and what closes a
# thought that was cut, up to where the answer begins
ENDS = {
    "qwen3": ("<think>\n\n</think>\n\n", "assistant\n", "<think>\n", "\n</think>\n\n"),
    "qwen3_5_think": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n", "\n</think>\n\n"),
    "qwen3_5_nothink": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n", "\n</think>\n\n"),
    "qwen3_8": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n", "\n</think>\n\n"),
    "deepseek_r1_distill": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n", "\n</think>\n\n"),
    "glm4moe": ("<think></think>", "<|assistant|>", "<|assistant|>\n<think>", "</think>"),
    "gptoss": (
        "<|start|>assistant<|channel|>final<|message|>",
        "<|start|>assistant",
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "muse_glimmer": (
        "<|start|>assistant to=user<|message|>",
        "<|start|>assistant",
        "<|start|>assistant to=self<|message|>",
        "<|eom|><|start|>assistant to=user<|message|>",
    ),
    "gemma4_v5": ("model\n", "model\n", "model\n<|channel>thought\n", "\n<channel|>"),
    "nemotron_3_nano": ("<think></think>", "<think>\n", "<think>\n", "\n</think>"),
    "lfm2_2_5": ("<think></think>", "assistant\n", "assistant\n<think>", "</think>"),
    "deepseek-v3.1": ("</think>", "<think>", "<think>", "</think>"),
    "granite-3.3": (
        "<|end_of_role|>",
        "<|end_of_role|>",
        "<|end_of_role|><think>",
        "</think>\n<response>",
    ),
    "smollm3": ("<think>\n\n</think>\n", "assistant\n", "<think>\n", "\n</think>\n"),
    "magistral": ("[/INST][THINK][/THINK]", "[/INST]", "[/INST][THINK]", "[/THINK]"),
    "mistral-effort": ("[/INST]", "[/INST]", "[/INST][THINK]", "[/THINK]"),
    "kimi-k2-thinking": ("<think></think>", "<|im_middle|>", "<|im_middle|><think>", "</think>"),
    "seed-oss": ("</seed:think>", "assistant\n", "assistant\n<seed:think>", "</seed:think>"),
    "command-a": (
        "<|START_THINKING|><|END_THINKING|>",
        "bot<|START_THINKING|>",
        "bot<|START_THINKING|>",
        "<|END_THINKING|>",
    ),
    "always": ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n", "\n</think>\n\n"),
}
TOLD = {  # what tells a family to think that does not show at the prompt's end
    "granite-3.3": "Write your thoughts",
    "smollm3": "Reasoning Mode: /think",
    "mistral-effort": '"reasoning_effort": "high"',
    "gemma4_v5": "<|think|>",
}
NOT_TOLD = {
    "glm4moe": "/nothink",
    "smollm3": "Reasoning Mode: /no_think",
    "gptoss": "Reasoning: low",
    "mistral-effort": '"reasoning_effort": "none"',
}
MARKS = [
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<seed:think>",
    "</seed:think>",
    "<channel|>",
    "<|channel>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|eom|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
]


def source_of(family: str) -> str:
    if family in OWN:
        return OWN[family]
    path = SHIPPED / f"{family}.jinja"
    if not path.is_file():
        pytest.skip(f"the installed TRL ships no chat template {family}")
    return path.read_text()


@pytest.fixture(scope="module")
def encoder_of(tokenizers: Any) -> Any:
    """Makes an encoder: by family, and by what the marks of its thoughts are in the vocabulary."""

    def make(family: str, marks: str = "added") -> Encoder:
        tokenizer = tokenizers["bytelevel"](source_of(family))
        if marks != "text":
            new = [m for m in MARKS if m not in tokenizer.get_vocab()]
            tokenizer.add_tokens(new, special_tokens=marks == "special")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Encoder(tokenizer, family)

    return make


USER = RenderedMessage("user", (Segment("Which?", True),))
CUE = RenderedMessage("assistant", (Segment("Answer:", False),))


def text_of(encoder: Encoder, prompt: Rendered) -> str:
    return str(encoder.tokenizer.decode(encoder.prompt(prompt).tolist()))


@pytest.mark.parametrize("family", ENDS)
def test_what_each_family_is_told_and_how_its_prompt_ends(family: str, encoder_of: Any) -> None:
    encoder = encoder_of(family)
    off, on, begun, close = ENDS[family]
    told = {mode: text_of(encoder, Rendered((USER,), mode)) for mode in ("off", "on", "open")}
    assert told["off"].endswith(off)
    assert told["on"].endswith(on)
    assert told["open"].endswith(begun)
    assert TOLD.get(family, "") in told["on"]
    assert TOLD.get(family, "") in told["open"]
    assert NOT_TOLD.get(family, "") in told["off"]
    assert family not in TOLD or TOLD[family] not in told["off"]
    asked = Rendered((USER, CUE))
    assert text_of(encoder, asked.after(Thought("Hm.", (), True))) == (
        f"{told['open']}Hm.{close}Answer:"
    )
    whole = text_of(encoder, asked.after(Thought("Hm.\n", (), False)))
    assert whole == f"{told['open']}Hm.\n{encoder.marks.after}Answer:"
    assert encoder.marks.after in close
    # the labels are read behind what keeps the model from thinking, too
    assert text_of(encoder, Rendered((USER, CUE), "off")) == f"{told['off']}Answer:"


def test_without_the_setting_a_prompt_is_what_it_was(encoder_of: Any) -> None:
    for family in ("qwen3", "always", "deepseek-v3.1", "command-a"):
        text = text_of(encoder_of(family), Rendered((USER, CUE)))
        assert text.rstrip().endswith("Answer:")
        assert "think" in text.lower()
    # but a verdict is not read inside the header of a message
    assert text_of(encoder_of("gptoss"), Rendered((USER, CUE))).endswith(
        "<|start|>assistant<|channel|>final<|message|>Answer:"
    )


def test_a_model_that_knows_no_thought_is_refused_by_name(encoder_of: Any) -> None:
    for family in ("none", "qwen2_5"):
        encoder = encoder_of(family)
        with pytest.raises(EngineError, match=f"{family} cannot think: its .*template knows no"):
            encoder.thinking_id("on")
        assert encoder.thinking_id("off")  # it does not, anyway
    bare = encoder_of("none")
    bare.transcript = True
    with pytest.raises(EngineError, match="cannot think: it has no chat template"):
        bare.thinking_id("open")


def test_how_a_model_is_told_is_in_the_keys(encoder_of: Any) -> None:
    ids = [
        encoder_of(f).thinking_id(m) for f in ("qwen3", "smollm3") for m in ("off", "on", "open")
    ]
    assert len(set(ids)) == 6
    assert encoder_of("qwen3").thinking_id("on") == ids[1]


# What each family writes of itself: its thought, the end, its answer.
SPOKEN = {
    "qwen3": "<think>\nHm, A?\n</think>\n\nIt is A.",
    "qwen3_5_think": "Hm, A?\n</think>\n\nIt is A.",
    "deepseek-v3.1": "Hm, A?</think>It is A.",
    "glm4moe": "\n<think>Hm, A?</think>\nIt is A.",
    "gptoss": "<|channel|>analysis<|message|>Hm, A?<|end|><|start|>assistant<|channel|>final"
    "<|message|>It is A.",
    "gemma4_v5": "<|channel>thought\nHm, A?\n<channel|>It is A.",
    "granite-3.3": "<think>Hm, A?</think>\n<response>It is A.</response>",
    "magistral": "[THINK]Hm, A?[/THINK]It is A.",
    "kimi-k2-thinking": "<think>Hm, A?</think>It is A.",
    "seed-oss": "<seed:think>Hm, A?</seed:think>It is A.",
    "command-a": "Hm, A?<|END_THINKING|>It is A.",
    "always": "Hm, A?\n</think>\n\nIt is A.",
}


@pytest.mark.parametrize("marks", ["added", "special", "text"])
@pytest.mark.parametrize("family", SPOKEN)
def test_a_thought_is_kept_apart_from_its_answer(family: str, marks: str, encoder_of: Any) -> None:
    encoder = encoder_of(family, marks)
    end = encoder.tokenizer.eos_token_id
    ids = encoder.tokenizer(SPOKEN[family])["input_ids"]
    said = encoder.said([*ids, end], (), "on")
    assert (said.thought, said.text, said.thinking) == ("Hm, A?", "It is A.", False)
    # cut inside the thought: no answer, and nothing of the thought for one
    inside = ids[: encoder._find(ids, encoder.marks.turn)[0]]
    said = encoder.said(inside, (), "on")
    assert said.text == ""
    assert said.thinking
    assert said.thought.startswith("Hm, A?")
    # what a stop string of the answer is in a thought ends nothing
    assert encoder.said(ids, (", A?", " A."), "on").text == "It is"
    # nobody asked for thoughts: the text is the text, as ever
    assert encoder.said(ids, (), None).text == encoder.completion(ids, ())


@pytest.mark.parametrize("family", ["qwen3", "gptoss", "magistral"])
def test_an_answer_without_a_thought_is_an_answer(family: str, encoder_of: Any) -> None:
    encoder = encoder_of(family)
    for text in ("It is A.", "Put it into <b> marks."):
        said = encoder.said(encoder.tokenizer(text)["input_ids"], (), "on")
        assert (said.text, said.thought, said.thinking) == (text, "", False)
    spoken = encoder.tokenizer(f"Of {encoder.marks.begin.strip()} I know.")["input_ids"]
    assert not encoder.said(spoken, (), "on").thinking


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_ids_of_a_thought_come_back_behind_its_mark(encoder_of: Any, data: Any) -> None:
    """The ids of a thought sampled alone, and the prompt that goes on after it, id by id."""
    marks = data.draw(st.sampled_from(["added", "special", "text"]))
    encoder = _encoders.setdefault(marks, encoder_of("always", marks))
    vocabulary = encoder.tokenizer
    taken = set(vocabulary.added_tokens_decoder)
    words = st.lists(
        st.integers(0, len(vocabulary) - 1).filter(lambda i: i not in taken), max_size=10
    )
    thought = data.draw(words)
    if "</think" in vocabulary.decode(thought):
        return
    end = vocabulary("</think>")["input_ids"]
    drawn = Sampling(n=1, max_new_tokens=0, thinking=64)
    found = encoder.generation([*thought, *end], "stop", drawn, "open")
    assert found.text == ""
    assert list(found.ids) == thought
    assert encoder.ends_thought([*thought, *end])
    asked = Rendered((USER, CUE)).after(Thought(found.thought, found.ids, cut=False))
    begun = encoder.prompt(Rendered((USER,), "open")).tolist()
    whole = encoder.prompt(asked).tolist()
    assert whole[: len(begun) + len(thought)] == begun + thought
    behind = vocabulary.decode(whole[len(begun) + len(thought) :])
    assert behind == "</think>\n\nAnswer:"


_encoders: dict[str, Encoder] = {}


# ---- the engine


@pytest.fixture(scope="module")
def thinker(make_engine: Any, tokenizers: Any) -> Any:
    tokenizer = tokenizers["bytelevel"](source_of("always"))
    tokenizer.add_tokens(["</think>"])
    return make_engine("qwen3", tokenizer=tokenizer)


def test_thoughts_are_sampled_up_to_their_budget_or_their_end(thinker: Any) -> None:
    prompts = [Rendered((USER,)), Rendered((USER, USER))]
    end = thinker.tokenizer.convert_tokens_to_ids("</think>")
    rows = thinker.generate(prompts, Sampling(n=6, temperature=3.0, max_new_tokens=0, thinking=200))
    ends = {g.finish_reason for row in rows for g in row}
    assert ends == {"stop", "length"}  # with these weights and this seed
    for prompt, row in zip(prompts, rows, strict=True):
        for found in row:
            assert found.text == ""
            assert end not in found.ids
            if found.finish_reason == "length":
                assert found.tokens == len(found.ids) == 200
            else:
                assert found.tokens == len(found.ids) + 1 <= 200
        # a longer budget has the same beginning
        again = thinker.generate(
            [prompt], Sampling(n=6, temperature=3.0, max_new_tokens=0, thinking=60)
        )
        for short, long in zip(again[0], row, strict=True):
            assert short.ids == long.ids[: len(short.ids)]


def test_the_budget_of_a_thought_is_on_top_of_the_answers(thinker: Any) -> None:
    drawn = Sampling(n=4, temperature=3.0, max_new_tokens=30, thinking=170)
    (row,) = thinker.generate([Rendered((USER,))], drawn)
    end = thinker.tokenizer.convert_tokens_to_ids("</think>")
    assert any(len(g.ids) == 200 for g in row)
    for found in row:
        assert len(found.ids) <= 200
        assert found.tokens == len(found.ids)
        if end in found.ids:
            assert found.thought
        else:
            assert found.text == ""
            assert found.thought


def test_labels_after_a_thought_are_those_of_a_plain_pass(thinker: Any) -> None:
    asked = Rendered((USER, CUE))
    drawn = Sampling(n=2, temperature=1.0, max_new_tokens=0, thinking=16)
    (row,) = thinker.generate([asked.without_cue()], drawn)
    prompts = [asked.after(Thought(g.thought, g.ids, g.finish_reason == "length")) for g in row]
    scores = thinker.score(prompts, [[" A", " B"]] * 2)
    encoder = thinker.encoder
    for found, generation in zip(scores, row, strict=True):
        gap = "\n" * (generation.finish_reason == "length")  # the end mark is put in
        close = encoder.tokenizer(f"{gap}</think>\n\n")["input_ids"]
        ids = [
            *encoder.prompt(Rendered((USER,), "on")).tolist(),
            *generation.ids,
            *close,
            *encoder.tokenizer("Answer:")["input_ids"],
        ]
        for text, value in zip((" A", " B"), found.logprobs, strict=True):
            option = encoder.option(text).tolist()
            with torch.no_grad():
                logits = thinker.model(torch.tensor([ids + option])).logits[0].double()
            steps = logits.log_softmax(-1)
            plain = sum(float(steps[len(ids) - 1 + j, t]) for j, t in enumerate(option))
            assert value == pytest.approx(plain, abs=1e-5)
    assert not np.isclose(scores[0].logprobs[0], scores[1].logprobs[0])
