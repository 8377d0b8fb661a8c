"""Options of the commands, each said once: its name, its help, and what it sets in the config.

`on_a_run` makes a command of a function that takes a config: it gives it RUN, `--out`, `--config`,
`--set` and the options that are named. Their defaults are those of the config, looked up when help
is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from rlaif.cli.common import configure, with_section
from rlaif.errors import ConfigError
from rlaif.judges.methods import METHODS

Function = TypeVar("Function", bound=Callable[..., Any])
Named = dict[str, Any]  # keys of the config and what options say they are
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(frozen=True, slots=True)
class Setting:
    """An option that sets a key of the config: `key`, or another one that a command names."""

    type: Any
    metavar: str
    help: str
    key: str = ""
    short: tuple[str, ...] = ()


MODEL = "folder, hub name or `tiny`."
SETTINGS = {
    "prompts": Setting(
        str,
        "FILE",
        "Prompts: a file, folder or glob of files, a hub name, or `tiny`.",
        "prompts.path",
    ),
    "pairs": Setting(
        str, "FILE", "Pairs to judge: a file, folder or glob of files, or a hub name.", "pairs.path"
    ),
    "format": Setting(
        str,
        "NAME",
        "How the rows of --pairs are laid out: `auto` tells it from them; "
        "`module:function` reads them by code of your own.",
        "pairs.format",
    ),
    "column": Setting(
        list[str],
        "WHAT=PATH",
        "Which column holds what, where its name does not tell: "
        "`--column prompt=question`; one each.",
    ),
    "constitution": Setting(str, "FILE", "A constitution file, or a shipped name.", "constitution"),
    "policy": Setting(str, "MODEL", f"Policy: {MODEL}", "policy.model"),
    "judge": Setting(str, "MODEL", f"Judge: {MODEL}", "judge.model"),
    "method": Setting(
        str,
        "NAME",
        f"How it judges: {', '.join(METHODS)}, or `module:Class`: your own judge.",
        "judge.method",
    ),
    "examples": Setting(
        str,
        "FILE",
        "Worked examples shown before each question: YAML or JSONL, `none`, or "
        "`auto`: ours for a model without a chat template.",
        "judge.examples",
    ),
    "model": Setting(str, "MODEL", "Checkpoint to start from; the policy's unless given."),
    "labels": Setting(
        str,
        "NAME",
        "What is learnt: the pairs' `own` labels, those that `people` gave in `rlaif view`, or "
        "the run's `preferences` (for a judge also `verdicts`).",
    ),
    "data": Setting(
        str,
        "FILE",
        "Rows with `messages`, or `prompt` and `completion`; or `best`.",
        "train.sft.data",
    ),
    "rows": Setting(str, "FILE", "Rows: a file, folder or glob of files, or a hub name."),
    "reward": Setting(
        str, "NAME", "`model`, `judge`, a reward model's folder, or `module:function`."
    ),
    "by": Setting(
        str, "NAME", "`probability` of the answers offered, or `sampling` of written ones."
    ),
    "behavior": Setting(str, "WORDS", 'What somebody who has it does: "enjoys solving puzzles".'),
    "items": Setting(int, "N", "How many to keep, half of them with each answer."),
    "references": Setting(str, "FILE", "What is wanted: rows with prompt and completion."),
    "perplexity": Setting(str, "MODEL", "Tell the perplexity of the texts under this model."),
    "reward_model": Setting(str, "FOLDER", "A reward model; the run's own unless given."),
    "reference": Setting(
        str, "MODEL", "What the policy was trained from; `policy.model` unless given."
    ),
    "n": Setting(int, "N", "Completions a prompt.", "sampling.n", ("-n",)),
    "compare": Setting(
        list[str],
        "POLICY",
        "A policy to compare with the others and the base: a name of this run such as `dpo`, a "
        "folder or a hub name; may be repeated.",
        "evaluate.policies",
    ),
    "watch": Setting(
        str,
        "FILE",
        "A second constitution, file or shipped name: what fell under it is told first.",
        "evaluate.watch",
    ),
    "candidates": Setting(
        list[str],
        "FILE",
        "A constitution whose principles are candidates, file or shipped name; may be repeated.",
        "learn.candidates",
    ),
    "propose": Setting(
        int, "N", "Have the policy write so many candidates from labelled pairs.", "learn.propose"
    ),
    "to": Setting(
        str, "FILE", "The constitution to write; `learned.yaml` in the run unless given."
    ),
    "rounds": Setting(int, "N", "Revisions of each response.", "revise.rounds"),
    "steps": Setting(int, "N", "Batches to sample and learn from."),
    "limit": Setting(int, "N", "Take at most this many."),
    "skip_bad": Setting(
        int,
        "N",
        "Go on over this many rows that are malformed or no text.",
    ),
    "seed": Setting(int, "N", "Seed of what the command draws."),
    "executor": Setting(
        str, "NAME", "Where it runs: `local`, or `ray`: on a cluster's workers.", "executor"
    ),
}

RunArgument = Annotated[str | None, typer.Argument(metavar="RUN", help="The run directory.")]
OutOption = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="RUN", help="The same, as an option; `runs/run` unless given."
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="A config file, or a shipped name such as `demo`; the run's own unless given.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Any option of the config: `--set train.dpo.beta=0.05`.",
    ),
]


def one_run(argument: str | None, out: str | None) -> str | None:
    """The run that RUN or --out names; ConfigError where they name two."""
    if argument is not None and out is not None and argument != out:
        raise ConfigError(f"two runs are named: {argument}, and {out} by --out: name one")
    return out if argument is None else argument


def the_run(argument: str | None, out: str | None) -> Path:
    """The same, of a command that makes no run: the config's default where none is named."""
    return Path(one_run(argument, out) or _default("out"))


