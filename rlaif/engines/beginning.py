"""Whether a model is fed as it was trained: with the token that begins a text, if it knows one.

Some folders hold a tokenizer that lost this token on its way from one format to another. Nothing
fails then: Gemma without its <bos> still answers, and loses two to four nats on every token. What a
config declares does not tell such a folder from a model that was trained without (GPT-2, most of
the Qwen family), so it is measured, on a plain English text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rlaif.engines.tokens import Encoder, Ids
from rlaif.files.templates import Rendered
from rlaif.records import Message

TEXT = (
    "The sun rises in the east and sets in the west. Water is made of hydrogen and oxygen, and it "
    "freezes when it is cold. Most people sleep at night and work during the day."
)
WORSE = 1.0  # nats a token; Gemma 3 270M loses 2.5 to 3.8, a model trained without it about none
_SETTLED = 8  # tokens at the beginning that are not counted: the first of a text is anyone's guess


def lacks_beginning(
    encoder: Encoder, vocabulary: int, logprobs: Callable[[Ids], Sequence[float]]
) -> str | None:
    """What is wrong if the model reads a text much better after its beginning-of-sequence token
    and the tokenizer puts none there; None if all is well or it knows no such token.

    `logprobs(ids)` are the log-probabilities of ids[1:], each given all before it. A model that is
    no better than chance tells nothing.
    """
    bos = encoder.tokenizer.bos_token_id
    ids = encoder.prompt(Rendered.chat((Message("user", TEXT),)))
    if bos is None or len(ids) <= 2 * _SETTLED or bos in ids[:4]:
        return None
    begun = -float(np.mean(logprobs(np.concatenate([[bos], ids]).astype(np.int32))[_SETTLED:]))
    plain = -float(np.mean(logprobs(ids)[_SETTLED - 1 :]))
    if not begun < math.log(vocabulary) - 1 or not plain > begun + WORSE:
        return None
    token = encoder.tokenizer.bos_token
    fix = (
        "load its tokenizer by AutoTokenizer, set tokenizer.add_bos_token = True and save it there"
        if encoder.transcript
        else f"have its chat template begin with {token}"
    )
    return (
        f"{encoder.name} is broken as it is: its tokenizer puts no {token} in front of a text, and "
        f"the model reads plain English at {begun:.1f} nats a token with it and at {plain:.1f} "
        f"without. To mend the folder, {fix}; or take the tokenizer of the original model"
    )
