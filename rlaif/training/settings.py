"""The settings of what is trained on preferences, answers and labels: sections of the YAML file,
and what the trainers take from Python. Nothing here loads torch.

`Runtime` holds what is no setting: where a training runs, whether it goes on, and who looks on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from rlaif.files.settings import Section, Seed

Tracker = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: tuple[Tracker, ...] = ("tensorboard", "wandb", "trackio")
OnLog = Callable[[dict[str, Any]], None]
# Makes a bar for work that is no step of training, of a title and how much there is; see
# `Reporter.progress`.
Bar = Callable[[str, int | None], AbstractContextManager[Any]]
DPOLoss = Literal["sigmoid", "cdpo", "robust", "ipo", "sigmoid_norm"]
TRLLoss = Literal[
    "hinge",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
]
DPO_LOSSES: tuple[DPOLoss, ...] = get_args(DPOLoss)
TRL_LOSSES: tuple[TRLLoss, ...] = get_args(TRLLoss)  # computed by TRL's trainer, on hard labels
SMOOTHED: tuple[str, ...] = ("cdpo", "robust", "exo_pair")  # those that take a label noise ε


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a trainer is run; none of it changes what is learnt.

    `device`: `auto`, `cpu`, `cuda`, `cuda:1`, … With `resume` a killed training goes on from its
    last checkpoint, and a finished one returns at once. `log_to` names trackers that are told what
    `training.jsonl` is told, and `on_log` is called with each of its lines. `progress` makes a bar
    for long work that is no step of training. `cache` is a folder for what is computed of the
    model's weights alone and serves again; None takes one beside the model that is written.
    """

    device: str = "auto"
    resume: bool = True
    log_to: tuple[Tracker, ...] = ()
    on_log: OnLog | None = None
    progress: Bar | None = None
    cache: Path | None = None


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """Scale: updates are multiplied by alpha/rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names, or `all-linear`."""
    four_bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA, Dettmers et al. 2023): needs a GPU and
    bitsandbytes. The merged model is of the weights as they were, in bfloat16."""


class TrainSettings(Section):
    """What every trainer takes: AdamW over epochs of the rows."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the preferences."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW; it falls linearly to 0."""
    batch_size: int = Field(default=8, ge=1)
    """Pairs (reward model: prompts) a device and forward pass."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches summed before an optimiser step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt + completion in tokens; longer rows are counted and left out, never cut. Null
    takes the model's context."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    seed: Seed = 7
    """Order of the examples and initialisation of new heads."""
    bf16: bool = False
    """Train in bfloat16 autocast (GPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints: what a kill can cost at most."""
    lora: LoraSettings | None = None
    """Train a LoRA adapter; null trains all weights."""
    merge: bool = True
    """With LoRA: also write the merged model."""

    @property
    def precision(self) -> dict[str, bool]:
        """How the weights are loaded: frozen ones under an adapter may be coarser."""
        if self.lora is None:
            return {"half": False, "four_bit": False}
        return {"half": self.bf16, "four_bit": self.lora.four_bit}

    def key(self) -> dict[str, Any]:
        """What every trainer shares and decides the weights: not how often they are saved."""
        return self.model_dump(include=TrainSettings.model_fields.keys() - {"checkpoint_every"})

    def own(self) -> dict[str, Any]:
        """What this trainer has beside them, and decides its weights, as its key takes it."""
        return {}


class DPOSettings(TrainSettings):
    """Direct preference optimisation (Rafailov et al. 2023) with a soft target an example."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW; it falls linearly to 0."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference policy."""
    loss: Literal[DPOLoss, TRLLoss] = "sigmoid"
    """`sigmoid` is DPO on soft labels; it and the next four are in `rlaif.training.losses`. The
    others are TRL's, and take hard labels only (`preferences.soft: false`)."""
    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    """ε of `cdpo`, `robust` and `exo_pair`: the share of labels taken to be wrong."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen completions' negative log-likelihood, which keeps them likely."""
    share_prompt: bool = True
    """Compute the prompt of chosen and rejected once, where the model's attention allows it."""

    def own(self) -> dict[str, Any]:
        return self.model_dump(include=DPOSettings.model_fields.keys() - TrainSettings.model_fields)

    @model_validator(mode="after")
    def _loss_takes_what_is_given(self) -> Self:
        if wrong := loss_misfit(self.loss, self.label_noise, self.nll):
            raise ValueError(wrong)
        return self


