"""One YAML file describes one run: every stage, every option, documented where it is declared.

Each command reads the whole file and uses its own part; `--set train.dpo.beta=0.05` changes any
option from the command line. Library functions take plain arguments: only the command line and
`rlaif.stages` know this file.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    model_validator,
)

from rlaif.config.sections import (
    DPOConfig,
    HeldOutPromptsConfig,
    JudgeTrainConfig,
    PairsConfig,
    PreferencesConfig,
    PromptsConfig,
    ReviseConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
)
from rlaif.engines.settings import ModelSettings, VLLMSettings
from rlaif.errors import ConfigError, nearest
from rlaif.evaluation.settings import (
    LabelLimits,
    ModelWrittenSettings,
    RewardBenchSettings,
    TextSettings,
    WriteSettings,
)
from rlaif.files.own import look_beside
from rlaif.files.readers.settings import AnswerColumns
from rlaif.files.resources import find
from rlaif.files.settings import Place, Section, Seed
from rlaif.files.yamlfile import (
    Location,
    YamlFile,
    known_keys,
    parse_yaml,
    read_yaml,
    validate,
)
from rlaif.judges.settings import JudgeSettings, JudgingSettings, JurorSettings
from rlaif.steps.settings import RaySettings
from rlaif.store import RunStore
from rlaif.store.places import is_code, seen_from
from rlaif.store.places import named as places
from rlaif.training.settings import LoraSettings


class AlarmsConfig(Section):
    """Limits of PPO whose crossing is warned of; null turns one off."""

    kl: float | None = Field(default=20.0, gt=0)
    """Nats an episode, to the reference."""
    entropy: float | None = Field(default=0.2, gt=0)
    """Least share of the first step's entropy a token."""
    length: float | None = Field(default=2.0, gt=1)
    """How many times longer or shorter than in the first step completions may be."""
    ended: float | None = Field(default=0.5, ge=0, le=1)
    """Least share of completions that end by themselves."""
    held_out: float | None = Field(default=0.05, gt=0)
    """How far the judge's held-out score may fall while the reward rises."""


class HeldOutConfig(Section):
    """The run's judge looking on while PPO learns from another reward."""

    every: int = Field(default=10, ge=1)
    """Steps between measurements."""
    prompts: int = Field(default=32, ge=1)
    """Training prompts answered each time, ever the same."""


class PPOConfig(Section):
    """PPO from `policy.model` (Ziegler et al. 2019), or A2C or REINFORCE in the same loop.

    Completions have at most `sampling.max_new_tokens` tokens.
    """

    reward: Annotated[str, Place("reward")] = "model"
    """`model`: this run's `models/reward`. `judge`: the run's judge, asked live whether the
    completion is better than one of `policy.model` (direct RLAIF). A reward model's folder.
    `module:function`: a function of prompts and completions, one score or None a completion."""
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
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-probability in training."""
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
    ptx: Annotated[str | None, Place("rows")] = None
    """Demonstrations, as `train sft` takes them, whose likelihood is held up beside the reward
    (PPO-ptx, Ouyang et al. 2022)."""
    ptx_columns: AnswerColumns | None = None
    """Which of their columns hold what; null tells it from their names."""
    ptx_weight: float = Field(default=0.0, ge=0)
    """Weight of their negative log-likelihood a token; above 0 it needs `ptx`."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    value: Literal["shared", "separate"] = "shared"
    """The value function: a head on the policy, or a model of its own."""
    value_model: Annotated[str | None, Place("model")] = None
    """With `separate`: a reward model's folder to start from, or a causal model; null takes the
    reward model that rewards, or else `policy.model`."""
    lora: LoraSettings | None = None
    """Train a LoRA adapter, the reference being the model without it; null trains all weights."""
    bf16: bool = False
    """Train in bfloat16 autocast (GPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    seed: Seed = 7
    """Of prompts, samples and minibatches."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints: what a kill can cost at most."""
    alarms: AlarmsConfig = AlarmsConfig()
    """What to warn of."""
    held_out: HeldOutConfig | None = HeldOutConfig()
    """The run's judge compares the policy's answers with those of `policy.model` as training goes,
    unless it is the reward itself; null never asks it."""


