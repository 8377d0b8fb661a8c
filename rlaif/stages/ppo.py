"""prompts, and what rewards completions → a policy by PPO."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rlaif.errors import ConfigError
from rlaif.files.readers import read_demonstrations
from rlaif.files.readers.settings import AnswerReading
from rlaif.records import Demonstration
from rlaif.stages.inputs import load_prompts, sampling_of, start_of
from rlaif.stages.lists import require_room
from rlaif.stages.record import Rejected, Steps, finish, told_kl
from rlaif.stages.rewards import looking_on, reward_folder, scorer_of
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts
from rlaif.training.settings import Runtime


def train_ppo(run: Run) -> None:
    """prompts, and what rewards completions → models/ppo."""
    from rlaif.training.rl.ppo_run import train_ppo as fit

    clock, config = time.monotonic(), run.config.train.ppo
    if config is None:
        raise ConfigError("train.ppo is null in this config: give it settings, or {}")
    if config.reward == "judge":  # and one of `policy.model`, which they are compared with
        require_room(run, config.samples + 1, f"train.ppo.samples={config.samples}")
    rejected = Rejected("ppo")
    prompts = list(load_prompts(run, run.config.prompts, "train", rejected.add))
    ptx: list[Demonstration] = []
    if config.ptx is not None:
        reading = AnswerReading(columns=config.ptx_columns)
        ptx = list(read_demonstrations(config.ptx, reading, on_bad=rejected.add))
    rejected.write(run)
    reward = reward_folder(run, config.reward)
    settings = config.but(
        max_new_tokens=config.max_new_tokens or sampling_of(run.config).limit,
        value_model=None if config.value == "shared" else config.value_model or reward,
    )
    if config.ptx_weight and not ptx:
        raise ConfigError("train.ppo.ptx_weight is above 0: name its demonstrations in ptx")
    scorer = scorer_of(run, config.reward, reward)  # a function that cannot be, before any model
    judge = looking_on(run, "ppo", config.held_out, config.reward)
    place, trackers = run.config.policy.device, run.config.train.log_to
    with run.reporter.progress("ppo", None) as progress:
        steps = Steps(run, "ppo", progress)
        result = fit(
            prompts,
            start_of(run),
            run.store.path("models", "ppo"),
            scorer,
            settings,
            ptx=ptx,
            judge=judge,
            runtime=Runtime(place, log_to=trackers, on_log=steps),
        )
    read = [*prompts, *(row.prompt for row in ptx)]
    record_prompts(run, "ppo", read, *starts(run), reward, settings.value_model)
    metrics = result.metrics
    _tell_ppo(run, metrics)
    episodes = metrics["steps"] * config.batch_size
    finish(
        run,
        "ppo",
        clock,
        {
            "rows": episodes,
            "new_rows": steps.now * config.batch_size,
            "steps": metrics["steps"],
            "model": run.config.policy.model,
            "reward": config.reward,
            "abstained": metrics["abstained"],
            "rejected_rows": metrics["refused"],
        },
    )


def _tell_ppo(run: Run, metrics: Mapping[str, Any]) -> None:
    run.reporter.say(
        f"ppo: {metrics['steps']:,} steps; over the last tenth the score is "
        f"{metrics['score']:.3f} and {told_kl('ppo', metrics, 'an episode')}"
    )
    if metrics["abstained"]:
        run.reporter.warn(f"{metrics['abstained']:,} episodes not trained on: no score for them")
    if metrics["refused"]["too_long"]:
        run.reporter.warn(
            f"{metrics['refused']['too_long']:,} prompts leave no room for "
            f"{sampling_of(run.config).limit} tokens: not used"
        )
    if metrics["refused"]["ptx"]:
        run.reporter.warn(
            f"{metrics['refused']['ptx']:,} demonstrations of train.ppo.ptx do not fit the "
            "context: not used"
        )
    for note in metrics["notes"]:
        run.reporter.warn(note)
