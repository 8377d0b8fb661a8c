"""What a run tells its stages beside the settings of a part: which files, rows and columns.

Each section builds on the settings that its part's code takes, so a stage hands it on as it is.
Sorted by stage.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rlaif.engines.base import SamplingSettings
from rlaif.evaluation.settings import (
    ModelWrittenSettings,
    RewardBenchSettings,
    TextSettings,
    WriteSettings,
)
from rlaif.files.readers.settings import AnswerColumns, AnswerReading, PairReading, PromptReading
from rlaif.files.settings import Place, Section, Seed
from rlaif.judges.ensembles import TIER_MARGIN
from rlaif.judges.people import PeopleSettings
from rlaif.judges.preferences import PreferenceSettings
from rlaif.judges.settings import JudgingSettings
from rlaif.steps.settings import ReviseSettings
from rlaif.training.rl.settings import GroupSettings, GRPOSettings, PPOSettings, RLOOSettings
from rlaif.training.settings import DPOSettings, JudgeTrainSettings, RewardSettings, SFTSettings


class PromptsConfig(PromptReading):
    """Where prompts come from."""

    path: Annotated[str, Place("rows")] = "tiny"
    """A file, folder or glob of files, or a hub name (`docs/data.md`), a text file of prompts one a
    line, or `tiny`: the embedded world's prompts, half of them of kinds that put the
    constitution's trait at stake. Of these 512 are read where there is no `limit`."""


class PairsConfig(PairReading):
    """Pairs to judge that somebody else wrote."""

    path: Annotated[str, Place("rows")]
    """A file, folder or glob of files, or a hub name (`docs/data.md`)."""


class HeldOutPromptsConfig(PromptsConfig):
    """Prompts that nothing was trained on."""

    path: Annotated[str | None, Place("rows")] = None  # type: ignore[assignment]
    """As `prompts.path`; `tiny` is the embedded world's test split, which null takes too where
    `prompts` are that world's. Elsewhere a file must be named. Prompts that were trained on are
    refused: those of the run's pairs and `prompts`, and what the evaluated models' own training
    read (demonstrations, ptx and references too), as `models/NAME/trained_on.json` records."""


class SamplingConfig(SamplingSettings):
    """How completions are sampled from the policy."""

    keep_cut: bool = False
    """Also pair completions cut by `max_new_tokens`; else they are counted and left out. A policy
    does not learn from pairs in which one that is cut is preferred to one that ended."""


class ReviseConfig(ReviseSettings):
    """Critique → revision: `policy` criticises its own responses and writes them anew."""

    constitution: Annotated[str | None, Place("constitution")] = None
    """Where the critiques and revisions stand; null takes the run's constitution."""
    principles: Literal["all"] | tuple[str, ...] = "all"
    """`all`, or a list of principle ids."""


def _temperature(said: Any) -> Any:
    if said is None or said == "audit":
        return said
    if not isinstance(said, int | float) or not 0 < said < math.inf:
        raise ValueError(f"expected a number above 0, audit, or null for none, got {said!r}")
    return float(said)


_Temperature = Annotated[float | Literal["audit"] | None, BeforeValidator(_temperature)]


class PreferencesConfig(PreferenceSettings, PeopleSettings):
    """How verdicts become preferences. Changing this costs no model call."""

    temperature: _Temperature = None  # type: ignore[assignment]
    """T puts σ(logit(p)/T) in the place of each label p, ties and sides staying as they are: a
    number; or `audit`, the one that the run's last `rlaif eval audit` fitted on known labels; null
    leaves labels as they are (`docs/audit.md`)."""

    def rule(self) -> dict[str, Any]:
        """How verdicts become labels, people apart. Options that earlier versions lacked are left
        out where they do nothing, so that runs of those versions stay up to date."""
        later = {"orders": "mean", "temperature": None, "tier_margin": TIER_MARGIN}
        found = self.model_dump(exclude=set(PeopleSettings.model_fields))
        return {k: v for k, v in found.items() if k not in later or v != later[k]}

    def at(self, temperature: float | None) -> PreferenceSettings:
        """The same rules at a temperature that is known."""
        fields = {name: getattr(self, name) for name in PreferenceSettings.model_fields}
        return PreferenceSettings(**fields | {"temperature": temperature})


class OfPreferences(Section):
    """What is learnt from preferences."""

    labels: Literal["preferences", "own", "people"] = "preferences"
    """`preferences`: the run's labels, by its judge or jury. `own`: what is known of its pairs,
    people's labels (`docs/data.md`) or the embedded world's truth. `people`: what people decided in
    `rlaif view`. Of the last two no judge is asked."""


