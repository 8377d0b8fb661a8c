"""`rlaif run`, `rlaif sample`, `rlaif label`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.common import (
    ColumnOption,
    ConfigOption,
    ConstitutionOption,
    ExecutorOption,
    FormatOption,
    JudgeOption,
    LimitOption,
    MethodOption,
    OutOption,
    PairsOption,
    PolicyOption,
    PromptsOption,
    SetOption,
    SkipOption,
    columns_of,
    configure,
    execute,
)

if TYPE_CHECKING:
    from rlaif.config import Config


def run(
    config: ConfigOption = None,
    out: OutOption = None,
    constitution: ConstitutionOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    executor: ExecutorOption = None,
    overrides: SetOption = None,
) -> None:
    """Run every stage: sample, label, train, evaluate, report.

    Example: rlaif run --config demo --constitution concise --out runs/concise
    """
    from rlaif import stages

    named = {
        "constitution": constitution, "policy.model": policy, "judge.model": judge,
        "executor": executor,
    }  # fmt: skip
    resolved = configure(config, out, overrides, named)
    first = stages.sample if resolved.pairs is None else stages.read
    steps = [first, stages.label, stages.audit]
    if resolved.train.reward:
        steps.append(stages.train_reward)
    policies = {
        "sft": stages.train_sft, "dpo": stages.train_dpo, "ppo": stages.train_ppo,
        "grpo": stages.train_grpo, "rloo": stages.train_rloo, "online_dpo": stages.train_online_dpo,
    }  # fmt: skip
    trained = [train for name, train in policies.items() if getattr(resolved.train, name)]
    steps += [*trained, *([stages.evaluate] if trained else [])]
    if trained:
        stages.held_out_section(resolved)  # what will be missing at the end is told at the start
    _tell(resolved, [step.__name__ for step in [*steps, stages.report]])
    execute(resolved, *steps, stages.report)


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


def sample(
    config: ConfigOption = None,
    out: OutOption = None,
    prompts: PromptsOption = None,
    policy: PolicyOption = None,
    column: ColumnOption = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Completions a prompt.")] = None,
    limit: LimitOption = None,
    skip_bad: SkipOption = None,
    executor: ExecutorOption = None,
    overrides: SetOption = None,
) -> None:
    """Sample completions and pair them.

    Example: rlaif sample --prompts prompts.jsonl --policy Qwen/Qwen3-0.6B -n 4 --out runs/mine
    """
    from rlaif import stages

    named = {
        "prompts.path": prompts, "policy.model": policy, "sampling.n": n,
        "prompts.limit": limit, "prompts.skip_bad": skip_bad, "executor": executor,
        **columns_of("prompts", column),
    }  # fmt: skip
    execute(configure(config, out, overrides, named), stages.sample)


def label(
    config: ConfigOption = None,
    out: OutOption = None,
    pairs: PairsOption = None,
    pairs_format: FormatOption = None,
    column: ColumnOption = None,
    constitution: ConstitutionOption = None,
    judge: JudgeOption = None,
    method: MethodOption = None,
    limit: LimitOption = None,
    skip_bad: SkipOption = None,
    executor: ExecutorOption = None,
    overrides: SetOption = None,
) -> None:
    """Judge pairs under the principles: those of --pairs, or those sampled into the run.

    Example: rlaif label --pairs pairs.jsonl.gz --constitution harmless --judge tiny --out runs/hh

    Example: rlaif label --method adaptive --set judge.band=0.2 --out runs/mine
    """
    from rlaif import stages

    named = {
        "pairs.path": pairs, "pairs.format": pairs_format, "constitution": constitution,
        "judge.model": judge, "pairs.limit": limit, "pairs.skip_bad": skip_bad,
        "executor": executor, "judge.method": method, **columns_of("pairs", column),
    }  # fmt: skip
    resolved = configure(config, out, overrides, named)
    steps = (stages.label,) if resolved.pairs is None else (stages.read, stages.label)
    execute(resolved, *steps)
