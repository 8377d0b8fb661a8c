"""What is told of a tokenizer that lost the token that begins a text.

tests/real measures it on a real model; here the model's answers are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlaif.engines.beginning import TEXT, lacks_beginning
from rlaif.engines.tokens import Encoder, Ids

VOCABULARY = 256
BOS = 1


def encoder(*, adds: bool = False, knows: bool = True, template: str | None = None) -> Encoder:
    """Of a tokenizer of words, which knows a <s> or not, and puts it in front or not."""
    words = ["<unk>", "<s>", *dict.fromkeys(TEXT.split()), "Human:", "Assistant:"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>" if knows else None
    )
    tokenizer.chat_template = template
    return Encoder(tokenizer, "models/x")


def reads(begun: float, plain: float, asked: list[Ids] | None = None):  # type: ignore[no-untyped-def]
    """A model that loses so many nats a token after its <s>, and without it."""

    def logprobs(ids: Ids) -> Sequence[float]:
        if asked is not None:
            asked.append(ids)
        nats = np.full(len(ids) - 1, begun if ids[0] == BOS else plain)
        nats[:7] = 50.0  # the first tokens of a text tell nothing
        return list(-nats)

    return logprobs


def test_a_model_that_is_broken_without_it_is_told_by_name_with_the_fix() -> None:
    told = lacks_beginning(encoder(), VOCABULARY, reads(2.3, 4.8))
    assert told is not None
    assert "models/x" in told
    assert "<s>" in told
    assert "2.3" in told
    assert "4.8" in told
    assert "add_bos_token = True" in told
    chat = "{% for m in messages %}{{ m.content }}{% endfor %} Assistant:"
    told = lacks_beginning(encoder(template=chat), VOCABULARY, reads(2.3, 4.8))
    assert told is not None
    assert "chat template begin with <s>" in told


def test_nothing_is_told_where_nothing_is_lost() -> None:
    assert lacks_beginning(encoder(), VOCABULARY, reads(2.3, 2.4)) is None
    assert lacks_beginning(encoder(), VOCABULARY, reads(2.4, 2.3)) is None


def test_a_model_that_knows_no_english_tells_nothing() -> None:
    assert lacks_beginning(encoder(), VOCABULARY, reads(5.5, 9.0)) is None
    assert lacks_beginning(encoder(), VOCABULARY, reads(float("nan"), 9.0)) is None


def test_nothing_is_computed_where_the_token_is_there_or_unknown() -> None:
    asked: list[Ids] = []
    chat = "{{ bos_token }} {% for m in messages %}{{ m.content }}{% endfor %} Assistant:"
    for one in (encoder(adds=True), encoder(knows=False), encoder(template=chat)):
        assert lacks_beginning(one, VOCABULARY, reads(2.3, 9.0, asked)) is None
    assert asked == []
