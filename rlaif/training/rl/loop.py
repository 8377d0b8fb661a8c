"""The loop that PPO, GRPO, RLOO and online DPO share: what is around their algorithms.

A killed run goes on from its last checkpoint and, on one device, ends with the same weights bit for
bit: what is drawn depends on the step, and the scores on their completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rlaif.errors import TrainingError
from rlaif.records import Prompt, content_id
from rlaif.training.checkpoints import (
    JOURNAL,
    Due,
    last_checkpoint,
    read_checkpoint,
    steps_from,
    write_checkpoint,
)
from rlaif.training.data import thinking_key
from rlaif.training.loop import Journal, finish, prepare
from rlaif.training.models import Loaded, Start, save_model
from rlaif.training.processes import join, rank, refuse_spread, sum_gradients
from rlaif.training.rl.rollout import Sampler
from rlaif.training.rl.scorers import Scorer
from rlaif.training.rl.settings import OnlineSettings
from rlaif.training.rl.watch import Watch
from rlaif.training.settings import Runtime
from rlaif.training.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Where the policy lies, and how training went. `metrics` is what metrics.json holds."""

    path: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


class Learner(Protocol):
    """An algorithm of our own, which the loop steps: PPO, online DPO."""

    @property
    def policy(self) -> Any:
        """The model that learns."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What learns, by name."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What makes the steps, whose state a checkpoint holds."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in the precision of training."""
        ...

    def step(self, index: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Samples, learns, and returns what the step's line of the journal says."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimiser."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        ...


@dataclass
class OnlineRun:
    """One training: from the run key to the finished model. The methods are called in their order.

    `name` begins the run key. `judge` looks on as `settings.held_out` says, and changes no weight.
    """

    name: str
    start: Start
    out: Path
    settings: OnlineSettings
    runtime: Runtime
    judge: Scorer | None = None
    refused: dict[str, int] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)  # those that fit the context

    def join(self) -> torch.device:
        """Joins the other processes, if there are any; returns this one's device."""
        check_trackers(self.runtime.log_to)
        refuse_spread()
        return join(self.runtime.device)

    def key(self, prompts: Sequence[Prompt], models: Any, rewards: str, *more: Any) -> str:
        """Hash of all that decides the weights: `models` and `rewards` are hashes by content."""
        ids, told = [p.id for p in prompts], thinking_key(self.start.thinking)
        return content_id(self.name, models, ids, rewards, *more, *told)

    def done(self, key: str, *more: str | None) -> TrainingResult | None:
        """The result, where the run of this key is finished; else makes the folder ready for it.

        `more` names models that it must not write over, beside the policy's."""
        models = (self.start.model, self.start.adapter, *more)
        done = prepare(self.out, key, self.runtime.resume, models)
        return None if done is None else self._result(done)

    def load(self) -> Loaded:
        """The policy before training."""
        return self.start.load(**self.settings.precision)

    def take(self, prompts: Sequence[Prompt], sampler: Sampler, a_step: int) -> None:
        """Takes the prompts that fit the context; TrainingError where no step can be made."""
        self.prompts = [prompt for prompt in prompts if sampler.fits(prompt)]
        if len(self.prompts) < a_step:
            raise TrainingError(
                f"{len(self.prompts)} of {len(prompts)} prompts fit the context with "
                f"{self.settings.longest} tokens of completion; a step takes {a_step}"
            )
        self.refused = {"too_long": len(prompts) - len(self.prompts)}

    def watch(self, sampler: Sampler, checkpoint: Path | None, lines_a_step: int = 1) -> Watch:
        """The journal, which goes on after the checkpoint's line, and who looks on."""
        total = self.settings.steps * lines_a_step
        journal = Journal(self.out / JOURNAL, checkpoint, total, 1, self.runtime)
        told = self.runtime.on_log is not None
        name = "online DPO" if self.name == "online-dpo" else self.name.upper()
        return Watch(
            name, self.settings, journal, sampler, self.prompts, self.judge, told, lines_a_step
        )

    def steps(self, learner: Learner, sampler: Sampler, a_step: int) -> list[dict[str, Any]]:
        """Makes all steps that are not yet done; returns the journal's lines."""
        s, checkpoint = self.settings, last_checkpoint(self.out)
        done = 0 if checkpoint is None else _restore(learner, checkpoint)
        watch, due = self.watch(sampler, checkpoint), Due(s.checkpoint_every)
        with steps_from(checkpoint):
            for index in range(done, s.steps):
                watch.look(index, learner.policy, learner.autocast)
                facts = learner.step(index, prompts_of_step(self.prompts, index, a_step, s.seed))
                watch.write(index + 1, facts)
                if rank() == 0:
                    due.after(index + 1, s.steps, lambda n: _save(learner, n, self.out))
        watch.journal.close()
        return watch.journal.lines

    def finish(
        self, loaded: Loaded, lines: Sequence[Mapping[str, Any]], *, counted: bool = False
    ) -> TrainingResult:
        """Writes model and metrics. `counted`: `abstained` of a line is a count, not a share."""
        made = None
        if rank() == 0:
            save_model(loaded, self.out, lora=self.settings.lora is not None, merge=True)
            made = {
                **summary(lines, counted=counted),
                "prompts": len(self.prompts),
                "refused": self.refused,
                "notes": loaded.notes,
                "settings": {**self.settings.key(), "alarms": self.settings.alarms.model_dump()},
            }
        return self._result(finish(self.out, made))

    def _result(self, metrics: dict[str, Any]) -> TrainingResult:
        return TrainingResult(self.out, metrics["steps"], metrics["seconds"], metrics)


