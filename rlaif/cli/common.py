"""What the commands share: the config they make, what is checked first, the run they open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.config import Config
    from rlaif.stages import Run


def configure(
    name: str | None,
    out: str | None,
    overrides: list[str] | None,
    named: dict[str, Any],
    options: Mapping[str, str] | None = None,
) -> Config:
    """The config of a command. Without --config, a run directory's own run.yaml is taken up.

    `named` is what options set, by key of the config; `options` are the names of these options.
    """
    from rlaif.config import load_config
    from rlaif.errors import ConfigError

    if name is None and out is not None and os.path.lexists(Path(out) / "run.yaml"):
        name = str(Path(out) / "run.yaml")
    given = {k: v for k, v in {**named, "out": out}.items() if v is not None}
    config = load_config(name, overrides or (), given, {**(options or {}), "out": ""})
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
    options: Mapping[str, str] | None = None,
) -> Config:
    """The config of a training command, whose section of `train` counts as given."""
    found = configure(name, out, overrides, named, options)
    if getattr(found.train, section) is None:
        found = configure(name, out, overrides, {f"train.{section}": {}, **named}, options)
    return found


def execute(config: Config, *stages: Callable[[Run], None], together: bool = False) -> None:
    """Runs stages over the config's run directory, holding its lock.

    `together`: they may run in several processes of `accelerate launch`, the first of which holds
    the lock, writes and speaks.
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.first import check, gone_if_failed, needs_torch
    from rlaif.errors import ConfigError
    from rlaif.stages import Run, described, tell_stale
    from rlaif.store import RunStore

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not together:
        raise ConfigError(
            "this command runs in one process: only `rlaif train ...` is for `accelerate launch`"
        )
    names = [getattr(stage, "func", stage).__name__ for stage in stages]
    check(config, names)
    if several:
        _execute_together(config, stages)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(gone_if_failed(Path(config.out)))
        store = stack.enter_context(RunStore(config.out))
        terminal = Terminal()
        heavy = needs_torch(config, names)
        with terminal.waiting("starting: PyTorch is being loaded, slowly the first time"):
            run = stack.enter_context(Run(config, store, terminal, local_models=heavy))
        with described(run):
            for stage in stages:
                stage(run)
        tell_stale(run)


def foretell(config: Config) -> None:
    """Tells what `rlaif label` would cost. The run is not locked, and nothing in it changes."""
    from rlaif.cli.console import Terminal
    from rlaif.cli.first import check
    from rlaif.stages.foretelling import foretell_labels

    check(config, ["label"] if config.pairs is None else ["read", "label"])
    foretell_labels(config, Terminal())


def _execute_together(config: Config, stages: Sequence[Callable[[Run], None]]) -> None:
    from rlaif.cli.console import Silent, Terminal
    from rlaif.stages import Run, described
    from rlaif.store import RunStore
    from rlaif.training.processes import join, rank, wait

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
            stack.enter_context(described(run))
        for stage in stages:
            stage(run)