def loss_misfit(loss: str, noise: float, nll: float = 0.0) -> str:
    """What a loss of DPO cannot be combined with, in words; "" where nothing is wrong."""
    if loss in SMOOTHED and not 0 < noise < 0.5:
        return f"the loss '{loss}' needs a label noise in (0, ½), got {noise}"
    if loss not in SMOOTHED and noise:
        return f"label noise is for {', '.join(SMOOTHED)}; the loss is '{loss}'"
    if loss in TRL_LOSSES and nll:
        return f"the loss '{loss}' is TRL's and takes no `nll`, got {nll}"
    return ""


class RewardSettings(TrainSettings):
    """The reward model: soft Bradley–Terry on the preferences."""

    trunk: Literal["trained", "frozen"] = "trained"
    """`frozen` leaves the model as it is and fits its head alone: features once a completion, kept
    in the run's `features/`, and a convex optimisation, with `heads` more on resampled prompts. Of
    the settings here it takes `max_length`, `seed`, `bf16`, `held_out`, `references` and `test`."""
    heads: int = Field(default=16, ge=0)
    """With a frozen trunk: heads of a bootstrap over prompts, whose spread is the uncertainty of a
    reward; 0 for none."""
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """With a frozen trunk: after how many layers the head may read; cross-validation chooses, and
    the layers behind are cut off. null is the last alone."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts kept for accuracy and calibration."""
    margin: float = Field(default=0.0, ge=0)
    """What the chosen reward must lead by."""
    centring: float = Field(default=0.0, ge=0)
    """Coefficient of (r_chosen + r_rejected)², which keeps rewards near 0."""
    normalise_first: bool = False
    """Bring rewards to mean 0 and standard deviation 1 over the training completions before the
    first step too (Ziegler et al. 2019)."""
    share_prompt: bool = True
    """Compute the prompt of several completions once, where the model's attention allows it."""

    @property
    def precision(self) -> dict[str, bool]:
        return {"half": self.bf16} if self.trunk == "frozen" else super().precision

    def own(self) -> dict[str, Any]:
        beside = {*TrainSettings.model_fields, *_OF_A_FROZEN_TRUNK}
        return self.model_dump(include=RewardSettings.model_fields.keys() - beside)

    def frozen(self) -> dict[str, Any]:
        """What decides the weights of a frozen trunk's head besides; empty for a trained one."""
        return self.model_dump(include=_OF_A_FROZEN_TRUNK) if self.trunk == "frozen" else {}

    @model_validator(mode="after")
    def _frozen_fits_the_head(self) -> Self:
        if self.trunk != "frozen":
            return self
        for name in ("lora", "margin", "centring"):
            if getattr(self, name):
                raise ValueError(
                    "trunk: frozen fits the head alone, on its plain Bradley–Terry loss: take "
                    f"{name} out, or set trunk to trained"
                )
        return self


_OF_A_FROZEN_TRUNK = {"trunk", "heads", "layers"}


class SFTSettings(TrainSettings):
    """Supervised fine-tuning on answers, by TRL's trainer. A batch is one of answers."""


class JudgeTrainSettings(TrainSettings):
    """A judge that learns labels in its own format (`docs/judges.md`)."""

    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts kept to measure on, before and after."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs a device and forward pass, each in both orders."""
    gradient_accumulation: int = Field(default=2, ge=1)
    """Batches summed before an optimiser step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt of the judge in tokens; longer pairs are counted and left out, never cut. Null
    takes the model's context."""
    share_prompt: bool = True
    """Compute what the prompts of a pair have in common once, where the model's attention allows
    it."""

    def own(self) -> dict[str, Any]:
        beside = TrainSettings.model_fields
        return self.model_dump(include=JudgeTrainSettings.model_fields.keys() - beside)
