"""`rlaif run`, `rlaif sample`, `rlaif label`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.common import execute, foretell
from rlaif.cli.options import on_a_run
from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rlaif.config import Config

_SOURCE = "source."  # stands for the section of what is read, prompts or pairs


def _of_a_run(named: dict[str, Any], load: Callable[[], Config]) -> dict[str, Any]:
    """`run` reads prompts or pairs, and its seed is that of sampling and of all that is trained."""
    given = {key: value for key, value in named.items() if value is not None}
    if {"prompts.path", "pairs.path"} <= given.keys():
        raise ConfigError("--prompts and --pairs: a run samples from prompts or reads pairs")
    config = load()
    if "prompts.path" in given and config.pairs is not None:
        given = {"pairs": None, **given}
    pairs = "pairs.path" in given or (config.pairs is not None and "prompts.path" not in given)
    seed = given.get("sampling.seed")
    if seed is not None:
        trained = [name for name, part in config.train if hasattr(part, "seed")]
        given |= {f"train.{name}.seed": seed for name in trained}
    source = "pairs." if pairs else "prompts."
    return {
        source + key.removeprefix(_SOURCE) if key.startswith(_SOURCE) else key: value
        for key, value in given.items()
    }


@on_a_run(
    "prompts",
    "pairs",
    "format",
    "constitution",
    "policy",
    "judge",
    "method",
    "examples",
    "executor",
    column="source",
    limit="source.limit",
    skip_bad="source.skip_bad",
    seed="sampling.seed",
    resolve=_of_a_run,
)
def run(config: Config) -> None:
    """Run every stage: sample, label, train, evaluate, report.

    Example: rlaif run --config demo --constitution concise --out runs/concise
    """
    from rlaif import stages
    from rlaif.stages.audit import audit

    first = stages.sample if config.pairs is None else stages.read
    steps = [first, stages.label, audit]
    if config.train.judge:
        steps.append(stages.train_judge)
    if config.train.reward:
        steps.append(stages.train_reward)
    policies = {
        "sft": stages.train_sft,
        "dpo": stages.train_dpo,
        "ppo": stages.train_ppo,
        "grpo": stages.train_grpo,
        "rloo": stages.train_rloo,
        "online_dpo": stages.train_online_dpo,
    }
    trained = [train for name, train in policies.items() if getattr(config.train, name)]
    steps += [*trained, *([stages.evaluate] if trained else [])]
    if trained:
        stages.held_out_section(config)  # what will be missing at the end is told at the start
    if config.evaluate.model_written.path is not None:
        from rlaif.stages.model_written import model_written

        steps.append(model_written)
    _tell(config, [step.__name__ for step in [*steps, stages.report]])
    execute(config, *steps, stages.report)


def _tell(config: Config, steps: Sequence[str]) -> None:
    """What a run is about to do."""
    from rlaif.cli.console import Terminal

    source = config.prompts.path if config.pairs is None else config.pairs.path
    what = "the embedded world's prompts" if source == "tiny" else source
    judge = ", ".join(j.name for j in config.jury) or config.judge.model
    Terminal().say(
        f"run: {' → '.join(step.replace('train_', 'train ').replace('_', '-') for step in steps)}\n"
        f"  {what}; constitution {config.constitution}; policy {config.policy.model}; "
        f"judge {judge}; into {config.out}"
    )


@on_a_run(
    "prompts",
    "constitution",
    "policy",
    "n",
    "executor",
    column="prompts",
    limit="prompts.limit",
    skip_bad="prompts.skip_bad",
    seed="sampling.seed",
)
def sample(config: Config) -> None:
    """Sample completions and pair them.

    Example: rlaif sample --prompts prompts.jsonl --policy Qwen/Qwen3-0.6B -n 4 --out runs/mine
    """
    from rlaif import stages

    execute(config, stages.sample)


@on_a_run(
    "pairs",
    "format",
    "constitution",
    "judge",
    "method",
    "examples",
    "executor",
    column="pairs",
    limit="pairs.limit",
    skip_bad="pairs.skip_bad",
    seed="judge.rationale.seed",
)
def label(
    config: Config,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Tell requests, tokens, seconds and money, and judge nothing."
        ),
    ] = False,
) -> None:
    """Judge pairs under the principles: those of --pairs, or those sampled into the run.

    Example: rlaif label --pairs pairs.jsonl.gz --constitution harmless --judge tiny --out runs/hh

    Example: rlaif label --method adaptive --set judge.band=0.2 --out runs/mine

    Example: rlaif label --constitution mine.yaml --out runs/mine --dry-run
    """
    from rlaif import stages

    if dry_run:
        foretell(config)
        return

    steps = (stages.label,) if config.pairs is None else (stages.read, stages.label)
    execute(config, *steps)