class GroupConfig(Section):
    """What GRPO and RLOO share. Completions have at most `sampling.max_new_tokens` tokens."""

    reward: Annotated[str, Place("reward")] = "judge"
    """`judge`: the run's judge, asked live; one that marks completions by themselves gives its
    marks. `model`: this run's `models/reward`. A reward model's folder. `module:function`: a
    function of prompts and completions, one score or None each."""
    against: Literal["group", "reference"] = "group"
    """Whom the judge compares a completion with: the others of its prompt, the score being the mean
    of P(it is better), or one completion of `policy.model`."""
    rounds: int | None = Field(default=None, ge=1)
    """With `group`: each completion meets those up to this many places before and after it; null
    lets all meet all, which is group·(group − 1)/2 pairs a prompt."""
    steps: int = Field(default=500, ge=1)
    """Batches to sample and learn from."""
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
    beta: float = Field(default=0.05, gt=0)
    """Penalty on the KL to the policy before training."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability ratio may leave 1."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-probability in training."""
    no_end_score: float | None = -1.0
    """The most that a completion that never ended may score: its own score, or this if that is
    less. −1 is the least mark of a judge; null lets it score like any other."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    lora: LoraSettings | None = None
    """Train a LoRA adapter, the reference being the model without it; null trains all weights."""
    bf16: bool = False
    """Train in bfloat16 autocast (GPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    seed: Seed = 7
    """Of prompts and samples."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Batches of completions between checkpoints: what a kill can cost at most."""


class GRPOConfig(GroupConfig):
    """GRPO from `policy.model` (Shao et al. 2024), by TRL's trainer."""

    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of their group's rewards, that of the
    batch's, or nothing (Dr. GRPO)."""
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    """What the loss is a mean over, by TRL's names: `dapo` over the tokens of the whole step,
    `bnpo` over those of a forward pass, `grpo` over completions of token means, `dr_grpo` over
    `sampling.max_new_tokens` a completion."""


class RLOOConfig(GroupConfig):
    """RLOO from `policy.model` (Ahmadian et al. 2024), by TRL's trainer.

    REINFORCE whose baseline is the mean reward of the prompt's other completions; the penalty on
    the KL is part of the reward.
    """


class OnlineDPOConfig(Section):
    """Online DPO from `policy.model` (Guo et al. 2024).

    Two completions of a prompt are sampled from the live policy, the run's judge labels them, and
    DPO learns from the soft label. Completions have at most `sampling.max_new_tokens` tokens.
    """

    steps: int = Field(default=500, ge=1)
    """Batches to sample, label and learn from."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts a step, of all processes; each gives one pair."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps on a batch of pairs."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Learning rate of Adam at first; it falls linearly to 0."""
    loss: Literal["sigmoid", "cdpo", "robust", "ipo", "sigmoid_norm"] = "sigmoid"
    """As `train.dpo.loss`."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference policy."""
    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    """ε of `cdpo` and `robust`: the share of labels taken to be wrong."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen completions' negative log-likelihood a token."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    lora: LoraSettings | None = None
    """Train a LoRA adapter, the reference being the model without it; null trains all weights."""
    bf16: bool = False
    """Train in bfloat16 autocast (GPU)."""
    seed: Seed = 7
    """Of prompts and samples."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints: what a kill can cost at most."""


class TrainStages(Section):
    """Training; a stage that is null is not run by `rlaif run`."""

    sft: SFTConfig | None = None
    """Train a policy on answers, from `policy.model`."""
    limits: LabelLimits | None = LabelLimits()
    """Refuse to train on labels that pass one of these; null trains on any."""

    judge: JudgeTrainConfig | None = None
    """Train a judge on people's labels or a stronger judge's."""
    reward: RewardConfig | None = RewardConfig()
    """Train a reward model."""
    dpo: DPOConfig | None = DPOConfig()
    """Train a policy by DPO, from `policy.model`."""
    ppo: PPOConfig | None = None
    """Train a policy by PPO, from `policy.model`."""
    grpo: GRPOConfig | None = None
    """Train a policy by GRPO, from `policy.model`."""
    rloo: RLOOConfig | None = None
    """Train a policy by RLOO, from `policy.model`."""
    online_dpo: OnlineDPOConfig | None = None
    """Train a policy by online DPO, from `policy.model`."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that are told what `training.jsonl` is told; each must be installed."""


class EvaluateConfig(Section):
    """What is measured after training."""

    prompts: HeldOutPromptsConfig = HeldOutPromptsConfig()
    """Held-out prompts."""
    winrate: bool = True
    """Win rate of the trained policy against `policy.model`, both orders."""
    judge: JudgingSettings | None = None
    """Who compares; null asks the judge (or jury) that labelled. A judge that did not is a better
    witness: a policy learns its labeller's mistakes."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the evaluated samples. The KL is measured on samples at temperature 1 and
    top-p 1; where these are others, it draws some."""
    seed: Seed = 11
    """Sampling and bootstrap."""
    rewardbench: RewardBenchSettings = RewardBenchSettings()
    """Of `rlaif eval rewardbench`."""
    model_written: ModelWrittenSettings = ModelWrittenSettings()
    """Of `rlaif eval model-written`."""
    write: WriteSettings = WriteSettings()
    """Of `rlaif eval model-written write`."""
    text: TextSettings = TextSettings()
    """Of `rlaif eval text`."""


class Config(Section):
    """A run, from a constitution to a better policy."""

    out: Annotated[str, Place("run")] = "runs/run"
    """The run directory."""
    constitution: Annotated[str, Place("constitution")] = "harmless"
    """A constitution file, or a shipped name."""
    prompts: PromptsConfig = PromptsConfig()
    """Prompts to sample from."""
    pairs: PairsConfig | None = None
    """Judge these pairs instead of sampled completions; null samples."""
    policy: ModelSettings = ModelSettings()
    """The model that answers, and that DPO improves."""
    judge: JudgeSettings = JudgeSettings()
    """The model that compares, and the principles it is asked about."""
    jury: tuple[JurorSettings, ...] = ()
    """Several judges in its place, whose verdicts are combined by `preferences.jury`. The
    principles are still those of `judge`."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling of completions."""
    revise: ReviseConfig = ReviseConfig()
    """Critique → revision (`rlaif revise`)."""
    preferences: PreferencesConfig = PreferencesConfig()
    """From verdicts to preferences."""
    train: TrainStages = TrainStages()
    """Training stages."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    date: datetime.date | None = None
    """The day that chat templates are told which ask for it, such as 2026-01-31; null: the day on
    which the run began, whenever it goes on. It is part of the keys of such models' rows."""
    executor: Literal["local", "ray"] = "local"
    """Where `sample` and `label` run: `local` in this process, `ray` on the workers of a Ray
    cluster. The rows are the same, so a run may start on one and end on the other."""
    ray: RaySettings = RaySettings()
    """With `executor: ray`: its workers."""
    chunk: int = Field(default=64, ge=1)
    """Prompts or pairs written at a time: what a kill can cost at most."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads; null leaves PyTorch's default."""

    @model_validator(mode="after")
    def _clamp_leaves_room(self) -> Config:
        rule = self.preferences
        # A sum of log-odds leaves the clamp of each behind: only what a principle needs can fail.
        margin = max(rule.principle_margin, rule.min_margin)
        if rule.aggregate == "log_odds_sum":
            margin = rule.principle_margin
        asked: dict[str, JudgingSettings] = {f"juror {j.name}: ": j for j in self.jury}
        clamps = {
            name: judge.rationale.clamp
            for name, judge in (asked or {"judge.": self.judge}).items()
            if judge.writes_before_labels and judge.rationale.clamp is not None
        }
        tight = {name: c for name, c in clamps.items() if c + margin >= 0.5}
        if self.jury and (rule.jury in ("majority", "log_odds_sum") or not tight):
            return self  # votes are not clamped, and sums of log-odds grow
        if self.jury and rule.jury != "minimum" and len(tight) < len(self.jury):
            return self  # the others may carry a label over the margin
        if tight:
            name, clamp = next(iter(tight.items()))
            raise ValueError(
                f"{name}rationale.clamp={clamp} keeps |p − ½| within {0.5 - clamp:.2f} after a "
                f"rationale, so the margin of {margin} in preferences would make a tie of all such "
                f"labels: set {name}rationale.clamp=null, or lower preferences.principle_margin "
                "and preferences.min_margin"
            )
        return self

    @model_validator(mode="after")
    def _jury_can_decide(self) -> Config:
        names = [juror.name for juror in self.jury]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"jury: two jurors are called '{twice}': give each a name of its own")
        most, quorum = max(len(names), 1), self.preferences.quorum
        if quorum > most:
            raise ValueError(
                f"preferences.quorum={quorum} can never be met: "
                + (f"the jury has {most} jurors" if names else "there is one judge and no jury")
                + f"; set it to {most} or less"
            )
        seen: dict[str, str] = {}
        for juror in self.jury:
            same = {"name", "weight", "device", "batch_tokens", "attention", "max_not_finite"}
            settings = juror.model_dump_json(exclude=same)
            if settings in seen:
                raise ValueError(
                    f"jury: '{seen[settings]}' and '{juror.name}' are the same judge, and would "
                    "always agree: leave one out, and give it a weight"
                )
            seen[settings] = juror.name
        return self


