"""A judge that looks on while PPO learns from another reward, and the alarm when the two part.

A reward that rises while a judge that does not reward finds the answers worse is being exploited
(Gao et al. 2023). The measurement draws from a seed of its own, so training does not notice it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif.records import Prompt, content_id
from rlaif.training.processes import gathered, share
from rlaif.training.rl.ppo import PPO, score_all
from rlaif.training.rl.rollout import occurrences
from rlaif.training.rl.scorers import Scorer
from rlaif.training.rl.settings import HeldOutSettings


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Who judges, how often and on how many of the training prompts."""

    judge: Scorer
    settings: HeldOutSettings

    def due(self, index: int, steps: int) -> bool:
        """Whether to measure before step `index`: the first, each `every`-th and the last."""
        return index % self.settings.every == 0 or index == steps - 1

    def measure(self, ppo: PPO, prompts: Sequence[Prompt]) -> float | None:
        """The judge's mean score of the policy's answers; None where it abstained on all.

        The prompts and the draws are the same each time. All processes must call this together.
        """
        seed = ppo.settings.seed
        order = np.random.default_rng([seed, 0x4E1D]).permutation(len(prompts))
        chosen = [prompts[i] for i in order[: self.settings.prompts].tolist()]
        drawn = int(content_id("held out", seed)[:15], 16)
        again = share(occurrences(chosen))
        with ppo.nets.autocast():
            mine = ppo.sampler.sample(ppo.nets.policy, share(chosen), drawn, draws=again)
        scores = [x for x in gathered(score_all(self.judge, mine)) if x is not None]
        return math.fsum(scores) / len(scores) if scores else None


def held_out_alarm(
    lines: Sequence[Mapping[str, Any]], every: int, limit: float | None
) -> str | None:
    """What to say if the reward has risen and `held_out` fell by more than `limit` since the start.

    `lines` are the journal's up to now. The rewards compared are means of the first and of the
    last `every` steps.
    """
    if limit is None or len(lines) <= every or lines[-1].get("held_out") is None:
        return None
    first = next(line["held_out"] for line in lines if line.get("held_out") is not None)
    before, now = (
        math.fsum(x["score"] for x in part) / every
        for part in (
            lines[:every],
            lines[-every:],
        )
    )
    judged = lines[-1]["held_out"]
    if now <= before or first - judged <= limit:
        return None
    return (
        f"the reward rose from {before:.3f} to {now:.3f} while the judge's held-out score fell "
        f"from {first:.3f} to {judged:.3f}: the policy learns what the judge dislikes. Raise beta, "
        "stop earlier, or mend the reward"
    )
