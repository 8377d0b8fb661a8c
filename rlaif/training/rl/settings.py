"""Settings of PPO, GRPO, RLOO and online DPO, the same from a config and from Python.

train_ppo(prompts, model, out, scorer, PPOSettings(steps=30, learning_rate=1e-4))
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlaif.engines.settings import VLLMSettings
from rlaif.files.settings import Place, Section, Seed
from rlaif.training.settings import DPOLoss, LoraSettings, loss_misfit

LONGEST = 256  # tokens of a completion where nothing says how many


class AlarmLimits(Section):
    """Limits whose crossing is warned of as training goes; null turns one off."""

    kl: float | None = Field(default=20.0, gt=0)
    """Nats an episode, to the reference."""
    entropy: float | None = Field(default=0.2, gt=0)
    """Least share of the first step's entropy a token."""
    length: float | None = Field(default=2.0, gt=1)
    """How many times longer or shorter than in the first step completions may be."""
    ended: float | None = Field(default=0.5, ge=0, le=1)
    """Least share of completions that end by themselves."""
    held_out: float | None = Field(default=0.05, gt=0)
    """How far the held-out judge's score may fall while the reward rises."""


class HeldOutSettings(Section):
    """How often a judge that does not reward looks at what the policy answers."""

    every: int = Field(default=10, ge=1)
    """Steps between measurements."""
    prompts: int = Field(default=32, ge=1)
    """Training prompts answered each time, ever the same."""


class OnlineSettings(Section):
    """Base of the trainers whose policy samples what it learns from."""

    steps: int = Field(default=500, ge=1)
    """Batches to sample and learn from."""
    batch_size: int = Field(default=64, ge=1)
    """Completions a step, of all processes."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Learning rate of Adam at first; it falls linearly to 0."""
    beta: float = Field(default=0.05, gt=0)
    """Penalty on the KL to the policy before training."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampling, and of every log-probability in training."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest completion in tokens, a thought included; null takes what `sampling.max_new_tokens`
    and `policy.thinking` allow together, and 256 from Python."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    lora: LoraSettings | None = None
    """Train a LoRA adapter, the reference being the model without it; null trains all weights."""
    bf16: bool = False
    """Train in bfloat16 autocast (GPU)."""
    seed: Seed = 7
    """Fixes the order of prompts, the samples and the minibatches."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints: what a kill can cost at most."""
    alarms: AlarmLimits = AlarmLimits()
    """What to warn of."""
    held_out: HeldOutSettings | None = HeldOutSettings()
    """The run's judge compares the policy's answers with those of `policy.model` as training goes,
    unless it is the reward itself; null never asks it."""

    aside: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "alarms", "held_out", "vllm"})

    @property
    def longest(self) -> int:
        """The most tokens that a completion may have."""
        return self.max_new_tokens or LONGEST

    @property
    def precision(self) -> dict[str, bool]:
        """How the weights are loaded: frozen ones under an adapter may be coarser."""
        if self.lora is None:
            return {"half": False, "four_bit": False}
        return {"half": self.bf16, "four_bit": self.lora.four_bit}

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights, for the run key: not those that only look on."""
        raise NotImplementedError

    def _chosen(self, kind: type[OnlineSettings]) -> dict[str, Any]:
        """The fields of `kind`, without those that a config's section adds to them."""
        found = self.model_dump(include=set(kind.model_fields) - self.aside)
        return found | {"max_new_tokens": self.longest}


