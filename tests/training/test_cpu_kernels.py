"""Kernels for a CPU replace nothing on a GPU, nor where they are switched off; numbers stay."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif.config import Config
from rlaif.engines.faster import apply, cpu_attention, last_layer, on_cpu
from rlaif.engines.faster.prepacked import Prepacked, TrainedLinear
from rlaif.engines.load import load_engine
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.training.rl.actor_critic import ActorCritic

ROOT = Path(__file__).parents[2] / "rlaif"
ASKED = [
    Rendered((RenderedMessage("user", (Segment(f"{text} Which is better?", True),)),))
    for text in ("The red cat sat.", "The red cat sat on the mat.", "A dog.")
]


@pytest.fixture
def off() -> Iterator[None]:
    before = apply.switch(False)
    yield
    apply.switch(before)


def plain() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(str(TINY_WEIGHTS), dtype=torch.float32).eval()


def replaced(model: torch.nn.Module) -> list[str]:
    """Modules of another class, or with a forward of their own, than plain Transformers'."""
    kinds = {name: type(module) for name, module in plain().named_modules()}
    return [
        name
        for name, module in model.named_modules()
        if type(module) is not kinds[name] or "forward" in vars(module)
    ]


@pytest.mark.usefixtures("off")
def test_nothing_is_for_a_gpu() -> None:
    for device in ("cuda", "cuda:1", torch.device("cuda"), "meta", "cpu"):
        assert not apply.applies(device)
    apply.switch(True)
    assert apply.applies("cpu")
    for device in ("cuda", "cuda:1", torch.device("cuda"), "meta"):
        assert not apply.applies(device)
        model = plain()
        apply.train(model, device)
        assert replaced(model) == []
    meta = plain().to("meta")
    assert apply.prepacked(meta)._forwards == []
    with apply.last_layer_at(meta, torch.zeros(1, dtype=torch.long, device="meta")):
        assert not any(m._forward_pre_hooks for m in meta.modules())


def test_on_a_cpu_layers_are_replaced_and_give_the_same() -> None:
    own, fast = plain(), plain()
    apply.train(fast, "cpu")
    assert any(type(m) is TrainedLinear for m in fast.modules())
    assert len(replaced(fast)) > 10
    assert apply.prepacked(own)._forwards
    ids = torch.arange(40)[None] + 20
    with torch.no_grad():
        assert torch.allclose(own(ids).logits, fast(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("off")
def test_scoring_without_the_kernels_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine("tiny")
    seen = []
    call = type(engine.model).forward

    def forward(self: torch.nn.Module, *args: object, **options: object) -> object:
        seen.append([n for n in replaced(self) if not n.endswith("self_attn")])
        return call(self, *args, **options)

    monkeypatch.setattr(type(engine.model), "forward", forward)
    monkeypatch.setattr(cpu_attention, "by_products", None)
    without = engine.score(ASKED, [(" A", " B")] * 3)
    assert seen
    assert not any(seen)
    monkeypatch.undo()
    apply.switch(True)
    for one, other in zip(
        without, load_engine("tiny").score(ASKED, [(" A", " B")] * 3), strict=True
    ):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.usefixtures("off")
def test_training_without_the_kernels_replaces_nothing() -> None:
    from rlaif.training.models import load_policy, load_reward
    from rlaif.training.rl.settings import PPOSettings

    assert replaced(load_policy("tiny").model) == []
    nets = ActorCritic(load_policy("tiny"), "cpu", PPOSettings())
    assert replaced(nets.policy) == []
    assert not any(type(m) is TrainedLinear for m in load_reward("tiny").model.modules())
    with apply.last_layer_at(nets.policy, torch.tensor([0])):
        assert not any(m._forward_pre_hooks for m in nets.policy.modules())
    apply.switch(True)
    nets = ActorCritic(load_policy("tiny"), "cpu", PPOSettings())
    assert replaced(nets.policy)


def test_one_setting_switches_them() -> None:
    assert Config().cpu_kernels
    assert not Config(cpu_kernels=False).cpu_kernels


def test_one_module_decides() -> None:
    """Others ask `apply`: none of them makes the replacements itself."""
    made = {Prepacked.__name__, on_cpu.train_faster.__name__, last_layer.last_layer_at.__name__}
    for file in ROOT.rglob("*.py"):
        if file.parent.name == "faster":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in {
                f"rlaif.engines.faster.{name}" for name in ("prepacked", "on_cpu", "last_layer")
            }:
                assert not made & {a.name for a in node.names} or file.name == "packed.py"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"Prepacked", "train_faster"}, file
