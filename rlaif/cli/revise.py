"""`rlaif revise`, `rlaif contrast`: training data without a judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.cli.common import execute
from rlaif.cli.options import on_a_run

if TYPE_CHECKING:
    from rlaif.config import Config


@on_a_run(
    "prompts",
    "constitution",
    "policy",
    "rounds",
    column="prompts",
    limit="prompts.limit",
    skip_bad="prompts.skip_bad",
    seed="revise.seed",
)
def revise(config: Config) -> None:
    """Have the policy criticise and revise its own responses under drawn principles.

    Example: rlaif revise --prompts red-team.jsonl --constitution sixteen --out runs/revised
    """
    from rlaif import stages

    execute(config, stages.revise)


@on_a_run(
    "prompts",
    "constitution",
    "policy",
    column="prompts",
    limit="prompts.limit",
    skip_bad="prompts.skip_bad",
    seed="sampling.seed",
)
def contrast(config: Config) -> None:
    """Make preference pairs from two opposed wishes; nothing is judged.

    Example: rlaif contrast --prompts prompts.jsonl --constitution hhh --out runs/contrast
    """
    from rlaif import stages

    execute(config, stages.contrast)