def on_a_run(
    *names: str,
    section: str | None = None,
    resolve: Callable[[Named, Callable[[], Any]], Named] | None = None,
    argument: str | None = None,
    **keys: str,
) -> Decorator:
    """A command on a run, whose function takes its config, and options of its own.

    `names` are the settings that set their usual keys, `keys` those that set another one. The
    section of `train` counts as given. `resolve` may put other keys in the place of those given; it
    is also told how to load the config as it is without them. With `argument`, that setting is the
    command's argument in the place of RUN, and the run is an option of the function's own, `run`.
    """
    names = (*names, argument) if argument is not None else names
    wanted = {**{name: SETTINGS[name].key for name in names}, **keys}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(
            run: str | None,
            config: str | None,
            overrides: list[str] | None,
            out: str | None = None,
            **given: Any,
        ) -> None:
            where = one_run(run, out)
            if argument is not None:
                given["run"] = run
            named: Named = {}
            for name, key in wanted.items():
                value = given.pop(name)
                named |= columns_of(key, value) if name == "column" else {key: value}
            if resolve is not None:
                named = resolve(named, lambda: configure(config, where, overrides, {}))
            options = {key: _option_of(key, value, wanted) for key, value in named.items()}
            if section is None:
                made = configure(config, where, overrides, named, options)
            else:
                made = with_section(section, config, where, overrides, named, options)
            function(made, **given)

        parameters = _parameters(function, wanted, argument)
        command.__dict__["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        # For `source.limit`, which is of prompts or of pairs, the help shows that of prompts.
        command.__dict__["keys"] = {
            name: key.replace("source.", "prompts.")
            for name, key in wanted.items()
            if name not in ("column", argument)
        }
        del command.__dict__["__wrapped__"]
        return command

    return decorate


def _option_of(key: str, value: Any, wanted: dict[str, str]) -> str:
    """The option that sets a key. A command may set others than the option's own by it, such as
    `train.dpo.seed` by `--seed`: their last part tells."""
    _, columns, what = key.partition(".columns.")
    if columns:
        return f"--column {what}={value}"
    last = key.rpartition(".")[2]
    same = [name for name, own in wanted.items() if own == key]
    alike = [name for name, own in wanted.items() if own.rpartition(".")[2] == last]
    return _flag(next(iter([*same, *alike, last])))


def _parameters(
    function: Callable[..., None], wanted: dict[str, str], argument: str | None
) -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(function).parameters.values())[1:]
    said: dict[str, Any] = {"run": RunArgument, "config": ConfigOption, "out": OutOption}
    shared = []
    if argument is not None:
        said = {"config": ConfigOption}
        first = Annotated[str, typer.Argument(help=SETTINGS[argument].help)]
        shared = [inspect.Parameter(argument, kind, annotation=first)]
    said |= {name: _option(name) for name in wanted if name != argument}
    shared += [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in said.items()]
    more = [p.replace(kind=kind, annotation=eval(p.annotation, function.__globals__)) for p in own]
    last = inspect.Parameter("overrides", kind, default=None, annotation=SetOption)
    return [*shared, *more, last]


def _option(name: str) -> Any:
    one = SETTINGS[name]
    return Annotated[
        one.type | None, typer.Option(_flag(name), *one.short, metavar=one.metavar, help=one.help)
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def columns_of(section: str, given: list[str] | None) -> dict[str, str]:
    """Options of the config that `--column what=path` stands for."""
    found = {}
    for text in given or ():
        what, sign, path = text.partition("=")
        if not sign or not path:
            raise ConfigError(f"--column {text}: expected what=path, such as prompt=question")
        found[f"{section}.columns.{what.strip()}"] = path.strip()
    return found


# ------------------------------------------------------------------------------------------- help


def _default(key: str) -> Any:
    from rlaif.config import Config
    from rlaif.files.yamlfile import default_at

    return default_at(Config, key.split("."))


_LETTERS = {"int": "N", "float": "X", "Path": "FILE"}


@contextmanager
def _for_people(parameters: list[Any], keys: dict[str, str]) -> Iterator[None]:
    """Options with the config's defaults and without the names of Python's types."""
    before = [(p, p.default) for p in parameters]
    for p in parameters:
        if p.param_type_name == "argument":
            p.display_type = lambda *_, **__: ""
            p.metavar = p.metavar or p.name.upper()
        elif p.is_flag:
            p.metavar = ""
        else:
            kind = p.bare_type() if hasattr(p, "bare_type") else ""
            p.metavar = p.metavar or _LETTERS.get(kind, "NAME")
        if p.default is None and keys.get(p.name or ""):
            p.default = _default(keys[p.name])
    try:
        yield
    finally:
        for p, default in before:
            p.default = default


class Command(TyperCommand):
    """A command whose help shows the defaults of the config."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _for_people(self.get_params(ctx), getattr(self.callback, "keys", {})):
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of such commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _for_people(self.get_params(ctx), {}):
            super().format_help(ctx, formatter)


class App(typer.Typer):
    """Commands registered here are `Command`s."""

    def __init__(self, *, group: type[TyperGroup] = Group, **options: Any) -> None:
        super().__init__(cls=group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        return super().command(name, cls=Command, **options)
