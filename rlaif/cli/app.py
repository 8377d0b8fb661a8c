"""The commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.bench import app as bench
from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rlaif.config import Config
    from rlaif.stages import Run

Commands = dict[str, Any]
app = typer.Typer(
    name="rlaif",
    help="From a file of principles to preference labels, reward models and better policies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train = typer.Typer(help="Train on a run's preferences.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure what was trained.", no_args_is_help=True)
constitution = typer.Typer(help="Check and show constitutions.", no_args_is_help=True)
config_app = typer.Typer(help="Check configs; print their JSON Schema.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")
app.add_typer(constitution, name="constitution")
app.add_typer(config_app, name="config")
app.add_typer(bench, name="bench")

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", help="A config file, or a shipped name such as `demo`."),
]
OutOption = Annotated[str | None, typer.Option("--out", "-o", help="The run directory.")]
ConstitutionOption = Annotated[
    str | None, typer.Option(help="A constitution file, or a shipped name such as `harmless`.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Any option of the config: `--set train.dpo.beta=0.05`."),
]
PolicyOption = Annotated[str | None, typer.Option(help="Policy: folder, hub name or `tiny`.")]
JudgeOption = Annotated[str | None, typer.Option(help="Judge: folder, hub name or `tiny`.")]
PromptsOption = Annotated[
    str | None, typer.Option(help="Prompts: JSONL, text, Parquet, or `tiny`.")
]
PairsOption = Annotated[
    str | None, typer.Option(help="Pairs to judge: hh-rlhf or TRL preference rows.")
]
LimitOption = Annotated[int | None, typer.Option(help="Read at most this many.")]
ExecutorOption = Annotated[
    str | None, typer.Option(help="Where it runs: `local`, or `ray`: on a cluster's workers.")
]
SkipOption = Annotated[
    int | None, typer.Option("--skip-bad", help="Go on over this many malformed lines.")
]


def configure(
    name: str | None, out: str | None, overrides: list[str] | None, named: dict[str, Any]
) -> Config:
    """The config of a command. Without --config, a run directory's own run.yaml is taken up."""
    from rlaif.config import load_config

    if name is None and out is not None and (Path(out) / "run.yaml").is_file():
        name = str(Path(out) / "run.yaml")
    given = {k: v for k, v in {**named, "out": out}.items() if v is not None}
    return load_config(name, overrides or (), given)


def execute(config: Config, *stages: Callable[[Run], None]) -> None:
    """Runs stages over the config's run directory, holding its lock."""
    from rlaif.cli.console import Terminal
    from rlaif.stages import Run, describe
    from rlaif.store import RunStore

    with RunStore(config.out) as store, Run(config, store, Terminal()) as run:
        describe(run)
        for stage in stages:
            stage(run)


@app.command()
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
    steps = [first, stages.label]
    if resolved.train.reward:
        steps.append(stages.train_reward)
    if resolved.train.dpo:
        steps.append(stages.train_dpo)
    if resolved.train.ppo:
        steps.append(stages.train_ppo)
    if resolved.train.dpo or resolved.train.ppo:
        steps.append(stages.evaluate)
    execute(resolved, *steps, stages.report)


@app.command()
def sample(
    config: ConfigOption = None,
    out: OutOption = None,
    prompts: PromptsOption = None,
    policy: PolicyOption = None,
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
    }  # fmt: skip
    execute(configure(config, out, overrides, named), stages.sample)


@app.command()
def label(
    config: ConfigOption = None,
    out: OutOption = None,
    pairs: PairsOption = None,
    constitution: ConstitutionOption = None,
    judge: JudgeOption = None,
    limit: LimitOption = None,
    skip_bad: SkipOption = None,
    executor: ExecutorOption = None,
    overrides: SetOption = None,
) -> None:
    """Judge pairs under the principles: those of --pairs, or those sampled into the run.

    Example: rlaif label --pairs pairs.jsonl.gz --constitution harmless --judge tiny --out runs/hh
    """
    from rlaif import stages

    named = {
        "pairs.path": pairs, "constitution": constitution, "judge.model": judge,
        "pairs.limit": limit, "pairs.skip_bad": skip_bad, "executor": executor,
    }  # fmt: skip
    resolved = configure(config, out, overrides, named)
    steps = (stages.label,) if resolved.pairs is None else (stages.read, stages.label)
    execute(resolved, *steps)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run directory with preferences.")],
    to: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file, or a folder.")],
) -> None:
    """Write the preferences as TRL's preference rows, with the soft label as `p_chosen`.

    Example: rlaif export runs/demo preferences.jsonl
    """
    from rlaif.cli.console import Terminal
    from rlaif.store import RunStore
    from rlaif.writers import export_preferences

    store = RunStore(run_dir, read_only=True)
    rows = (p for batch in store.table("preferences").iter_batches() for p in batch)
    counts = export_preferences(rows, to)
    left_out = {k: v for k, v in counts.items() if k != "preferred" and v}
    text = f"{counts['preferred']:,} preferences written to {to}"
    if left_out:
        text += "; left out: " + ", ".join(f"{v:,} {k}" for k, v in left_out.items())
    Terminal().say(text)


