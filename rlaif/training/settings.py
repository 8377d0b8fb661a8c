"""What every trainer on preferences takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from rlaif.errors import require_finite_fields

if TYPE_CHECKING:
    from rlaif.training.models import LoraSettings  # a config, which reads this, needs no models

Tracker = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: tuple[Tracker, ...] = ("tensorboard", "wandb", "trackio")


class LoopOptions(TypedDict, total=False):
    """The fields of `LoopSettings`, as named arguments."""

    epochs: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    max_length: int | None
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    lora: LoraSettings | None
    merge: bool
    bf16: bool
    gradient_checkpointing: bool
    device: str
    checkpoint_every: int
    log_to: tuple[Tracker, ...]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How to train: AdamW over epochs, whose learning rate rises and then falls linearly to 0."""

    epochs: int = 1
    learning_rate: float = 1e-5  # at its peak
    batch_size: int = 8  # pairs (reward model: prompts) a device and forward pass
    gradient_accumulation: int = 1  # batches a step
    max_length: int | None = None  # tokens; longer rows are refused, never cut. None: the context
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    lora: LoraSettings | None = None
    merge: bool = True  # with LoRA: the merged model too
    bf16: bool = False
    gradient_checkpointing: bool = False
    device: str = "auto"
    checkpoint_every: int = 200  # steps
    log_to: tuple[Tracker, ...] = ()  # beside training.jsonl

    def __post_init__(self) -> None:
        require_finite_fields(self)

    @property
    def precision(self) -> dict[str, bool]:
        """How the weights are loaded: frozen ones under an adapter may be coarser."""
        if self.lora is None:
            return {"half": False, "four_bit": False}
        return {"half": self.bf16, "four_bit": self.lora.four_bit}

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights: not where, how often saved, and who looks on."""
        aside = ("device", "checkpoint_every", "log_to")
        return {name: value for name, value in asdict(self).items() if name not in aside}


def frozen_misfit(trunk: str, lora: bool, margin: float, centring: float) -> str:
    """What a frozen trunk cannot be combined with, in words; "" where nothing is wrong."""
    asked = {"lora": lora, "margin": bool(margin), "centring": bool(centring)}
    wrong = [name for name, value in asked.items() if value]
    if trunk != "frozen" or not wrong:
        return ""
    return (
        f"trunk: frozen fits the head alone, on its plain Bradley–Terry loss: take {wrong[0]} out, "
        "or set trunk to trained"
    )
