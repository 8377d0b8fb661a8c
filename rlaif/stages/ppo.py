"""prompts, and what rewards completions → a policy by PPO."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rlaif.errors import ConfigError
from rlaif.files.readers import read_demonstrations
from rlaif.files.readers.settings import AnswerReading
from rlaif.records import Demonstration
from rlaif.stages.inputs import load_prompts, sampling_of
from rlaif.stages.lists import require_room
from rlaif.stages.record import Rejected, finish, told_kl
from rlaif.stages.rewards import reward_folder, scorer_of
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts


def train_ppo(run: Run) -> None:
    """prompts, and what rewards completions → models/ppo."""
    from rlaif.training.rl.held_out import HeldOut
    from rlaif.training.rl.ppo import AlarmLimits, PPOSettings
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
    options = config.model_dump(
        exclude={
            "reward",
            "lora",
            "alarms",
            "checkpoint_every",
            "held_out",
            "ptx",
            "ptx_columns",
            "vllm",
        }
    )
    once = 4 if config.algorithm == "ppo" else 1
    options["epochs"] = config.epochs or once
    options["minibatches"] = config.minibatches or once
    options["value_model"] = config.value_model or reward
    if config.value == "shared":
        options["value_model"] = None
    if config.ptx_weight and not ptx:
        raise ConfigError("train.ppo.ptx_weight is above 0: name its demonstrations in ptx")
    scorer = scorer_of(run, config.reward, reward)  # a function that cannot be, before any model
    held_out = None
    if config.held_out is not None and config.reward != "judge":
        held_out = HeldOut(scorer_of(run, "judge", None), **dict(config.held_out))
        run.reporter.say(
            f"ppo: the judge looks on, every {held_out.every} steps on {held_out.prompts} answers "
            "(train.ppo.held_out; null asks it nothing)"
        )
    steps_now, told = 0, set[str]()
    with run.reporter.progress("ppo", None) as progress:

        def on_log(row: Mapping[str, Any]) -> None:
            nonlocal steps_now
            steps_now += 1
            for name in row["alarms"].keys() - told:
                run.reporter.warn(f"ppo step {row['step']}: {row['alarms'][name]}")
            told.update(row["alarms"])
            progress(row["step"], row["total_steps"])

        result = fit(
            prompts,
            run.config.policy.model,
            run.store.path("models", "ppo"),
            scorer,
            PPOSettings(
                **options,
                lora=config.lora,
                alarms=AlarmLimits(**dict(config.alarms)),
                max_new_tokens=sampling_of(run.config).limit,
            ),
            adapter=run.config.policy.adapter,
            thinking=run.config.policy.thought_tokens,
            ptx=ptx,
            held_out=held_out,
            device=run.config.policy.device,
            checkpoint_every=config.checkpoint_every,
            log_to=run.config.train.log_to,
            on_log=on_log,
            vllm=config.vllm.model_dump(exclude_none=True),
        )
    read = [*prompts, *(row.prompt for row in ptx)]
    record_prompts(run, "ppo", read, *starts(run), reward, options["value_model"])
    metrics = result.metrics
    _tell_ppo(run, metrics)
    episodes = metrics["steps"] * config.batch_size
    finish(
        run,
        "ppo",
        clock,
        {
            "rows": episodes,
            "new_rows": steps_now * config.batch_size,
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
