"""What the commands share: their options, the config they make, the run they open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlaif.config import Config
    from rlaif.stages import Run

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
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="How it judges: pairwise, cot, adaptive, pointwise, rubric, listwise or text."
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(help="Prompts: a file, folder or glob of files, a hub name, or `tiny`."),
]
PairsOption = Annotated[
    str | None,
    typer.Option(help="Pairs to judge: a file, folder or glob of files, or a hub name."),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="How the rows of --pairs are laid out; told from them if not."),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Which column holds what, by its path, where its name does not tell: "
        "`--column prompt=question`; one each.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Read at most this many.")]
ExecutorOption = Annotated[
    str | None, typer.Option(help="Where it runs: `local`, or `ray`: on a cluster's workers.")
]
SkipOption = Annotated[
    int | None,
    typer.Option("--skip-bad", help="Go on over this many rows that are malformed or no text."),
]


def columns_of(section: str, given: list[str] | None) -> dict[str, str]:
    """Options of the config that `--column what=path` stands for."""
    from rlaif.errors import ConfigError

    found = {}
    for text in given or ():
        what, sign, path = text.partition("=")
        if not sign or not path:
            raise ConfigError(f"--column {text}: expected what=path, such as prompt=question")
        found[f"{section}.columns.{what.strip()}"] = path.strip()
    return found


def configure(
    name: str | None, out: str | None, overrides: list[str] | None, named: dict[str, Any]
) -> Config:
    """The config of a command. Without --config, a run directory's own run.yaml is taken up."""
    from rlaif.config import load_config
    from rlaif.errors import ConfigError

    if name is None and out is not None and os.path.lexists(Path(out) / "run.yaml"):
        name = str(Path(out) / "run.yaml")
    given = {k: v for k, v in {**named, "out": out}.items() if v is not None}
    config = load_config(name, overrides or (), given)
    alone = next((key for key in ("judge.model", "judge.method") if key in given), None)
    if config.jury and alone is not None:
        raise ConfigError(
            f"{alone} is given for one judge, but the config has a jury, which is asked instead: "
            "change the jury, or ask one judge with --set jury=[]"
        )
    return config


def with_section(
    section: str,
    name: str | None,
    out: str | None,
    overrides: list[str] | None,
    named: dict[str, Any],
) -> Config:
    """The config of a training command, whose section of `train` counts as given."""
    found = configure(name, out, overrides, named)
    if getattr(found.train, section) is None:
        found = configure(name, out, overrides, {f"train.{section}": {}, **named})
    return found


def execute(config: Config, *stages: Callable[[Run], None], together: bool = False) -> None:
    """Runs stages over the config's run directory, holding its lock.

    `together`: they may run in several processes of `accelerate launch`, the first of which holds
    the lock, writes and speaks.
    """
    from rlaif.cli.console import Terminal
    from rlaif.stages import Run, describe, tell_stale
    from rlaif.store import RunStore

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _execute_together(config, stages, together)
        return
    with RunStore(config.out) as store, Run(config, store, Terminal()) as run:
        describe(run)
        for stage in stages:
            stage(run)
        tell_stale(run)


def _execute_together(
    config: Config, stages: Sequence[Callable[[Run], None]], together: bool
) -> None:
    from rlaif.cli.console import Silent, Terminal
    from rlaif.errors import ConfigError
    from rlaif.stages import Run, describe
    from rlaif.store import RunStore
    from rlaif.training.processes import join, rank, wait

    if not together:
        raise ConfigError(
            "this command runs in one process: only `rlaif train ...` is for `accelerate launch`"
        )
    join(config.policy.device)
    main = rank() == 0
    with contextlib.ExitStack() as stack:
        if main:
            store = stack.enter_context(RunStore(config.out))
        wait()  # until the lock is taken, and what a dead writer left is cleared
        if not main:
            store = stack.enter_context(RunStore.open_readonly(config.out))
        run = stack.enter_context(Run(config, store, Terminal() if main else Silent()))
        if main:
            describe(run)
        for stage in stages:
            stage(run)