class PPOSettings(OnlineSettings):
    """PPO (Ziegler et al. 2019), or A2C or REINFORCE in the same loop."""

    algorithm: Literal["ppo", "a2c", "reinforce"] = "ppo"
    """`a2c`: no ratio and no clipping; `reinforce`: so too, with the whole return."""
    steps: int = Field(default=1_000, ge=1)
    """Batches to sample and learn from."""
    batch_size: int = Field(default=64, ge=1)
    """Episodes a step."""
    samples: int = Field(default=1, ge=1)
    """Completions of each prompt of a step."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the episodes of a step; null takes 4, or 1 for `a2c` and `reinforce`."""
    minibatches: int | None = Field(default=None, ge=1)
    """Optimiser steps a pass; null takes 4, or 1 for `a2c` and `reinforce`."""
    learning_rate: float = Field(default=3e-6, gt=0)
    """Learning rate of Adam at first; it falls linearly to 0."""
    value_learning_rate: float | None = Field(default=None, gt=0)
    """That of the value head or value model; null takes the same."""
    beta: float = Field(default=0.05, ge=0)
    """Penalty on the KL to the policy before training, at first where `target_kl` steers it."""
    target_kl: float | None = Field(default=None, gt=0)
    """KL in nats an episode to steer to by changing beta; null keeps beta fixed."""
    horizon: int = Field(default=10_000, ge=1)
    """Episodes over which beta adapts."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """What is taken from the reward: `k1` is the log-ratio, `k3` never negative."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation; `reinforce` takes 1."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability ratio may leave 1."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far a value may leave its former self."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation; they keep their mean."""
    mask_top_p: float | None = Field(default=None, gt=0, lt=1)
    """NLPO: sample from the nucleus of this probability of a masking policy only; null samples
    from all tokens."""
    mask_every: int = Field(default=20, ge=1)
    """Steps after which the masking policy becomes a copy of the policy again."""
    rollouts: Literal["hf", "vllm"] = "hf"
    """Who samples: `hf`, Transformers; `vllm`, a vLLM that gets the policy's weights each step."""
    vllm: VLLMSettings = VLLMSettings()
    """With `rollouts: vllm`: its settings; weights are never quantised."""
    no_end_score: float | None = -1.0
    """The most that a completion that never ended may score: its own score, or this if that is
    less. −1 is the least mark of a judge; null lets it score like any other."""
    ptx_weight: float = Field(default=0.0, ge=0)
    """Weight of the demonstrations' negative log-likelihood a token; above 0 it needs `ptx`."""
    value: Literal["shared", "separate"] = "shared"
    """The value function: a head on the policy, or a model of its own."""
    value_model: Annotated[str | None, Place("model")] = None
    """With `separate`: a reward model's folder to start from, or a causal model; null takes the
    reward model that rewards (from a config), or else the policy's model."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""

    @property
    def passes(self) -> int:
        """Epochs over the episodes of a step."""
        return self.epochs or (4 if self.algorithm == "ppo" else 1)

    @property
    def updates(self) -> int:
        """Minibatches, and so optimiser steps, an epoch."""
        return self.minibatches or (4 if self.algorithm == "ppo" else 1)

    @property
    def score_weight(self) -> float:
        """RLAIF's REINFORCE weighs the score 1 − β (Lee et al. 2023)."""
        return 1 - self.beta if self.algorithm == "reinforce" else 1.0

    @property
    def trace(self) -> float:
        """λ; REINFORCE's advantage is the whole return less the baseline, which is λ = 1."""
        return 1.0 if self.algorithm == "reinforce" else self.lam

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights, for the run key: not those that only look on."""
        return self._chosen(PPOSettings) | {"epochs": self.passes, "minibatches": self.updates}

    @model_validator(mode="after")
    def _a_batch_is_shared_evenly(self) -> Self:
        if self.algorithm != "ppo" and (self.passes, self.updates) != (1, 1):
            raise ValueError(
                f"{self.algorithm} learns once from a batch, as it has no ratio to correct for "
                f"a policy that has moved: set epochs and minibatches to 1, not {self.passes} and "
                f"{self.updates}"
            )
        for name, n in (("samples", self.samples), ("minibatches", self.updates)):
            if self.batch_size % n:
                raise ValueError(f"batch_size {self.batch_size} is not a multiple of {name} {n}")
        return self

    @model_validator(mode="after")
    def _vllm_can_sample_it(self) -> Self:
        if self.rollouts == "hf":
            return self
        if self.mask_top_p is not None:
            raise ValueError(
                "rollouts: vllm cannot sample from a masking policy's nucleus (NLPO): take "
                "rollouts: hf, or mask_top_p: null"
            )
        if self.lora is not None and self.lora.four_bit:
            raise ValueError(
                "rollouts: vllm needs weights that an adapter can be added to, and four_bit has "
                "none: take rollouts: hf, or lora.four_bit: false"
            )
        if not 0.01 <= self.temperature <= 2:
            raise ValueError(
                f"rollouts: vllm samples at temperatures from 0.01 to 2, got {self.temperature}"
            )
        return self


class GroupSettings(OnlineSettings):
    """What GRPO and RLOO share: completions of a prompt are compared with each other."""

    algorithm: ClassVar[Literal["grpo", "rloo"]]

    batch_size: int = Field(default=64, ge=2)
    """Completions a step, of all processes."""
    group: int = Field(default=8, ge=2)
    """Completions of each prompt of a step."""
    iterations: int = Field(default=1, ge=1)
    """Optimiser steps on each batch of completions."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes an optimiser step."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW; it falls linearly to 0."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability ratio may leave 1."""
    no_end_score: float | None = -1.0
    """The most that a completion that never ended may score: its own score, or this if that is
    less. −1 is the least mark of a judge; null lets it score like any other."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Batches of completions between checkpoints: what a kill can cost at most."""

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        if self.batch_size % self.group:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of group {self.group}: a "
                "completion is compared with others of its prompt"
            )
        return self


