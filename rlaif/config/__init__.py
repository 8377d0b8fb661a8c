"""One YAML file describes one run: every stage, every option, documented where it is declared.

Each command reads the whole file and uses its own part; `--set train.dpo.beta=0.05` changes any
option from the command line. A part's settings stand beside its code, which takes them as they are.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from rlaif.config.sections import (
    DPOConfig,
    EvaluateConfig,
    GRPOConfig,
    JudgeTrainConfig,
    PairsConfig,
    PPOConfig,
    PreferencesConfig,
    PromptsConfig,
    ReviseConfig,
    RewardConfig,
    RLOOConfig,
    SamplingConfig,
    SFTConfig,
)
from rlaif.engines.settings import ModelSettings
from rlaif.errors import ConfigError, nearest
from rlaif.evaluation.settings import LabelLimits, LearnSettings
from rlaif.files.own import look_beside
from rlaif.files.resources import find
from rlaif.files.settings import Place, Section
from rlaif.files.yamlfile import Location, YamlFile, known_keys, parse_yaml, read_yaml, validate
from rlaif.judges.settings import JudgeSettings, JudgingSettings, JurorSettings
from rlaif.steps.settings import RaySettings
from rlaif.store import RunStore
from rlaif.store.places import is_code, seen_from
from rlaif.store.places import named as places
from rlaif.training.rl.settings import OnlineDPOSettings


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
    online_dpo: OnlineDPOSettings | None = None
    """Train a policy by online DPO, from `policy.model`."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that are told what `training.jsonl` is told; each must be installed."""


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
    learn: LearnSettings = LearnSettings()
    """A constitution learnt from labels (`rlaif constitution learn`)."""
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
    cpu_kernels: bool = True
    """Whether models on a CPU, judging and in training, compute by rlaif's faster kernels; `false`
    takes PyTorch's and Transformers' own. Changes speed, and results by rounding only. On a GPU
    nothing is ever replaced."""

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
