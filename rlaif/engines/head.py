"""A language model's head: computed where it is looked at, over few places at a time.

With a vocabulary of 262,144 the logits of a thousand places are a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from rlaif.errors import TrainingError

T = TypeVar("T")
LOGIT_BYTES = 2**29  # logits held at a time: 512 places of 262,144 tokens in float32


@contextmanager
def head_at(model: Any, where: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """While active, the model's logits are those of the places `where` only: (1, N, V).

    `where` (N,) are places in the flat (B·T). The head's input is cut down before the head, so
    scaling and soft-capping after it still happen. What is yielded fills with that input, (N, d);
    it stays empty where a model does not call its head.
    """
    kept: list[torch.Tensor] = []

    def cut(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]  # (B, T, d)
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, where.to(hidden.device))
        kept.append(picked)
        return (picked[None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(cut)
    try:
        yield kept
    finally:
        hook.remove()


def logits_at(model: Any, where: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, V) at some states, and what the head made them of, (N, d).

    `where` (N,) are places in the flat (b·S), `inputs` what the model takes.
    """
    from accelerate.utils import extract_model_from_parallel

    bare = extract_model_from_parallel(model)
    with head_at(bare, where) as kept:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    if not kept:
        raise TrainingError(
            f"{type(bare).__name__} computes its logits without calling its head "
            "(`get_output_embeddings()`), so rlaif cannot train it"
        )
    return logits[0], kept[0]


def in_parts(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items, in their order, in parts whose sizes sum to at most `most`, or of one item."""
    part: list[T] = []
    total = 0
    for item in items:
        if part and total + size(item) > most:
            yield part
            part, total = [], 0
        part.append(item)
        total += size(item)
    if part:
        yield part
