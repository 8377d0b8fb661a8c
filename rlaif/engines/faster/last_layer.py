"""The last decoder layer, and the head, computed only at the states that are looked at.

Nothing attends to what the last layer makes, so of a sequence whose head is read at its completion,
the prompt's part of that layer is computed for nothing, forwards and backwards: queries, the
projection after attention and the feed-forward network. Keys and values are needed everywhere.

Simplified away: mixtures of experts, whose feed-forward layer returns more than its result, and
gradient checkpointing, which calls the layers again later. They go the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BY_STATE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # each works on every state by itself
_PLAIN_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@contextmanager
def last_layer_at(model: nn.Module, where: Tensor) -> Iterator[None]:
    """While active, the last hidden states (b, S, d) are right at `where` only.

    `where` (N,) are places in the flat (b·S). Logits, values and gradients that depend on no other
    states are what they are without.
    """
    hooks = []
    for part in _parts(model):
        cut = _Cut(where)
        hooks += [part.register_forward_pre_hook(cut.take), part.register_forward_hook(cut.put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: nn.Module) -> list[nn.Module]:
    """The modules of the last layer that may be cut; none where the layer is of another make."""
    if getattr(model, "is_gradient_checkpointing", False):
        return []
    stacks = [m for n, m in model.named_modules() if n.split(".")[-1] == "layers"]
    if len(stacks) != 1 or not isinstance(stacks[0], nn.ModuleList):
        return []
    named = dict(stacks[0][-1].named_modules())
    if not all(name in named for name in _BY_STATE):
        return []
    if {name for name, _ in named["mlp"].named_children()} != _PLAIN_MLP:
        return []
    return [named[name] for name in _BY_STATE]


class _Cut:
    """Hands a module the rows `where` of its input, and puts its result back among zeros."""

    def __init__(self, where: Tensor) -> None:
        self._where, self._shape = where, torch.Size()

    def take(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        x = args[0]  # (b, S, d)
        self._shape = x.shape[:-1]
        return (x.reshape(-1, x.shape[-1]).index_select(0, self._where)[None], *args[1:])

    def put(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        rows = out[0]  # (N, e)
        whole = rows.new_zeros(self._shape.numel(), rows.shape[-1])
        return whole.index_copy(0, self._where, rows).reshape(*self._shape, -1)