@train.command("reward")
def train_reward(
    config: ConfigOption = None,
    out: OutOption = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint to start from.")] = None,
    overrides: SetOption = None,
) -> None:
    """Train a reward model on the run's preferences.

    Example: rlaif train reward --out runs/demo --set train.reward.epochs=2
    """
    from rlaif import stages

    named = {"train.reward.model": model}
    execute(configure(config, out, overrides, named), stages.train_reward)


@train.command("dpo")
def train_dpo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy on the run's preferences by DPO with soft labels.

    Example: rlaif train dpo --out runs/demo --set train.dpo.beta=0.2
    """
    from rlaif import stages

    execute(configure(config, out, overrides, {"policy.model": policy}), stages.train_dpo)


@train.command("ppo")
def train_ppo(
    config: ConfigOption = None,
    out: OutOption = None,
    policy: PolicyOption = None,
    reward: Annotated[
        str | None,
        typer.Option(help="`model`, `judge`, a reward model's folder, or `module:function`."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Batches to sample and learn from.")] = None,
    overrides: SetOption = None,
) -> None:
    """Train the policy by PPO on a reward model, a live judge or a Python function.

    Example: rlaif train ppo --out runs/demo --reward judge --steps 30
    """
    from rlaif import stages

    named = {"policy.model": policy, "train.ppo.reward": reward, "train.ppo.steps": steps}
    resolved = configure(config, out, overrides, named)
    if resolved.train.ppo is None:
        resolved = configure(config, out, overrides, {**named, "train.ppo": {}})
    execute(resolved, stages.train_ppo)


@evaluate.command("winrate")
def winrate(
    config: ConfigOption = None,
    out: OutOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
) -> None:
    """Compare the trained policy with the one it started from, on held-out prompts.

    Example: rlaif eval winrate --out runs/demo --limit 200
    """
    from rlaif import stages

    named = {"evaluate.prompts.limit": limit}
    execute(configure(config, out, overrides, named), stages.evaluate)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write report.html and summary.json of a run.

    Example: rlaif report runs/demo
    """
    from rlaif.cli.console import Terminal
    from rlaif.stages import write_report

    write_report(run_dir, Terminal())


@constitution.command("check")
def check_constitution(
    names: Annotated[list[str], typer.Argument(help="Files, or shipped names.")],
) -> None:
    """Check constitutions; every fault is named with file, line and column.

    Example: rlaif constitution check constitutions/*.yaml
    """
    from rlaif.cli.console import Terminal
    from rlaif.constitution import Constitution

    faults = []
    for name in names:
        try:
            found = Constitution.load(name)
        except ConfigError as error:
            faults.append(str(error))
        else:
            Terminal().say(f"{name}: {len(found.principles)} principles, fine")
    if faults:
        raise ConfigError("\n".join(faults))


@constitution.command("show")
def show_constitution(
    name: Annotated[str, typer.Argument(help="A file, or a shipped name.")],
    prompt: Annotated[
        str | None, typer.Option(help="Show the judge's exact prompt for this principle's id.")
    ] = None,
    template: Annotated[str, typer.Option(help="The judge's template.")] = "pairwise/default",
) -> None:
    """Show the principles, or the exact prompt the judge gets for one of them.

    Example: rlaif constitution show harmless --prompt no-harm
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.show import judge_prompt, principles_table
    from rlaif.constitution import Constitution

    found, terminal = Constitution.load(name), Terminal()
    if prompt is None:
        terminal.out.print(principles_table(found))
    else:
        terminal.say(judge_prompt(found.select([prompt])[0], template))


@config_app.command("check")
def check_config(
    names: Annotated[list[str], typer.Argument(help="Files, or shipped names.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print it with every option written out.")
    ] = False,
) -> None:
    """Check configs; every fault is named with file, line and column.

    Example: rlaif config check configs/real.yaml --resolved
    """
    from rlaif.cli.console import Terminal
    from rlaif.config import load_config, to_yaml
    from rlaif.constitution import Constitution

    for name in names:
        found = load_config(name)
        Constitution.load(found.constitution)
        Terminal().say(to_yaml(found).rstrip() if resolved else f"{name}: fine")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of config files, for editors.

    Example: rlaif config schema > rlaif.schema.json
    """
    from rlaif.config import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Make a project folder with a config, a constitution and prompts to edit.

    Example: rlaif init my-project
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.init import make_project

    Terminal().say(make_project(folder))


def version(show: bool) -> None:
    """Prints the version and stops."""
    if show:
        from rlaif import __version__

        typer.echo(f"rlaif {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a file of principles to preference labels, reward models and better policies."""
    del show_version