class RewardConfig(RewardSettings, OfPreferences):
    """The reward model: soft Bradley–Terry on the preferences."""

    model: Annotated[str | None, Place("model")] = None
    """Causal or sequence-classification checkpoint to start from; null takes `policy.model`."""
    references: PairsConfig | None = None
    """Pairs whose chosen completions, demonstrations say, have mean reward 0 in the end (Stiennon
    et al. 2020); null takes all training completions."""
    test: PairsConfig | None = None
    """Human pairs on which accuracy and calibration go to `evaluation/reward.json`."""


class DPOConfig(DPOSettings, OfPreferences):
    """Direct preference optimisation (Rafailov et al. 2023) with a soft target an example."""


class SFTConfig(SFTSettings, AnswerReading):
    """Supervised fine-tuning of `policy.model` on answers, by TRL's trainer."""

    data: Annotated[str, Place("rows")] = "best"
    """Answers to learn from: a source of rows with `messages`, or with `prompt` and `completion`
    (`docs/data.md`). `best`: of this run's completions, those that its preferences rank best, one a
    prompt. Only answers are learnt, not prompts."""


class JudgeTrainConfig(JudgeTrainSettings):
    """A judge that learns labels in its own format (`docs/judges.md`)."""

    model: Annotated[str | None, Place("model")] = None
    """Causal checkpoint to start from; null takes `judge.model`."""
    juror: str | None = None
    """With a jury: the juror to start from, by its name, where `model` is null."""
    template: Annotated[str | None, Place("template")] = None
    """A pairwise template, by path or shipped name, whose copy goes with the trained judge; null
    takes that of the judge where training starts from it, else the model's own or
    `pairwise/default`."""
    labels: Literal["own", "people", "preferences", "verdicts"] = "own"
    """`own`: what is known of the run's pairs, people's labels or the embedded world's truth.
    `people`: what people decided in `rlaif view`.
    `preferences`: the run's labels, by a stronger judge or a jury. `verdicts`: what it said under
    each principle, both orders averaged, each learnt under that principle."""
    principles: Literal["all"] | tuple[str, ...] | None = None
    """Principles to show with labels that are of none: `all`, or ids; null takes
    `judge.principles`."""
    draw: int | None = Field(default=1, ge=1)
    """Draw so many of them for each pair, by `seed`; null shows each pair under all. With `labels:
    verdicts` each label comes with its own principle, and nothing is drawn."""


class PPOConfig(PPOSettings):
    """PPO from `policy.model` (Ziegler et al. 2019), or A2C or REINFORCE in the same loop.

    Completions have at most `sampling.max_new_tokens` tokens, unless `max_new_tokens` says so.
    """

    reward: Annotated[str, Place("reward")] = "model"
    """`model`: this run's `models/reward`. `judge`: the run's judge, asked live whether the
    completion is better than one of `policy.model` (direct RLAIF). A reward model's folder.
    `module:function`: a function of prompts and completions, one score or None a completion."""
    ptx: Annotated[str | None, Place("rows")] = None
    """Demonstrations, as `train sft` takes them, whose likelihood is held up beside the reward
    (PPO-ptx, Ouyang et al. 2022)."""
    ptx_columns: AnswerColumns | None = None
    """Which of their columns hold what; null tells it from their names."""


class GroupConfig(GroupSettings):
    """What rewards the completions of GRPO and RLOO.

    Completions have at most `sampling.max_new_tokens` tokens, unless `max_new_tokens` says so.
    """

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


class GRPOConfig(GroupConfig, GRPOSettings):
    """GRPO from `policy.model` (Shao et al. 2024), by TRL's trainer."""


class RLOOConfig(GroupConfig, RLOOSettings):
    """RLOO from `policy.model` (Ahmadian et al. 2024), by TRL's trainer.

    REINFORCE whose baseline is the mean reward of the prompt's other completions; the penalty on
    the KL is part of the reward.
    """


class EvaluateConfig(Section):
    """What is measured after training."""

    prompts: HeldOutPromptsConfig = HeldOutPromptsConfig()
    """Held-out prompts."""
    winrate: bool = True
    """Win rates of policies over one another, both orders (`docs/evaluation.md`)."""
    policies: Annotated[tuple[str, ...], Place("policy")] = ()
    """Policies to compare, all with one another and with `base`, which is `policy.model` and always
    there: names of what this run trained (`dpo`, `ppo`, …), folders, or hub names, loaded with the
    settings of `policy`. An empty list compares each that this run trained with `base`."""
    judge: JudgingSettings | None = None
    """Who compares; null asks the judge (or jury) that labelled. A judge that did not is a better
    witness: a policy learns its labeller's mistakes."""
    reward: Annotated[str | None, Place("reward")] = None
    """Who compares in the judge's place, by P(A is better) = σ(r_A − r_B): `model`, this run's
    `models/reward`; a reward model's folder; or `module:function`, a reward of your own. null, or
    `judge`, asks the judge."""
    watch: Annotated[str | None, Place("constitution")] = None
    """A second constitution, by file or shipped name, under which the judge compares each policy
    with `base` on the same answers, principle by principle, and tells what fell."""
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
