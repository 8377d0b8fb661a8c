"""answers, from a file or the best of this run → a policy by supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlaif.config.sections import SFTConfig
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_demonstrations
from rlaif.records import Demonstration
from rlaif.stages.inputs import start_of
from rlaif.stages.learning import fitting, samples_of
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts, starts
from rlaif.store import lineage

if TYPE_CHECKING:
    from rlaif.training.data import Samples


def train_sft(run: Run) -> None:
    """answers → models/sft."""
    from rlaif.training.sft import train_sft as fit

    clock, config = time.monotonic(), run.config.train.sft
    if config is None:
        raise ConfigError("train.sft is null in this config: give it settings, or {}")
    rejected = Rejected("sft")
    rows, samples = _answers(run, config, rejected)
    rejected.write(run)
    policy = run.config.policy
    with fitting(run, "sft") as (runtime, steps):
        metrics = fit(
            rows,
            start_of(run),
            run.store.path("models", "sft"),
            config,
            samples=samples,
            runtime=runtime,
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
            "new_rows": metrics["rows"] if steps else 0,
            "steps": metrics["steps"],
            "model": policy.model,
            "data": config.data,
            "rejected_rows": {**rejected.counts(), **refused},
        },
    )


def _answers(
    run: Run, config: SFTConfig, rejected: Rejected
) -> tuple[list[Demonstration], Samples]:
    """The answers, and how they were sampled, where they were."""
    from rlaif.training.data import Samples

    if config.data != "best":
        found = read_demonstrations(config.data, config, on_bad=rejected.add)
        rows = list(found)
        if not rows:
            raise rejected.none_left(config.data, "answer")
        return rows, Samples()
    from rlaif.training.sft import best_answers

    tell_stale(run, lineage.LABELS)
    rows = best_answers(run.store.table("preferences").read())[: config.limit]
    if not rows:
        raise DataError(
            f"{run.store.root}: no preferred completion to learn from: run `rlaif label` first, or "
            "give --data FILE"
        )
    return rows, samples_of(run.store)


def _tell(run: Run, metrics: Mapping[str, Any]) -> None:
    run.reporter.say(
        f"sft: {metrics['rows']:,} answers, {metrics['steps']:,} steps; the loss over the last "
        f"epoch is {metrics['loss']:.3f} nats a token"
    )
    for note in metrics["notes"]:
        run.reporter.warn(note)
    for reason, found in metrics["refused"].items():
        run.reporter.warn(f"{found['n']:,} answers not trained on: {reason} (ids in metrics.json)")
