"""Norms and rotations with gradients of their own: Transformers' numbers, other kinds untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlaif.engines.faster.on_cpu import _RMSNorm, _Rotation, train_faster


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


def angles(tokens: int, dims: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (2, tokens, dims), of angles that differ in every dimension."""
    angle = torch.arange(2 * tokens * dims, dtype=dtype).view(2, tokens, dims)
    return angle.cos(), angle.sin()


def test_a_rotation_by_hand():
    """A quarter turn takes (x₁, x₂) to (−x₂, x₁)."""
    x, cos, sin = torch.tensor([[[[3.0, 4.0]]]]), torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    assert _Rotation.apply(x, cos, sin).flatten().tolist() == [-4.0, 3.0]


def test_a_rotation_is_transformers_own():
    """Angles of the two halves differ here, as no model has them: each must go to its own half."""
    torch.manual_seed(0)
    (cos, sin), weights = angles(5, 6), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    plain = torch.randn(2, 5, 3, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    own = plain.detach().requires_grad_()
    wanted = apply_rotary_pos_emb(plain, plain, cos, sin)[0]
    found = _Rotation.apply(own, cos[:, None], sin[:, None])
    torch.testing.assert_close(found, wanted)
    for y in (wanted, found):
        (y * weights).sum().backward()
    torch.testing.assert_close(own.grad, plain.grad)


def test_a_rotation_against_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    cos, sin = angles(4, 6)
    assert torch.autograd.gradcheck(lambda x: _Rotation.apply(x, cos[:, None], sin[:, None]), x)


SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def models(shape: str):
    """A model with random weights, and the same made faster."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIG_MAPPING[shape](**SIZES)).train()
    fast = copy.deepcopy(plain)
    train_faster(fast)
    return plain, fast


def rotations(model) -> int:
    """How many of a pass's rotations are ours: two a layer."""
    met, seen, todo = 0, set(), [model(IDS).logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            met += "_Rotation" in type(node).__name__
            todo.extend(n for n, _ in node.next_functions)
    return met


@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "mixtral"])
def test_a_model_with_rotations_of_its_own(shape):
    plain, fast = models(shape)
    assert (rotations(plain), rotations(fast)) == (0, 4)
    for model in (plain, fast):
        model(IDS).logits.log_softmax(-1)[..., 7].sum().backward()
    torch.testing.assert_close(fast(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)
    wanted = dict(plain.named_parameters())
    for name, weight in fast.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ["cohere", "glm"])  # pairs side by side, not halves
def test_rotations_of_other_kinds_stay(shape):
    plain, fast = models(shape)
    assert rotations(fast) == 0
    torch.testing.assert_close(fast(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)


def test_rotations_of_other_precisions_go_the_plain_way():
    plain, fast = models("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert rotations(fast) == 0
        assert torch.equal(fast(IDS).logits, plain(IDS).logits)
    assert rotations(fast.bfloat16()) == 0
    assert torch.equal(fast(IDS).logits, plain.bfloat16()(IDS).logits)


def test_rotations_of_a_copy():
    _, fast = models("llama")
    other = copy.deepcopy(fast)
    assert rotations(other) == 4
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.zero_()
    assert not torch.allclose(other(IDS).logits, fast(IDS).logits)


class Turned(torch.nn.Module):
    def forward(self, q, k, cos, sin, *more):
        return apply_rotary_pos_emb(q, k, cos, sin, *more)


@pytest.mark.parametrize(
    ("shape", "more", "ours"),
    [
        ((2, 3, 5, 6), (), True),
        ((2, 5, 3, 6), (2,), False),  # heads behind tokens
        ((5, 3, 6), (), False),  # no batch
    ],
)
def test_a_rotation_that_is_called_otherwise(shape, more, ours):
    torch.manual_seed(0)
    plain, fast = Turned(), Turned()
    train_faster(fast)
    cos, sin = angles(5, 6, torch.float32)
    if len(shape) == 3:
        cos, sin = cos[0], sin[0]
    x = torch.randn(shape, requires_grad=True)
    found = fast(x, x, cos, sin, *more)[0]
    assert ("_Rotation" in type(found.grad_fn).__name__) == ours
    torch.testing.assert_close(found, plain(x, x, cos, sin, *more)[0])
