"""prompts, and what rewards or labels completions → a policy by GRPO, RLOO or online DPO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rlaif.config.sections import GRPOConfig, RLOOConfig
from rlaif.errors import ConfigError
from rlaif.records import Prompt
from rlaif.stages.inputs import load_prompts, sampling_of, start_of
from rlaif.stages.lists import require_room
from rlaif.stages.record import Rejected, Steps, finish, told_kl
from rlaif.stages.rewards import (
    judge_tokens,
    live_label,
    looking_on,
    reward_folder,
    scorer_alone,
    scorer_of,
)
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts
from rlaif.training.settings import Runtime


def train_grpo(run: Run) -> None:
    """prompts, and what rewards completions → models/grpo."""
    _train_group(run, "grpo", run.config.train.grpo)


def train_rloo(run: Run) -> None:
    """prompts, and what rewards completions → models/rloo."""
    _train_group(run, "rloo", run.config.train.rloo)


def _train_group(
    run: Run, name: Literal["grpo", "rloo"], config: GRPOConfig | RLOOConfig | None
) -> None:
    from rlaif.training.rl.group import train_group
    from rlaif.training.rl.scorers import GroupScorer

    clock = time.monotonic()
    if config is None:
        raise ConfigError(f"train.{name} is null in this config: give it settings, or {{}}")
    folder = reward_folder(run, config.reward)
    pairwise = config.reward == "judge" and scorer_alone(run) is None
    if pairwise:  # each against one of `policy.model`, or against the others
        more = int(config.against == "reference")
        require_room(run, config.group + more, f"train.{name}.group={config.group}")
    if pairwise and config.against == "group":
        scorer: Any = GroupScorer(*live_label(run), config.rounds, config.group)
    else:
        scorer = scorer_of(run, config.reward, folder)
    settings = config.but(max_new_tokens=config.max_new_tokens or sampling_of(run.config).limit)

    judge = looking_on(run, name, config.held_out, config.reward)

    def fit(prompts: Sequence[Prompt], runtime: Runtime) -> Any:
        return train_group(
            prompts,
            start_of(run),
            run.store.path("models", name),
            scorer,
            settings,
            spent=(lambda: judge_tokens(run)) if config.reward == "judge" else None,
            judge=judge,
            runtime=runtime,
        )

    facts = {"reward": config.reward}
    _train(run, name, fit, clock, config.batch_size, config.iterations, facts, folder)


def train_online_dpo(run: Run) -> None:
    """prompts, and the judge's labels of live pairs → models/online-dpo."""
    from rlaif.training.rl.online_dpo import train_online_dpo as train
    from rlaif.training.rl.scorers import Labels

    clock, config = time.monotonic(), run.config.train.online_dpo
    if config is None:
        raise ConfigError("train.online_dpo is null in this config: give it settings, or {}")
    label, key = live_label(run)
    judge = looking_on(run, "online_dpo", config.held_out, "labels")
    keep, own = run.config.sampling.keep_cut, config.keep_cut
    settings = config.but(
        max_new_tokens=config.max_new_tokens or sampling_of(run.config).limit,
        keep_cut=keep if own is None else own,
    )

    def fit(prompts: Sequence[Prompt], runtime: Runtime) -> Any:
        return train(
            prompts,
            start_of(run),
            run.store.path("models", "online-dpo"),
            Labels(label, key, lambda: judge_tokens(run)),
            settings,
            judge=judge,
            runtime=runtime,
        )

    _train(run, "online-dpo", fit, clock, config.batch_size, 1, {"reward": "judge"})


def _train(
    run: Run,
    name: str,
    fit: Callable[[Sequence[Prompt], Runtime], Any],
    clock: float,
    rows_a_step: int,
    iterations: int,
    facts: Mapping[str, Any],
    reward: str | None = None,
) -> None:
    """Reads the prompts, fits, and tells and records what came of it."""
    rejected = Rejected(name)
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    rejected.write(run)
    with run.reporter.progress(name, None) as progress:
        steps = Steps(run, name, progress)
        place, trackers = run.config.policy.device, run.config.train.log_to
        metrics = fit(prompts, Runtime(place, log_to=trackers, on_log=steps)).metrics
    record_prompts(run, name, prompts, *starts(run), reward)
    _tell(run, name, metrics)
    spent = {k: metrics[k] for k in ("judge_tokens",) if k in metrics}
    finish(
        run,
        name,
        clock,
        {
            "rows": metrics["steps"] * rows_a_step // iterations,
            "new_rows": steps.now * rows_a_step // iterations,
            "steps": metrics["steps"],
            "model": run.config.policy.model,
            "abstained": metrics["abstained"],
            **facts,
            **spent,
            "rejected_rows": {**rejected.counts(), **metrics["refused"]},
        },
    )


def _tell(run: Run, name: str, metrics: Mapping[str, Any]) -> None:
    means = [f"the {k} is {metrics[k]:.3f}" for k in ("accuracy", "score") if k in metrics]
    if "kl" in metrics:
        means.append(told_kl(name, metrics, "a completion"))
    told = "over the last tenth " + " and ".join(means) if means else "none of them had a label"
    run.reporter.say(f"{name}: {metrics['steps']:,} steps; {told}")
    if metrics["abstained"]:
        run.reporter.warn(f"{metrics['abstained']:.1%} of completions or pairs had no score")
    if metrics["refused"]["too_long"]:
        run.reporter.warn(
            f"{metrics['refused']['too_long']:,} prompts leave no room for "
            f"{sampling_of(run.config).limit} tokens: not used"
        )
    for note in metrics["notes"]:
        run.reporter.warn(note)
