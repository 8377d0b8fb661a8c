"""Which kernels for a CPU are used: the one place that decides, and that all others ask.

On a GPU, and while they are switched off (`cpu_kernels: false` in a config, `switch(False)` in
Python), models compute by the code of Transformers and PyTorch. Results are the same up to
rounding, so no key depends on it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rlaif.engines.faster import cpu_attention, last_layer, on_cpu
from rlaif.engines.faster.prepacked import Prepacked

_on = True


def switch(on: bool) -> bool:
    """Switches the kernels on or off for what this process loads from now on; returns what was."""
    global _on
    before, _on = _on, on
    return before


def applies(device: torch.device | str) -> bool:
    """Whether models on a device take kernels for a CPU."""
    return _on and torch.device(device).type == "cpu"


def train(model: nn.Module, device: torch.device | str) -> None:
    """Makes the layers of a model that is to compute on a device faster, for good."""
    if applies(device):
        on_cpu.train_faster(model)


def prepacked(model: nn.Module) -> Prepacked:
    """A model's weights laid out for faster products; no layer's where that does not apply."""
    weight = next(model.parameters(), None)
    fits = weight is not None and applies(weight.device)
    return Prepacked(model if fits else nn.Module())


def last_layer_at(model: nn.Module, where: Tensor) -> AbstractContextManager[None]:
    """While active, the last layer is computed at `where` only, if that applies (see
    `last_layer`)."""
    return last_layer.last_layer_at(model, where) if applies(where.device) else nullcontext()


def attends_by_products(q: Tensor, k: Tensor) -> bool:
    """Whether a piece of attention goes by oneDNN's products."""
    return applies(q.device) and cpu_attention.is_worth(q, k)
