"""What makes training on a CPU faster: the same numbers, up to rounding, with fewer bytes moved.

On a GPU, in other precisions and under autocast, models compute as Transformers wrote them.
"""

from __future__ import annotations

import ctypes
import functools
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.engines.prepacked import TrainedLinear, is_plain

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def train_faster(model: nn.Module) -> None:
    """Changes a model's linear layers and RMS norms, for good; its weights stay theirs."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TrainedLinear
        elif _is_rms_norm(module):
            module.forward = MethodType(_normalise, module)
    if not torch.cuda.is_available():
        _keep_memory()


def _is_rms_norm(module: Any) -> bool:
    """Whether a module is Llama's RMSNorm by what it computes: Gemma's multiplies by 1 + w."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if eps is None or not isinstance(weight, Tensor) or not is_plain(weight) or weight.dim() != 1:
        return False
    with torch.no_grad():
        x = torch.linspace(-2, 3, len(weight))
        return torch.allclose(module(x), _RMSNorm.apply(x, weight, eps), rtol=1e-4, atol=1e-5)  # type: ignore[no-untyped-call]


def _normalise(self: Any, x: Tensor) -> Tensor:
    if is_plain(x) and is_plain(self.weight) and not torch.is_autocast_enabled("cpu"):
        return _RMSNorm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-any-return,no-untyped-call]
    return type(self).forward(self, x)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """w·x̂ with x̂ = x/√(mean x² + ε) (Zhang & Sennrich 2019, eq. 4), over the last of d dimensions.

    With g = w·∂y, ∂x = (g − x̂·mean(g·x̂))/√(mean x² + ε) and ∂w = Σ ∂y·x̂ over all rows. Autograd
    reads and writes two to three times as much for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        y: Tensor = unit * weight
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, weight, scale = ctx.saved_tensors
        d = len(weight)
        both = (grads[0] * unit).reshape(-1, d)
        along = torch.mv(both, weight).view(scale.shape)
        to_x = (grads[0] * weight).addcmul_(unit, along, value=-1 / d).mul_(scale)
        return to_x, both.sum(0) if ctx.needs_input_grad[1] else None, None


@functools.cache
def _keep_memory() -> None:
    """Has glibc keep what a pass frees for the next one, up to 2 GiB.

    Given back to the system, as it does with large blocks, every page of it is fetched and cleared
    again in the next pass.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