def _look_beside(config: Config, file: str) -> None:
    """Has code of one's own that the config names looked for beside its file too."""
    path = Path(file)
    if path.is_file() and any(is_code(one) for one in places(config)):
        look_beside(path.parent)


def load_config(
    name: str | None = None,
    overrides: Sequence[str] = (),
    defaults: dict[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> Config:
    """The config of a run: shipped defaults, then a file (path or shipped name), then overrides.

    `overrides` are `key.sub=value` with YAML values. `defaults` hold what named options of a
    command set; `options` are these options' names, by key, for what is told of them ("": never
    at fault). What a run directory's `run.yaml` names by `./` is seen from that directory.
    ConfigError names every fault with its position, or the option that it is of.
    """
    file = read_yaml(find("configs", name, ".yaml")) if name else parse_yaml("{}", "<defaults>")
    if file.data is None:
        file = YamlFile(file.path, {}, file.marks)
    found = validate(Config, file)  # faults of the file are told with the file's positions
    data = _written_out(file.data)
    run = Path(file.path)
    if run.name == "run.yaml" and (run.parent / "manifest.json").is_file():
        seen_from(
            run.parent,
            found,
            data,
            RunStore.open_readonly(run.parent).read_manifest().get("inputs") or {},
        )
    given: dict[Location, str] = {}  # what set which keys; a fault of the file was told above
    for key, value in (defaults or {}).items():
        option = (options or {}).get(key, "defaults")
        put(data, key, value, option)
        if option and value != {}:  # not a section that only counts as given
            given[tuple(key.split("."))] = option
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--set {text}: expected key=value, such as train.dpo.beta=0.05")
        put(data, key.strip(), parse_yaml(value, f"--set {key}").data, f"--set {key.strip()}")
        at = tuple(key.strip().split("."))
        given = {k: option for k, option in given.items() if k[: len(at)] != at} | {at: "--set"}
    config = validate(Config, YamlFile(file.path, data, {}, given))
    _look_beside(config, file.path)
    return config


def _written_out(value: Any) -> Any:
    """A copy in which what YAML's aliases share stands for itself: `put` changes one place."""
    if isinstance(value, dict):
        return {key: _written_out(inner) for key, inner in value.items()}
    return list(map(_written_out, value)) if isinstance(value, list) else value


def put(data: dict[str, Any], dotted: str, value: Any, option: str) -> None:
    """Sets `a.b.c` in nested mappings; ConfigError names the option that asks for it, and the
    nearest known key."""
    parts = dotted.split(".")
    here = data
    for i, part in enumerate(parts):
        known = known_keys(Config, parts[:i])
        if part not in known:
            raise ConfigError(f"{option}: unknown key '{part}'.{nearest(part, known)}")
        if i == len(parts) - 1:
            here[part] = value
        else:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]


def to_yaml(config: Config | dict[str, Any]) -> str:
    """The resolved config, or its data as `run.yaml` keeps it, every option written out."""
    data = config if isinstance(config, dict) else config.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file, for editors."""
    return Config.model_json_schema()
