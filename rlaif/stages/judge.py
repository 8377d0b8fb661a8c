"""labelled pairs → a judge that has learnt them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config.sections import JudgeTrainConfig
from rlaif.constitution import Principle, require
from rlaif.errors import ConfigError, DataError
from rlaif.judges.base import Principles
from rlaif.judges.draw import Draw
from rlaif.judges.methods import method_of
from rlaif.judges.settings import JudgingSettings
from rlaif.stages.labelling import known
from rlaif.stages.learning import fitting, judged
from rlaif.stages.record import finish
from rlaif.stages.run import Run
from rlaif.stages.trained_on import record_prompts

if TYPE_CHECKING:
    from rlaif.training.judge import Question

NAME = "judge"


def train_judge(run: Run) -> None:
    """labelled pairs → models/judge."""
    from rlaif.training.data import split_by_prompt
    from rlaif.training.judge import train_judge as fit

    clock, config = time.monotonic(), run.config.train.judge
    if config is None:
        raise ConfigError("train.judge is null in this config: give it settings, or {}")
    start, template = _start(run, config)
    questions = _questions(run, config)
    with fitting(run, f"train {NAME}", start.device) as (runtime, steps):
        metrics = fit(
            questions,
            start.model,
            run.store.path("models", NAME),
            config,
            template=template,
            order_rule=run.config.preferences.orders,
            adapter=start.adapter,
            runtime=runtime,
        ).metrics
    learnt, _ = split_by_prompt(questions, config.held_out, config.seed)
    began = [name for name in (start.model, start.adapter) if name and Path(name).is_dir()]
    record_prompts(run, NAME, (q.pair.prompt for q in learnt), *began)
    _tell(run, metrics)
    refused = {reason: found["n"] for reason, found in metrics["refused"].items()}
    finish(
        run,
        NAME,
        clock,
        {
            "rows": metrics["pairs"],
            "new_rows": metrics["pairs"] if steps else 0,
            "steps": metrics["steps"],
            "model": start.model,
            "labels": config.labels,
            "rejected_rows": refused,
        },
    )


def _start(run: Run, config: JudgeTrainConfig) -> tuple[JudgingSettings, str | None]:
    """The model to start from with its adapter and device, and the template to learn with."""
    judge: JudgingSettings = run.config.judge
    if config.model is not None:
        if config.juror is not None:
            raise ConfigError("train.judge: model and juror both name where to start: give one")
        fresh = JudgingSettings(model=config.model, device=judge.device)
        return fresh, config.template
    jury = {juror.name: juror for juror in run.config.jury}
    if config.juror is not None and config.juror not in jury:
        among = f"the jurors are {', '.join(jury)}" if jury else "this run has no jury"
        raise ConfigError(f"train.judge.juror: there is no '{config.juror}': {among}")
    if jury and config.juror is None:
        raise ConfigError(
            f"this run has a jury ({', '.join(jury)}): name the juror to train, as --set "
            f"train.judge.juror={next(iter(jury))}, or a model, as --model MODEL"
        )
    found = jury[config.juror] if config.juror is not None else judge
    if found.engine == "http":
        raise ConfigError(
            f"the judge {found.model} is on a server, whose weights cannot be trained: name a "
            "folder or a model of the hub, as --model MODEL"
        )
    pairwise = method_of(found.method).of_pairs  # the others' templates ask otherwise
    return found, config.template or (found.template if pairwise else None)


# ------------------------------------------------------------------------------------- the labels


def _questions(run: Run, config: JudgeTrainConfig) -> list[Question]:
    """What is known of the pairs, or was said of them, each under its principles."""
    from rlaif.training.judge import Question

    if config.labels in ("preferences", "verdicts"):
        return _said(run, config)
    shown, labelled = _shown(run, config), known(run, config.labels)
    return [Question(pair, principle, p) for pair, p in labelled for principle in shown(pair)]


def _said(run: Run, config: JudgeTrainConfig) -> list[Question]:
    """What the run's judge or jury said of the pairs: in all, or under each principle."""
    from rlaif.training.judge import Question

    preferences = judged(run, "run `rlaif label` with a stronger one first")
    shown = _shown(run, config)
    by_id = {p.id: p for p in run.principles()}
    found, left = [], 0
    for row in preferences:
        if row.p_first is None:
            left += 1
        elif config.labels == "preferences":
            found += [Question(row.pair, principle, row.p_first) for principle in shown(row.pair)]
        for name, p in zip(row.principles, row.p_principles, strict=True):
            if config.labels == "verdicts" and name in by_id:
                found.append(Question(row.pair, by_id[name], p))
    if not found:
        raise DataError(
            f"{run.store.root}: none of its {len(preferences):,} labels can be learnt: the judge "
            "abstained, or its principles are no longer in the constitution"
        )
    if left:
        run.reporter.warn(f"{left:,} pairs not trained on: their labels are abstentions")
    return found


def _shown(run: Run, config: JudgeTrainConfig) -> Any:
    """The principles that a pair is shown under."""
    every: tuple[Principle, ...] = run.principles()
    if config.principles is not None:
        named = config.principles
        whole = run.constitution
        every = whole.principles if named == "all" else whole.select(named)
    require(every, "label")
    if config.draw is None:
        return lambda _: every
    drawn: Principles = Draw(every, min(config.draw, len(every)), seed=config.seed)
    return drawn


# ------------------------------------------------------------------------------------- what is told


def _tell(run: Run, metrics: Mapping[str, Any]) -> None:
    tokens = metrics["tokens"]
    run.reporter.say(
        f"{NAME}: {metrics['pairs']:,} pairs, {metrics['questions']:,} questions in both orders, "
        f"{metrics['steps']:,} steps; {tokens['computed']:,} of {tokens['submitted']:,} tokens an "
        f"epoch computed; loss {metrics['loss']:.3f} nats in the last epoch"
    )
    held_out = metrics.get("held_out") or {}
    if "after" in held_out:
        run.reporter.say(
            f"on {held_out['prompts']:,} held-out prompts, {held_out['questions']:,} questions:\n"
            + "\n".join(_compared(held_out))
        )
    if held_out.get("unanswered"):
        run.reporter.warn(f"{held_out['unanswered']:,} held-out questions could not be measured")
    for note in metrics["notes"]:
        run.reporter.warn(note)
    for reason, found in metrics["refused"].items():
        run.reporter.warn(f"{found['n']:,} questions left out: {reason} (ids in metrics.json)")


_ROWS = {
    "accuracy": "agrees with the labels",
    "swap_consistency": "both orders prefer one response",
    "says_first": "says what stands first",
    "ece": "calibration error (ECE)",
    "log_loss": "log loss, nats",
    "label_mass": "label mass",
}


def _compared(held_out: Mapping[str, Any]) -> list[str]:
    """The table of before and after, with 95 % intervals over prompts."""

    def told(when: str, name: str) -> str:
        found = held_out[when]["intervals"].get(name)
        if found is None:
            return "–"
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    rows = [("", "before", "after")]
    rows += [(text, told("before", name), told("after", name)) for name, text in _ROWS.items()]
    lines = [f"  {a:<32} {b:<23} {c}".rstrip() for a, b, c in rows]
    gain = held_out.get("gain")
    if gain is not None:
        lines.append(
            f"  agreement rose by {gain['value']:z.3f} [{gain['low']:z.3f}, {gain['high']:z.3f}]"
        )
    return lines
