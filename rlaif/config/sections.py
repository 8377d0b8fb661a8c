"""What a run tells its stages beside the settings of a part: which files, rows and columns.

Each section builds on the settings that its part's code takes, so a stage hands it on as it is.
Sorted by stage.
"""

from __future__ import annotations

from typing import Literal

from rlaif.files.settings import Section
from rlaif.training.settings import DPOSettings


class OfPreferences(Section):
    """What is learnt from preferences."""

    labels: Literal["preferences", "own"] = "preferences"
    """`preferences`: the run's labels, by its judge or jury. `own`: what is known of its pairs,
    people's labels (`docs/data.md`) or the embedded world's truth; no judge is asked."""


class DPOStage(DPOSettings, OfPreferences):
    """Direct preference optimisation (Rafailov et al. 2023) with a soft target an example."""
