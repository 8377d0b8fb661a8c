"""`rlaif eval`: what labels are worth, and what was learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli import model_written
from rlaif.cli.common import execute
from rlaif.cli.options import App, Named, on_a_run
from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rlaif.config import Config


def _who_is_measured(named: Named, as_it_is: Callable[[], Any]) -> Named:
    """The options of `rewardbench`, which say by themselves whether a judge is measured, a reward
    model, or the reward that a policy implies."""
    del as_it_is
    section = "evaluate.rewardbench"
    given = {
        "judge": named["judge.model"],
        "reward": named[f"{section}.reward"],
        "dpo": named[f"{section}.policy"] or named[f"{section}.reference"],
    }
    who = [by for by, value in given.items() if value is not None]
    if len(who) > 1:
        raise ConfigError(
            "one is measured at a time: give --judge MODEL, --reward-model FOLDER, or --policy "
            f"FOLDER with --reference MODEL; got those of {' and '.join(who)}"
        )
    return {**named, **({f"{section}.by": who[0]} if who else {})}


app = App(help="Measure labels, and what was trained.", no_args_is_help=True)
app.add_typer(model_written.app, name="model-written")


@app.command("audit")
@on_a_run()
def audit(
    config: Config,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Then attack 50 verdicts, as `eval attacks` does.")
    ] = False,
    temperature_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Tell whether the temperature of this audited run helps here."
        ),
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure against what people decided in `rlaif view`: on `all` pairs, or on the "
            "`random` ones, which stand for the run.",
        ),
    ] = None,
) -> None:
    """Tell how far a run's labels can be trusted: against known labels, and by themselves.

    Example: rlaif eval audit --out runs/hh --attacks

    Example: rlaif eval audit --out runs/hhh --temperature-from runs/hh
    """
    from rlaif import stages
    from rlaif.stages.audit import audit

    first = partial(audit, temperature_from=temperature_from, people=people)
    execute(config, *([first, stages.attack] if attacks else [first]))


@app.command("winrate")
@on_a_run(
    "constitution",
    "policy",
    "compare",
    "watch",
    judge="evaluate.judge.model",
    method="evaluate.judge.method",
    reward="evaluate.reward",
    prompts="evaluate.prompts.path",
    column="evaluate.prompts",
    limit="evaluate.prompts.limit",
    skip_bad="evaluate.prompts.skip_bad",
    seed="evaluate.seed",
)
def winrate(config: Config) -> None:
    """Compare policies on held-out prompts: the trained ones with the base, or any with all.

    Win rates, also at equal length, Bradley–Terry ratings, and what fell under a second
    constitution (docs/evaluation.md).

    Example: rlaif eval winrate --out runs/demo --limit 200 --watch hhh

    Example: rlaif eval winrate runs/demo --compare dpo --compare ppo --compare org/model
    """
    from rlaif import stages

    execute(config, stages.evaluate)


@app.command("best-of-n")
@on_a_run(
    "policy",
    prompts="evaluate.prompts.path",
    column="evaluate.prompts",
    limit="evaluate.prompts.limit",
    skip_bad="evaluate.prompts.skip_bad",
    seed="evaluate.seed",
)
def best_of_n(
    config: Config,
    samples: Annotated[
        int, typer.Option("--n", "-n", min=2, metavar="N", help="Completions a prompt.")
    ] = 16,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--reward",
            metavar="FOLDER",
            help="The reward model that ranks; the run's own unless given.",
        ),
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A second reward model, which is only looked at."),
    ] = None,
) -> None:
    """What the best of 1..n samples by the reward model is worth, and its KL.

    Example: rlaif eval best-of-n --out runs/demo -n 64 --limit 100
    """
    from rlaif.stages.best_of_n import best_of_n

    execute(config, partial(best_of_n, n=samples, reward=proxy, gold=gold))


@app.command("rewardbench")
@on_a_run(
    "constitution",
    "judge",
    "method",
    rows="evaluate.rewardbench.path",
    reward_model="evaluate.rewardbench.reward",
    policy="evaluate.rewardbench.policy",
    reference="evaluate.rewardbench.reference",
    limit="evaluate.rewardbench.per_subset",
    skip_bad="evaluate.rewardbench.skip_bad",
    seed="evaluate.seed",
    resolve=_who_is_measured,
)
def rewardbench(config: Config) -> None:
    """RewardBench 1 and 2, RM-Bench or JudgeBench: a judge, a reward model, or DPO's reward.

    Sections are scored as published, with intervals over prompts (docs/evaluation.md). `--limit` is
    of each subset.

    Example: rlaif eval rewardbench --rows allenai/reward-bench-2 --reward-model my-reward

    Example: rlaif eval rewardbench --rows judgebench.jsonl --judge my-model --constitution hhh
    """
    from rlaif.stages.rewardbench import rewardbench

    execute(config, rewardbench)


@app.command("text")
@on_a_run(
    rows="evaluate.text.path",
    references="evaluate.text.references",
    perplexity="evaluate.text.perplexity",
    skip_bad="evaluate.text.skip_bad",
    seed="evaluate.seed",
)
def text(config: Config) -> None:
    """Measure texts: ROUGE, BLEU, chrF, METEOR and TER, diversity, length, perplexity, repetition.

    Those of a file, or those that the run has sampled from its policies. Metrics that need
    references are told where there are some, and need `pip install "rlaif-toolkit[text]"`.

    Example: rlaif eval text --rows summaries.jsonl --perplexity my-model

    Example: rlaif eval text runs/demo --references held_out.jsonl
    """
    from rlaif.stages.text import text

    execute(config, text)


@app.command("attacks")
@on_a_run("constitution", "judge", "method", seed="judge.rationale.seed")
def attacks(
    config: Config,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Take at most this many.")] = 50,
    family: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this family of attacks; may be repeated."),
    ] = None,
) -> None:
    """How often a text behind the worse response turns the judge's verdict round.

    Example: rlaif eval attacks --out runs/demo --limit 100
    """
    from rlaif import stages

    execute(config, partial(stages.attack, limit=limit, families=family))
