"""`rlaif constitution learn`: the principles that explain labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.cli.common import execute
from rlaif.cli.options import on_a_run

if TYPE_CHECKING:
    from rlaif.config import Config


@on_a_run(
    "pairs",
    "format",
    "candidates",
    "propose",
    "policy",
    "judge",
    "method",
    column="pairs",
    labels="learn.labels",
    limit="pairs.limit",
    skip_bad="pairs.skip_bad",
    to="learn.to",
    seed="learn.seed",
)
def command(config: Config) -> None:
    """Learn a constitution from labelled pairs: which principles explain the labels, and how much.

    The judge says of each pair what it says under each candidate; a sparse fit on the training
    prompts picks candidates and weighs them, and prompts that are held out tell how well.

    Example: rlaif constitution learn --pairs labelled.jsonl --candidates sixteen --to ours.yaml

    Example: rlaif constitution learn runs/hh --candidates hhh --propose 30 --policy my-model
    """
    from rlaif import stages
    from rlaif.stages.learned import candidates_of

    candidates_of(config)
    execute(config, stages.learn_constitution)
