"""Linear layers on a CPU in float32, with weights laid out for oneDNN's kernels.

A matrix product spends a tenth of its time on bringing the weights into the order that its kernel
reads. Here that is done once. A gated feed-forward layer, act(x·G) * (x·U)·D, has its activation
and its product done while the results are still in the cache: SiLU, as Llama, Qwen and Mistral have
it, and the GELUs of Gemma and others.

Weights that are trained change too often for that. `TrainedLinear` has the same kernels read them
as they lie. Large products are still faster so than the library's own, forwards and to the gradient
of what came in (on processors that MKL is not made for).

Simplified away: other activations, other precisions, and models so large that the second copy of
their weights would be felt. They go the plain way.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

LIMIT = 4 << 30  # bytes of weights of which a second copy is made
# Multiply-adds of a product from which on oneDNN's is faster: it makes a kernel for every number of
# rows it first meets, in about 1 ms.
_WORTH = 1 << 26
# Multiply-adds of a product below which the library's own is faster than a prepacked one, as in a
# decoding step of a small model.
_FEW = 1 << 22
_SIZES = (1.0, 1e6)  # of the inputs on which a gated layer is tried
_ROWS = 512  # of an input, for which the kernels' layout is chosen: any number gives right results

_GATED = ("gate_proj", "up_proj", "down_proj")

Forward = Callable[[torch.Tensor], torch.Tensor]
Then = tuple[str, list[float], str]  # what oneDNN does to a product: name, numbers, algorithm
_NOTHING: Then = ("none", [], "")
_SILU: Then = ("swish", [1.0], "")


class Prepacked:
    """The faster forwards of a model's layers, put in their place while `active`.

    The weights are copied when this is made, and small products read the model's own: it is of no
    use to a model that is trained meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        layers: list[Any] = [m for m in model.modules() if type(m) in (nn.Linear, TrainedLinear)]
        if not _possible([layer.weight for layer in layers]):
            layers = []
        packed = {id(m): _pack(m) for m in layers}
        self._forwards: list[tuple[nn.Module, Forward]] = [
            (m, _linear(m, packed[id(m)])) for m in layers
        ]
        for module in model.modules():
            parts: list[Any] = [getattr(module, name, None) for name in _GATED]
            then = _then(getattr(module, "act_fn", None))
            if then and all(id(p) in packed for p in parts):
                gated = _gated(parts, [packed[id(p)] for p in parts], then)
                if _is_all(module, gated, parts[0].weight):
                    self._forwards.append((module, _if_worth(module, gated, parts[0].weight)))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model runs with these forwards while inside, unless autocast takes another way."""
        forwards = [] if torch.is_autocast_enabled("cpu") else self._forwards
        for module, forward in forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in forwards:
                del module.forward  # the class's own shows again


class TrainedLinear(nn.Linear):
    """A linear layer whose products are oneDNN's where that can be and pays; else `nn.Linear`'s."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        worth = x.numel() * self.weight.shape[0] >= _WORTH
        if worth and not torch.is_autocast_enabled("cpu") and x.is_cpu and is_readable(self.weight):
            return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(x)


class _Product(torch.autograd.Function):
    """x·Wᵀ + b and its gradients. The weights' own gradient is no faster by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, Any, Any]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = grads[0].reshape(-1, weight.shape[0])
        return (
            product(grads[0].contiguous(), weight.t(), None) if to_x else None,
            rows.t() @ x.reshape(-1, weight.shape[1]) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )


def _possible(weights: list[torch.Tensor]) -> bool:
    return all(map(is_readable, weights)) and sum(w.nbytes for w in weights) <= LIMIT


def is_plain(x: torch.Tensor) -> bool:
    """Float32 on a CPU, and whole: not a share of a weight spread over processes."""
    return x.is_cpu and x.dtype == torch.float32 and type(x) in (torch.Tensor, nn.Parameter)


def is_readable(weight: torch.Tensor) -> bool:
    """Whether oneDNN reads these weights."""
    return is_plain(weight) and _onednn()


@functools.cache
def _onednn() -> bool:
    return torch.backends.mkldnn.is_available()  # type: ignore[no-any-return,no-untyped-call]


def _then(activation: Any) -> Then | None:
    """An activation, as oneDNN knows it."""
    name = type(activation).__name__
    if name in ("SiLU", "SiLUActivation"):
        return _SILU
    if name == "GELUTanh" or (name == "GELU" and activation.approximate == "tanh"):
        return "gelu", [], "tanh"
    return ("gelu", [], "none") if name in ("GELU", "GELUActivation") else None


def _pack(layer: Any) -> torch.Tensor:
    weight = layer.weight.detach()
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)  # type: ignore[no-any-return]


def _linear(layer: Any, weight: torch.Tensor) -> Forward:
    bias, width = layer.bias, layer.weight.shape[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() * width < _FEW:
            return torch.nn.functional.linear(x, layer.weight, bias)
        return product(x, weight, bias)

    return forward


def _gated(layers: list[Any], weights: list[torch.Tensor], then: Then) -> Forward:
    """Of gate, up and down."""
    biases, (gate, up, down) = [layer.bias for layer in layers], weights

    def forward(x: torch.Tensor) -> torch.Tensor:
        hidden = product(x, gate, biases[0], then)
        hidden = torch.ops.mkldnn._linear_pointwise.binary(x, hidden, up, biases[1], "mul")
        return product(hidden, down, biases[2])

    return forward


@torch.no_grad()
def _is_all(module: Any, gated: Forward, gate: torch.Tensor) -> bool:
    """Whether a layer with these parts does nothing else: Gemma 3n's drops most of what its gate
    lets through, DeepSeek V4's clamps what is large, which shows with large inputs only."""
    x = torch.linspace(-3, 3, 8 * gate.shape[1]).sin().view(8, -1)
    with torch.autocast("cpu", enabled=False):
        for size in _SIZES:
            own = type(module).forward(module, size * x)
            near = 1e-4 * float(own.abs().max())
            if not torch.allclose(gated(size * x), own, rtol=1e-3, atol=near):
                return False
    return True


def _if_worth(module: Any, gated: Forward, gate: torch.Tensor) -> Forward:
    width, plain = gate.shape[0], type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        return plain(module, x) if x.numel() * width < _FEW else gated(x)

    return forward


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, then: Then = _NOTHING
) -> torch.Tensor:
    """x·Wᵀ + b by oneDNN, and `then` to it, for weights that are `is_readable` or laid out."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *then)  # type: ignore[no-any-return]