class GRPOSettings(GroupSettings):
    """GRPO (Shao et al. 2024), by TRL's trainer."""

    algorithm = "grpo"

    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of their group's rewards, that of the
    batch's, or nothing (Dr. GRPO)."""
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    """What the loss is a mean over, by TRL's names: `dapo` over the tokens of the whole step,
    `bnpo` over those of a forward pass, `grpo` over completions of token means, `dr_grpo` over
    the longest completion's tokens a completion."""

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights, for the run key: not those that only look on."""
        return self._chosen(GRPOSettings) | {"algorithm": "grpo"}


class RLOOSettings(GroupSettings):
    """RLOO (Ahmadian et al. 2024), by TRL's trainer.

    REINFORCE whose baseline is the mean reward of the prompt's other completions; the penalty on
    the KL is part of the reward.
    """

    algorithm = "rloo"

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights, for the run key: not those that only look on."""
        of_grpo = {"scale": "group", "loss": "dapo"}  # which keys of begun runs have all the same
        return self._chosen(RLOOSettings) | {"algorithm": "rloo"} | of_grpo


class OnlineDPOSettings(OnlineSettings):
    """Online DPO (Guo et al. 2024): two completions of a prompt are sampled from the live policy,
    labelled, and DPO learns from the soft label."""

    steps: int = Field(default=500, ge=1)
    """Batches to sample, label and learn from."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts a step, of all processes; each gives one pair."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps on a batch of pairs."""
    loss: DPOLoss = "sigmoid"
    """As `train.dpo.loss`."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference policy."""
    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    """ε of `cdpo` and `robust`: the share of labels taken to be wrong."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen completions' negative log-likelihood a token."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampling."""
    keep_cut: bool | None = None
    """Learn from completions that a limit cut off, too, but not their lead; null takes what
    `sampling.keep_cut` says, and false from Python."""

    held_out: HeldOutSettings | None = None
    """`evaluate.judge` compares the policy's answers with those of `policy.model` as training goes;
    null asks nobody. The run's own judge labels, and so does not look on."""

    def key(self) -> dict[str, Any]:
        """The settings that decide the weights, for the run key: not those that only look on."""
        return self._chosen(OnlineDPOSettings) | {"keep_cut": bool(self.keep_cut)}

    @model_validator(mode="after")
    def _loss_takes_what_is_given(self) -> Self:
        if wrong := loss_misfit(self.loss, self.label_noise, self.nll):
            raise ValueError(wrong)
        return self
