"""What a run tells its stages beside the settings of a part: which files, rows and columns.

Each section builds on the settings that its part's code takes, so a stage hands it on as it is.
Sorted by stage.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from rlaif.engines.base import SamplingSettings
from rlaif.files.readers.settings import PairReading, PromptReading
from rlaif.files.settings import Place, Section
from rlaif.judges.preferences import PreferenceSettings
from rlaif.steps.settings import ReviseSettings
from rlaif.training.settings import DPOSettings


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


class PreferencesConfig(PreferenceSettings):
    """How verdicts become preferences. Changing this costs no model call."""

    temperature: _Temperature = None  # type: ignore[assignment]
    """T puts σ(logit(p)/T) in the place of each label p, ties and sides staying as they are: a
    number; or `audit`, the one that the run's last `rlaif eval audit` fitted on known labels; null
    leaves labels as they are (`docs/audit.md`)."""

    def rule(self) -> dict[str, Any]:
        """What decides labels. Options that earlier versions lacked are left out where they do
        nothing, so that runs of those versions stay up to date."""
        later = {"orders": "mean", "temperature": None}
        return {k: v for k, v in self.model_dump().items() if k not in later or v != later[k]}

    def at(self, temperature: float | None) -> PreferenceSettings:
        """The same rules at a temperature that is known."""
        fields = {name: getattr(self, name) for name in PreferenceSettings.model_fields}
        return PreferenceSettings(**fields | {"temperature": temperature})


class OfPreferences(Section):
    """What is learnt from preferences."""

    labels: Literal["preferences", "own"] = "preferences"
    """`preferences`: the run's labels, by its judge or jury. `own`: what is known of its pairs,
    people's labels (`docs/data.md`) or the embedded world's truth; no judge is asked."""


class DPOStage(DPOSettings, OfPreferences):
    """Direct preference optimisation (Rafailov et al. 2023) with a soft target an example."""