def descend(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    parameters: Mapping[str, nn.Parameter],
    index: int,
    settings: OnlineSettings,
) -> Tensor:
    """An optimiser's step down the gradient of all processes, clipped; returns the norm before.

    The learning rates, one a parameter group, fall linearly to 0 over the run; `index` is the step,
    from 0. TrainingError where the gradient is not finite.
    """
    sum_gradients(parameters.values())
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * (1 - index / settings.steps)
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"the gradient is not finite at step {index + 1} of {settings.steps}: lower the "
            "learning rate, or train in float32"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def prompts_of_step(prompts: Sequence[Prompt], index: int, count: int, seed: int) -> list[Prompt]:
    """`count` prompts of the endless stream of shuffled passes over all of them."""
    order: list[int] = []
    for turn in range(index * count // len(prompts), ((index + 1) * count - 1) // len(prompts) + 1):
        order += np.random.default_rng([seed, turn]).permutation(len(prompts)).tolist()
    begin = index * count % len(prompts)
    return [prompts[i] for i in order[begin : begin + count]]


# what no mean over steps is made of
_APART = {"step", "total_steps", "epoch", "seconds", "learning_rate", "abstained", "judge_tokens"}
_APART |= {"alarms", "held_out"}


def summary(lines: Sequence[Mapping[str, Any]], *, counted: bool = False) -> dict[str, Any]:
    """Steps, seconds, what was abstained on, the judge's tokens, its last held-out score, alarms,
    and the means over the last tenth of the lines."""
    last = lines[-max(1, len(lines) // 10) :]
    names = dict.fromkeys(k for line in last for k in line if k not in _APART)
    columns = {k: [line[k] for line in last if k in line] for k in names}
    abstained = [line["abstained"] for line in lines]
    alarms = Counter(name for line in lines for name in line.get("alarms", ()))
    texts = {k: text for x in reversed(lines) for k, text in x.get("alarms", {}).items()}
    judged = [line["held_out"] for line in lines if "held_out" in line]
    made = {
        **({"held_out": judged[-1]} if judged else {}),
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "abstained": sum(abstained) if counted else math.fsum(abstained) / len(lines),
        "alarms": {name: {"steps": n, "first": texts[name]} for name, n in alarms.items()},
    }
    if "judge_tokens" in lines[-1]:
        made["judge_tokens"] = round(math.fsum(line["judge_tokens"] for line in lines))
    return {**made, **{k: math.fsum(v) / len(v) for k, v in columns.items()}}


def _save(learner: Learner, step: int, out: Path) -> None:
    """Writes a checkpoint: the weights that learn, the optimiser, and what is the learner's own."""
    weights = {name: p.detach() for name, p in learner.parameters.items()}
    state = {"weights": weights, "optimizer": learner.optimizer.state_dict(), **learner.state()}
    write_checkpoint(out, step, state)


def _restore(learner: Learner, checkpoint: Path) -> int:
    """Puts a checkpoint's state into the learner; returns the steps done."""
    step, state = read_checkpoint(checkpoint, learner.policy.device)
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(state["weights"][name])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.restore(state)
    return step
