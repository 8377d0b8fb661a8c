"""Prepacked layers give what the model's own layers give, and leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.engines.faster import prepacked
from rlaif.engines.faster.on_cpu import train_faster
from rlaif.engines.faster.prepacked import Prepacked, TrainedLinear


@pytest.fixture(autouse=True)
def prepacked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products, too."""
    monkeypatch.setattr(prepacked, "_FEW", 0)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN's products whatever their size."""
    monkeypatch.setattr(prepacked, "_WORTH", 0)


class Gated(nn.Module):
    """A gated feed-forward layer, with biases to be forgotten."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(12, 40), nn.Linear(12, 40)
        self.down_proj, self.act_fn = nn.Linear(40, 12), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()]
)
@pytest.mark.parametrize("rows", [1, 7, 600])
@torch.no_grad()
def test_a_gated_layer(activation: nn.Module, rows: int) -> None:
    torch.manual_seed(0)
    layer, x = Gated(activation), torch.randn(1, rows, 12)
    expected = layer(x)
    faster = Prepacked(layer)
    with faster.active():
        found = layer(x)
        assert "forward" in vars(layer.up_proj)  # the fast way is the one that was taken
        assert ("forward" in vars(layer)) == (not isinstance(activation, nn.ReLU))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer(x), expected)
    assert not any("forward" in vars(m) for m in layer.modules())


class Sparse(Gated):
    """One with the same parts that does more, as Gemma 3n's: most of its gate is dropped."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(x))
        return self.down_proj(gate * (gate > gate.mean(-1, keepdim=True)) * self.up_proj(x))


class Clamped(Gated):
    """One whose gate and product are bounded, as DeepSeek V4's: ordinary inputs do not tell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x).clamp(max=10.0)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x).clamp(min=-10.0, max=10.0))


@pytest.mark.parametrize("kind", [Sparse, Clamped])
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh")])
@torch.no_grad()
def test_a_layer_that_does_more_keeps_its_own_forward(
    activation: nn.Module, kind: type[Gated]
) -> None:
    torch.manual_seed(0)
    layer, x = kind(activation), torch.randn(1, 600, 12)
    x[0, 0] = 100.0  # as at the first token of a trained model
    expected = layer(x)
    with Prepacked(layer).active():
        assert "forward" not in vars(layer)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_small_products_are_the_layers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_FEW", 12 * 40 * 8 + 1)
    torch.manual_seed(0)
    layer, x = Gated(nn.SiLU()), torch.randn(1, 9, 12)
    expected = layer(x[:, :8])
    faster, called = Prepacked(layer), []
    monkeypatch.setattr(prepacked, "product", lambda *args: called.append(1) or args[0])
    with faster.active():
        assert torch.equal(layer(x[:, :8]), expected)
        assert not called
        layer.gate_proj(x)
        assert called


@torch.no_grad()
def test_a_model_and_its_state() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.arange(20)[None]
    expected, names = model(ids).logits, list(model.state_dict())
    with Prepacked(model).active():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_weights_are_those_of_its_making() -> None:
    layer, x = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.ones(1, 3)
    faster, before = Prepacked(layer), layer(x)
    layer[0].weight.mul_(2)
    with faster.active():
        torch.testing.assert_close(layer(x), before)


def test_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Prepacked(Gated(nn.SiLU()).bfloat16())._forwards
    monkeypatch.setattr(prepacked, "LIMIT", 100)
    assert not Prepacked(Gated(nn.SiLU()))._forwards


@torch.no_grad()
def test_an_error_inside_restores_the_model() -> None:
    layer = Gated(nn.SiLU())
    with pytest.raises(ZeroDivisionError), Prepacked(layer).active():
        _ = 1 / 0
    assert not any("forward" in vars(m) for m in layer.modules())


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_a_trained_layer_and_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(5, 4, bias=bias)
    fast = copy.deepcopy(plain)
    train_faster(fast)
    assert type(fast) is TrainedLinear
    assert type(plain) is nn.Linear
    inputs = [torch.randn(shape) for _ in range(2)]
    inputs[1] = inputs[0].clone()
    weights = torch.randn(*shape[:-1], 4)
    for layer, x in zip([plain, fast], inputs, strict=True):
        y = layer(x.requires_grad_())
        (y * weights).sum().backward()
    assert "_ProductBackward" in type(fast(inputs[1]).grad_fn).__name__  # the fast way was taken
    torch.testing.assert_close(fast(inputs[1]), plain(inputs[0]))
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.usefixtures("always")
def test_a_trained_layer_where_onednn_does_not_read() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    train_faster(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.to("meta")).is_meta


def test_autocast_takes_no_packed_layers() -> None:
    layer, x = Gated(nn.SiLU()), torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16), Prepacked(layer).active():
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.usefixtures("always")
def test_a_trained_layer_without_rows() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(0, 5, requires_grad=True)
    train_faster(layer)
    layer(x).sum().backward()
    assert not layer.weight.grad.any()


@pytest.mark.usefixtures("always")
def test_only_what_needs_a_gradient_gets_one() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5, requires_grad=True)
    train_faster(layer)
    layer.requires_grad_(False)(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_small_products_are_the_librarys() -> None:
    layer, x = nn.Linear(512, 512), torch.randn(256, 512)
    train_faster(layer)
    assert "_ProductBackward" in type(layer(x).grad_fn).__name__
    assert "_ProductBackward" not in type(layer(x[:255]).grad_fn).__name__


def test_the_packed_layers_of_a_trained_model() -> None:
    layer = Gated(nn.SiLU())
    train_faster(layer)
    with Prepacked(layer).active():
        assert "forward" in vars(layer)
        assert "forward" in vars(layer.up_proj)
