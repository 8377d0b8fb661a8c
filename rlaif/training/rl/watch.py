"""What is watched while a policy learns: alarms, and a judge that looks on.

A reward that rises while a judge that does not reward finds the answers worse is being exploited
(Gao et al. 2023). The judge's measurement draws from a seed of its own, so training does not notice
it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlaif.records import Prompt, content_id
from rlaif.training.loop import Journal
from rlaif.training.processes import gathered, rank, share
from rlaif.training.rl.rollout import Sampler, occurrences
from rlaif.training.rl.scorers import Scorer, score_all
from rlaif.training.rl.settings import HeldOutSettings, OnlineSettings

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass
class Watch:
    """Adds to each line of the journal what the held-out judge said and what has gone wrong.

    `lines_a_step`: lines of the journal for each batch of completions. Alarms are warned of when
    they first come, by `name`, where nobody is told the lines.
    """

    name: str
    settings: OnlineSettings
    journal: Journal
    sampler: Sampler
    prompts: Sequence[Prompt]
    judge: Scorer | None = None
    told_lines: bool = False
    lines_a_step: int = 1
    _seen: dict[str, Any] = field(default_factory=dict)

    def look(self, index: int, policy: Any, autocast: Autocast = nullcontext) -> None:
        """Before step `index` of all processes: asks the judge if it is due (the first step, each
        `every`-th and the last); its score stands in that step's line."""
        held = self.settings.held_out
        if self.judge is None or held is None:
            return
        if index % held.every and index != self.settings.steps - 1:
            return
        with autocast():
            found = self._measured(self.judge, held, policy)
        self._seen = {"held_out": found}

    def _measured(self, judge: Scorer, held: HeldOutSettings, policy: Any) -> float | None:
        """The judge's mean score of the policy's answers; None where it abstained on all.

        The prompts and the draws are the same each time.
        """
        seed = self.settings.seed
        order = np.random.default_rng([seed, 0x4E1D]).permutation(len(self.prompts))
        chosen = [self.prompts[i] for i in order[: held.prompts].tolist()]
        drawn = int(content_id("held out", seed)[:15], 16)
        again = share(occurrences(chosen))
        mine = self.sampler.sample(policy, share(chosen), drawn, draws=again)
        scores = [x for x in gathered(score_all(judge, mine)) if x is not None]
        return math.fsum(scores) / len(scores) if scores else None

    def write(self, line: int, facts: Mapping[str, Any]) -> None:
        """Writes a line of the journal, with the alarms of what it says."""
        facts = {**facts, **self._seen}
        self._seen = {}
        if rank() == 0:
            facts["alarms"] = self._alarms(facts)
            if not self.told_lines:
                before = {name for x in self.journal.lines for name in x.get("alarms", ())}
                for name in facts["alarms"].keys() - before:
                    warnings.warn(f"{self.name} step {line}: {facts['alarms'][name]}", stacklevel=4)
        self.journal.write(line, facts)

    def _alarms(self, facts: dict[str, Any]) -> dict[str, str]:
        lines = self.journal.lines
        found = find_alarms(facts, lines[0] if lines else facts, self.settings)
        if self.judge is not None and (held := self.settings.held_out) is not None:
            every, limit = held.every * self.lines_a_step, self.settings.alarms.held_out
            if parted := held_out_alarm([*lines, facts], every, limit):
                found["held_out"] = parted
        return found


def find_alarms(
    facts: Mapping[str, Any], first: Mapping[str, Any], settings: OnlineSettings
) -> dict[str, str]:
    """What has gone wrong by this step, by name. `first` is the run's first step.

    What a trainer does not measure is not looked at, and what it has no setting for not advised.
    """
    found, limits = {}, settings.alarms
    if limits.kl is not None and facts["kl"] > limits.kl:
        found["kl"] = (
            f"the KL to the reference is {facts['kl']:.1f} nats an episode, above {limits.kl:g}: "
            + _advice(settings, "raise beta", "set target_kl")
        )
    least = 0.0 if limits.entropy is None else limits.entropy * first.get("entropy", 0.0)
    if facts.get("entropy", least) < least:
        found["entropy"] = (
            f"the entropy fell to {facts['entropy']:.3f} nats a token from {first['entropy']:.3f}: "
            "the policy says ever the same; "
            + _advice(settings, "raise beta", "raise entropy_weight", "lower learning_rate")
        )
    drift = facts["length"] / first["length"]
    if limits.length is not None and not 1 / limits.length <= drift <= limits.length:
        found["length"] = (
            f"completions have {facts['length']:.1f} tokens on average, at first "
            f"{first['length']:.1f}: look whether length is what is rewarded"
        )
    if limits.ended is not None and facts["ended"] < limits.ended:
        found["ended"] = f"only {facts['ended']:.0%} of completions end by themselves: " + _advice(
            settings, "raise max_new_tokens", "lower no_end_score"
        )
    return found


def _advice(settings: OnlineSettings, *ways: str) -> str:
    """The ways whose last word is a setting that this trainer has."""
    known = type(settings).model_fields
    return ", or ".join(way for way in ways if way.split()[-1] in known)


def held_out_alarm(
    lines: Sequence[Mapping[str, Any]], every: int, limit: float | None
) -> str | None:
    """What to say if the reward has risen and `held_out` fell by more than `limit` since the start.

    `lines` are the journal's up to now. The rewards compared are means of the first and of the
    last `every` lines. Online DPO has no reward: there it is the margin of what is preferred.
    """
    if limit is None or len(lines) <= every or lines[-1].get("held_out") is None:
        return None
    gain, what = ("score", "reward") if "score" in lines[-1] else ("margin", "margin")
    parts = [[x[gain] for x in part if gain in x] for part in (lines[:every], lines[-every:])]
    if not all(parts):
        return None
    first = next(line["held_out"] for line in lines if line.get("held_out") is not None)
    before, now = (math.fsum(part) / len(part) for part in parts)
    judged = lines[-1]["held_out"]
    if now <= before or first - judged <= limit:
        return None
    return (
        f"the {what} rose from {before:.3f} to {now:.3f} while the judge's held-out score fell "
        f"from {first:.3f} to {judged:.3f}: the policy learns what the judge dislikes. Raise beta, "
        "stop earlier, or mend the reward"
    )
