"""answers, from a file or the best of this run → a policy by supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from rlaif.config import SFTConfig
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_demonstrations
from rlaif.files.readers.settings import AnswerReading
from rlaif.records import Demonstration
from rlaif.stages.learning import cut_completions, sampled_tokens
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts
from rlaif.store import lineage

if TYPE_CHECKING:
    from rlaif.training.data import Sampled


def train_sft(run: Run) -> None:
    """answers → models/sft."""
    from rlaif.training.sft import train_sft as fit

    clock, config = time.monotonic(), run.config.train.sft
    if config is None:
        raise ConfigError("train.sft is null in this config: give it settings, or {}")
    rejected = Rejected("sft")
    rows, cut, sampled = _answers(run, config, rejected)
    rejected.write(run)
    options = config.model_dump(exclude={"data", "columns", "limit", "skip_bad", "lora"})
    steps_now = 0
    with run.reporter.progress("sft", None) as progress:

        def on_log(row: Mapping[str, Any]) -> None:
            nonlocal steps_now
            steps_now += 1
            progress(row["step"], row["total_steps"])

        metrics = fit(
            rows,
            run.config.policy.model,
            run.store.path("models", "sft"),
            cut=cut,
            sampled=sampled,
            adapter=run.config.policy.adapter,
            thinking=run.config.policy.thought_tokens,
            device=run.config.policy.device,
            lora=config.lora,
            log_to=run.config.train.log_to,
            on_log=on_log,
            **options,
        ).metrics
    record_prompts(run, "sft", (row.prompt for row in rows), *starts(run))
    _tell(run, metrics)
    refused = {reason: found["n"] for reason, found in metrics["refused"].items()}
    finish(
        run,
        "sft",
        clock,
        {
            "rows": metrics["rows"],
            "new_rows": metrics["rows"] if steps_now else 0,
            "steps": metrics["steps"],
            "model": run.config.policy.model,
            "data": config.data,
            "rejected_rows": {**rejected.counts(), **refused},
        },
    )


def _answers(
    run: Run, config: SFTConfig, rejected: Rejected
) -> tuple[list[Demonstration], Collection[tuple[str, str]], Sampled]:
    """The answers, those that a length limit cut off, and the tokens of those that were sampled."""
    if config.data != "best":
        reading = AnswerReading(
            columns=config.columns, limit=config.limit, skip_bad=config.skip_bad
        )
        found = read_demonstrations(config.data, reading, on_bad=rejected.add)
        rows = list(found)
        if not rows:
            raise rejected.none_left(config.data, "answer")
        return rows, (), {}
    from rlaif.training.sft import best_answers

    tell_stale(run, lineage.LABELS)
    rows = best_answers(run.store.table("preferences").read())[: config.limit]
    if not rows:
        raise DataError(
            f"{run.store.root}: no preferred completion to learn from: run `rlaif label` first, or "
            "give --data FILE"
        )
    return rows, cut_completions(run.store), sampled_tokens(run.store)


def _tell(run: Run, metrics: Mapping[str, Any]) -> None:
    run.reporter.say(
        f"sft: {metrics['rows']:,} answers, {metrics['steps']:,} steps; the loss over the last "
        f"epoch is {metrics['loss']:.3f} nats a token"
    )
    for note in metrics["notes"]:
        run.reporter.warn(note)
    for reason, found in metrics["refused"].items():
        run.reporter.warn(f"{found['n']:,} answers not trained on: {reason} (ids in metrics.json)")
