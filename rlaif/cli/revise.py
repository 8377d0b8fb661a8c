"""`rlaif revise`, `rlaif contrast`: training data without a judge."""

from __future__ import annotations

from typing import Annotated

import typer

from rlaif.cli.common import (
    ColumnOption,
    ConfigOption,
    ConstitutionOption,
    LimitOption,
    OutOption,
    PolicyOption,
    PromptsOption,
    SetOption,
    columns_of,
    configure,
    execute,
)


def revise(
    config: ConfigOption = None,
    out: OutOption = None,
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    constitution: ConstitutionOption = None,
    policy: PolicyOption = None,
    rounds: Annotated[int | None, typer.Option(help="Revisions of each response.")] = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
) -> None:
    """Have the policy criticise and revise its own responses under drawn principles.

    Example: rlaif revise --prompts red-team.jsonl --constitution sixteen --out runs/revised
    """
    from rlaif import stages

    named = {
        "prompts.path": prompts, "constitution": constitution, "policy.model": policy,
        "revise.rounds": rounds, "prompts.limit": limit, **columns_of("prompts", column),
    }  # fmt: skip
    execute(configure(config, out, overrides, named), stages.revise)


def contrast(
    config: ConfigOption = None,
    out: OutOption = None,
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    constitution: ConstitutionOption = None,
    policy: PolicyOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
) -> None:
    """Make preference pairs from two opposed wishes; nothing is judged.

    Example: rlaif contrast --prompts prompts.jsonl --constitution hhh --out runs/contrast
    """
    from rlaif import stages

    named = {
        "prompts.path": prompts, "constitution": constitution, "policy.model": policy,
        "prompts.limit": limit, **columns_of("prompts", column),
    }  # fmt: skip
    execute(configure(config, out, overrides, named), stages.contrast)
