"""What makes training on a CPU faster: the same numbers, up to rounding, with fewer bytes moved.

On a GPU, in other precisions and under autocast, models compute as Transformers wrote them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.engines.faster.prepacked import TrainedLinear, is_plain

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def train_faster(model: nn.Module) -> None:
    """Changes a model's linear layers, RMS norms and rotations, for good; weights stay its own."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TrainedLinear
        elif _is_rms_norm(module):
            module.forward = MethodType(_normalise, module)
        elif (rotate := _own_rotation(module)) is not None:
            module.forward = MethodType(_rotating(type(module).forward, rotate), module)
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


_ROTATION = "apply_rotary_pos_emb"  # as modelling code of Transformers names it
Rotation = Callable[..., tuple[Tensor, Tensor]]


def _own_rotation(module: nn.Module) -> Rotation | None:
    """The function by which an attention layer turns queries and keys, if it is Llama's."""
    code: Any = type(module).forward
    own: Rotation | None = getattr(code, "__globals__", {}).get(_ROTATION)
    if own is None or _ROTATION not in code.__code__.co_names:
        return None
    q, k, cos, sin = torch.linspace(-1, 1, 4 * 24).view(4, 1, 2, 2, 6)
    try:
        wanted = own(q, k, cos[:, 0], sin[:, 0])
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None
    found = [_Rotation.apply(x, cos[:, :1], sin[:, :1]) for x in (q, k)]  # type: ignore[no-untyped-call]
    same = all(
        a.shape == b.shape and torch.allclose(a, b) for a, b in zip(wanted, found, strict=True)
    )
    return own if same else None


def _rotating(forward: Any, own: Rotation) -> Any:
    """A layer's `forward` with `_Rotation` in the place of `own` where that can be.

    The function is looked up by its name in the modelling code, so this copy of `forward` gets
    names of its own: other models' layers keep theirs.
    """

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **other: Any) -> Any:
        plain = all(map(is_plain, (q, k, cos, sin))) and not torch.is_autocast_enabled("cpu")
        usual = (q.dim(), k.dim(), cos.dim()) == (4, 4, 3) and not more and not other
        if not plain or not usual or not q.shape[-1] == k.shape[-1] == cos.shape[-1]:
            return own(q, k, cos, sin, *more, **other)
        cos, sin = cos[:, None], sin[:, None]  # for all heads
        return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    names = {**forward.__globals__, _ROTATION: rotate}
    copy = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


class _Rotation(torch.autograd.Function):
    """(x₁c₁ − x₂s₁, x₂c₂ + x₁s₂) of the two halves of x (Su et al. 2021, eq. 34, reordered).

    x (B, H, T, D), cosines and sines (B, 1, T, D), which get no gradient. Autograd moves three
    times as much for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (cos, sin), g = ctx.saved_tensors, grads[0]
        half = g.shape[-1] // 2
        to_x = g * cos
        to_x[..., :half].addcmul_(g[..., half:], sin[..., half:])
        to_x[..., half:].addcmul_(g[..., :half], sin[..., :half], value=-1)
        return to_x, None, None


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
