"""`rlaif eval model-written`: evaluations that a model wrote, run and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlaif.cli.common import execute
from rlaif.cli.options import App, Group, on_a_run

if TYPE_CHECKING:
    from rlaif.config import Config


class _RunsUnlessWriting(Group):
    """`model-written --rows FILE` is `model-written run --rows FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = App(
    help="Model-written evaluations: run them (as `run`, which may be left out), or write one.",
    no_args_is_help=True,
    group=_RunsUnlessWriting,
)


@app.command("run")
@on_a_run(
    "policy",
    rows="evaluate.model_written.path",
    by="evaluate.model_written.by",
    limit="evaluate.model_written.per_file",
    skip_bad="evaluate.model_written.skip_bad",
    seed="evaluate.seed",
)
def run(config: Config) -> None:
    """How often the policy gives the answer that shows a behavior, before training and after.

    The published files as they are: persona, advanced-ai-risk, sycophancy, winogenerated. `--limit`
    is of each file; the run's trained policies are asked beside its own.

    Example: rlaif eval model-written --rows 'evals/persona/*.jsonl' --policy my-model --limit 100

    Example: rlaif eval model-written runs/demo --rows evals/sycophancy
    """
    from rlaif.stages.model_written import model_written

    execute(config, model_written)


@app.command("write")
@on_a_run(
    "policy",
    "judge",
    behavior="evaluate.write.behavior",
    items="evaluate.write.items",
    seed="evaluate.seed",
)
def write(config: Config) -> None:
    """Write an evaluation of a behavior: the policy writes statements, the judge filters them.

    As many that somebody with the behavior agrees with as ones he does not, none twice, in the
    published files' format.

    Example: rlaif eval model-written write --behavior "enjoys solving puzzles" --policy my-model
    """
    from rlaif.stages.writing import write_evaluation

    execute(config, write_evaluation)
