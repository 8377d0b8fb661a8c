"""RMS norms with a gradient of their own give what Transformers' give, and leave others alone."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlaif.training.on_cpu import _RMSNorm, train_faster


def norms(kind=LlamaRMSNorm):
    """A norm of 6 dimensions, and the same made faster."""
    torch.manual_seed(0)
    plain = kind(6, eps=1e-5)
    torch.nn.init.normal_(plain.weight)
    fast = copy.deepcopy(plain)
    train_faster(fast)
    return plain, fast


def taken(layer, x) -> bool:
    return "_RMSNorm" in type(layer(x).grad_fn).__name__


def test_by_hand():
    x = torch.tensor([[3.0, 4.0]])  # mean of squares 12.5
    found = _RMSNorm.apply(x, torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([[3 / 12.5**0.5, 8 / 12.5**0.5]]))


def test_against_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-3), (x, weight))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
def test_it_is_transformers_own(kind, shape):
    plain, fast = norms(kind)
    inputs = [torch.randn(shape)]
    inputs.append(inputs[0].clone())
    weights = torch.randn(shape)
    for layer, x in zip([plain, fast], inputs, strict=True):
        (layer(x.requires_grad_()) * weights).sum().backward()
    assert taken(fast, inputs[1])
    assert not taken(plain, inputs[0])
    torch.testing.assert_close(fast(inputs[1]), plain(inputs[0]))
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)


def test_rows_that_lie_apart():
    """Heads come as a transposed view, and so does their gradient."""
    plain, fast = norms()
    inputs = [torch.randn(2, 3, 4, 6)]
    inputs.append(inputs[0].clone())
    weights = torch.randn(2, 4, 3, 6).transpose(1, 2)
    for layer, x in zip([plain, fast], inputs, strict=True):
        (layer(x.requires_grad_().transpose(1, 2)).transpose(1, 2) * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)


def test_a_norm_that_computes_something_else_stays():
    _, fast = norms(GemmaRMSNorm)  # (1 + w)·x̂
    fast.variance_epsilon = fast.eps  # were it told by its names, it would be taken for Llama's
    train_faster(fast)
    assert not taken(fast, torch.randn(2, 6))


def test_a_frozen_weight_gets_no_gradient():
    _, fast = norms()
    x = torch.randn(2, 6, requires_grad=True)
    fast.requires_grad_(False)(x).sum().backward()
    assert fast.weight.grad is None
    assert x.grad is not None


def test_other_precisions_go_the_plain_way():
    plain, fast = norms()
    x = torch.randn(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
    assert torch.equal(fast(x.bfloat16()), plain(x.bfloat16()))
    assert torch.equal(fast.double()(x.double()), plain.double()(x.double()))
    assert fast.to("meta")(x.to("meta")).is_meta


def test_a_copy_has_weights_of_its_own():
    _, fast = norms()
    other, x = copy.deepcopy(fast), torch.randn(2, 6)
    with torch.no_grad():
        other.weight.mul_(2)
    torch.testing.assert_close(other(x), 2 * fast(x))
    assert taken(other, x)
