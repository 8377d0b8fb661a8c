"""Settings of what is measured: benchmarks of rewards and judges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlaif.files.readers.benchmarks import Benchmark
from rlaif.files.settings import Section
from rlaif.store.places import Place


class RewardBenchSettings(Section):
    """RewardBench, RewardBench 2, RM-Bench or JudgeBench (`docs/evaluation.md`)."""

    path: Annotated[str | None, Place("rows")] = None
    """Its rows, as they are published: a file, folder or glob of files, or a hub name."""
    benchmark: Literal["auto"] | Benchmark = "auto"
    """Which one it is; `auto` tells it from the rows."""
    by: Literal["judge", "reward", "dpo"] = "judge"
    """Who is measured. `judge`: the run's judge or jury. `reward`: a reward model. `dpo`: the
    reward that a policy trained by DPO implies, log π − log π_ref."""
    reward: Annotated[str | None, Place("model")] = None
    """With `reward`: the reward model's folder or hub name; null takes the run's own."""
    policy: Annotated[str | None, Place("model")] = None
    """With `dpo`: the trained policy; null takes the run's `models/dpo`."""
    reference: Annotated[str | None, Place("model")] = None
    """With `dpo`: what it was trained from; null takes `policy.model`."""
    per_subset: int | None = Field(default=None, ge=1)
    """Take at most this many rows of each subset, the first; null takes all. Scores of fewer rows
    are no published scores."""
    skip_bad: int = Field(default=0, ge=0)
    """Go on over at most this many malformed rows; they are counted and listed."""
