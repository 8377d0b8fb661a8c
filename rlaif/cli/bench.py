"""`rlaif bench`: how fast this machine labels, generates, trains by PPO and stores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.options import App
from rlaif.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from rlaif.bench.judge import JudgeRun
    from rlaif.engines.settings import EngineSettings

app = App(help="Measure labelling, generation, PPO and the store.", no_args_is_help=True)

ModelOption = Annotated[str, typer.Option(help="Folder, hub name or `tiny`.")]
DeviceOption = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of the arithmetic. On a CPU 1, unless given.", min=1)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
EngineOption = Annotated[
    str, typer.Option(help="`hf`, `vllm`, or `plain`: one Transformers forward a request.")
]
# Options that set what `EngineSettings` calls so.
SETTINGS: dict[str, Any] = {
    "device": Annotated[str | None, typer.Option(help="`auto`, `cpu` or `cuda`.")],
    "dtype": Annotated[
        str | None, typer.Option(help="`auto`, `float32`, `bfloat16` or `float16`.")
    ],
    "batch_tokens": Annotated[
        int | None,
        typer.Option(help="Tokens a forward pass. The engine's own, unless given.", min=1),
    ],
    "attention": Annotated[
        str | None,
        typer.Option(
            help="Of engine `hf`: `pieces`, or `flex`, made for CUDA and never run there yet."
        ),
    ],
}
# Options of what is sampled, and the defaults of the benchmark.
SAMPLING: dict[str, tuple[Any, Any]] = {
    "samples": (Annotated[int, typer.Option(help="Completions a prompt.")], 4),
    "max_new_tokens": (Annotated[int, typer.Option(help="Tokens a completion, at most.")], 64),
    "temperature": (Annotated[float, typer.Option(help="0 takes the likeliest token.")], 1.0),
    "seed": (Annotated[int, typer.Option(help="Seed of the samples.")], 0),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The engine that a command is to measure."""

    model: str
    engine: str
    threads: int | None
    settings: EngineSettings


def on_an_engine(
    model: Any = Parameter.empty, **more: tuple[Any, Any]
) -> Callable[[Callable[..., None]], Any]:
    """A command whose function takes `Asked`, and options of its own; those of the engine are put
    before them. `model` is the default of `--model`; `more` are further options with theirs."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(model: str, engine: str, threads: int | None, **given: Any) -> None:
            _fix_threads(threads)
            from rlaif.engines.settings import EngineSettings

            named = {name: value for name in SETTINGS if (value := given.pop(name)) is not None}
            function(Asked(model, engine, threads, EngineSettings(**named)), **given)

        shared = [
            ("model", model, ModelOption),
            ("engine", "hf", EngineOption),
            ("threads", None, ThreadsOption),
            *((name, None, option) for name, option in SETTINGS.items()),
            *((name, default, option) for name, (option, default) in more.items()),
        ]
        kind = Parameter.KEYWORD_ONLY
        _, *own = signature(function, eval_str=True).parameters.values()
        parameters = [Parameter(n, kind, default=d, annotation=a) for n, d, a in shared]
        parameters += [p.replace(kind=kind) for p in own if p.kind is not Parameter.VAR_KEYWORD]
        command.__dict__["__signature__"] = Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__dict__["keys"] = {name: f"policy.{name}" for name in SETTINGS}  # their defaults
        del command.__dict__["__wrapped__"]
        return command

    return decorate


@app.command()
@on_an_engine(model="tiny")
def judge(
    asked: Asked,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Pairs to judge; the embedded world's unless given."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Pairs.")] = 16,
    principles: Annotated[int, typer.Option(help="Principles, each in both orders.")] = 16,
    layout: Annotated[str, typer.Option(help="The principle `last` or `first`.")] = "last",
    characters: Annotated[int, typer.Option(help="Of a pair's text, at least.")] = 0,
    check: Annotated[int, typer.Option(help="Requests compared with plain passes.", min=1)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Judge pairs under many principles; compare with the limit and with plain passes.

    Example: rlaif bench judge --model models/15m --pairs pairs.jsonl.gz --n 16
    """
    from rlaif.bench.judge import bench_judge
    from rlaif.bench.workload import Workload

    workload = Workload.read(pairs, n, principles, layout, characters)
    run = bench_judge(
        asked.model,
        workload,
        asked.settings,
        engine=asked.engine,
        threads=asked.threads,
        check=check,
    )
    _show(run.report, as_json, lambda: _judge_table(run, workload.template))


@app.command()
@on_an_engine(**SAMPLING)
def generate(
    asked: Asked,
    pairs: Annotated[str, typer.Option(help="hh-rlhf or TRL preference rows: their prompts.")],
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts.")] = 16,
    as_json: JsonOption = False,
    **drawn: Any,
) -> None:
    """Sample completions of the pairs' prompts.

    Example: rlaif bench generate --model models/15m --pairs pairs.jsonl.gz --n 16 --samples 4
    """
    from rlaif.bench.generate import bench_generate
    from rlaif.bench.workload import judgeable
    from rlaif.engines.base import Sampling

    sampling = Sampling(n=drawn.pop("samples"), **drawn)
    report = bench_generate(
        asked.model,
        [pair.prompt for pair in judgeable(pairs, n)],
        sampling,
        asked.settings,
        engine=asked.engine,
        threads=asked.threads,
    )
    _show(report, as_json, lambda: _plain_table("generate", _fields(report)))


@app.command()
def methods(
    model: ModelOption = "tiny",
    prompts: Annotated[int, typer.Option(help="For each of the eight principles.", min=1)] = 10,
    band: Annotated[float, typer.Option(help="Of `adaptive`.", min=0.0, max=0.5)] = 0.1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge pairs of the embedded world by every method; compare with the truth and count tokens.

    Example: rlaif bench methods --model tiny --prompts 10
    """
    _fix_threads(threads)
    from rlaif.bench.methods import bench_methods
    from rlaif.engines.load import load_engine

    found = bench_methods(load_engine(model), prompts, band)
    _show(found, as_json, lambda: _methods_table(found))


@app.command()
def pipeline(
    verdicts: Annotated[int, typer.Option(help="Verdicts to store and aggregate.")] = 100_000,
    out: Annotated[Path, typer.Option(help="A new run directory.")] = Path("runs/bench-pipeline"),
    as_json: JsonOption = False,
) -> None:
    """Store verdicts of an engine that costs nothing and aggregate them to preferences.

    Example: rlaif bench pipeline --verdicts 100000 --out runs/bench-pipeline
    """
    from rlaif.bench.pipeline import pipeline as measure

    found = measure(verdicts, out)
    _show(found, as_json, lambda: _plain_table("pipeline", found))


@app.command()
def ppo(
    model: ModelOption,
    pairs: Annotated[str, typer.Option(help="hh-rlhf or TRL rows: prompts are cut out of them.")],
    value: Annotated[str, typer.Option(help="Values `shared` with the policy or `separate`.")] = (
        "shared"
    ),
    prompt_tokens: Annotated[int, typer.Option(help="Of every prompt.", min=1)] = 64,
    response_tokens: Annotated[int, typer.Option(help="Of a completion, at most.", min=1)] = 53,
    batch_size: Annotated[int, typer.Option(help="Episodes a step.", min=1)] = 32,
    epochs: Annotated[int, typer.Option(help="Over the episodes of a step.", min=1)] = 4,
    minibatches: Annotated[int, typer.Option(help="An epoch.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Timed, after one that is not.", min=1)] = 2,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time PPO steps, from prompts to updated weights, with a reward model of the same shape.

    Example: rlaif bench ppo --model models/15m --pairs pairs.jsonl.gz --value separate
    """
    if value not in ("shared", "separate"):
        raise ConfigError(f"--value {value}: choose shared or separate")
    _fix_threads(threads)
    from rlaif.bench.ppo import bench_ppo, prompts_of_length
    from rlaif.training.rl.settings import PPOSettings

    settings = PPOSettings(
        value="shared" if value == "shared" else "separate",
        max_new_tokens=response_tokens,
        batch_size=batch_size,
        epochs=epochs,
        minibatches=minibatches,
        steps=steps,
    )
    prompts = prompts_of_length(pairs, model, batch_size * (steps + 1), prompt_tokens)
    report = bench_ppo(model, prompts, settings, threads=threads, device=device)
    _show(report, as_json, lambda: _plain_table("ppo", _fields(report)))


def _fix_threads(threads: int | None) -> None:
    """Before torch is loaded: its libraries read these once."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # Without a GPU, vLLM would bind its threads to cores of its own choice.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _fields(report: Any) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__slots__}


def _show(report: Any, as_json: bool, table: Any) -> None:
    if as_json:
        typer.echo(json.dumps(report if isinstance(report, dict) else _fields(report)))
        return
    from rlaif.cli.console import Terminal

    Terminal().out.print(table())


def _judge_table(run: JudgeRun, template: str) -> Table:
    r = run.report
    table = _empty_table(f"bench judge: {r.engine} on {r.device}")
    rows = {
        "pairs a second": f"{r.pairs_per_s:,.3f}",
        "seconds (by the wall)": f"{r.seconds:,.2f} ({run.wall_seconds:,.2f})",
        "requests": f"{r.requests:,}, by {template}",
        "tokens submitted": f"{r.submitted_tokens:,}",
        "tokens computed": f"{r.computed_tokens:,}, {r.computed_tokens / r.bound_tokens:.3f}x "
        f"of the bound of {r.bound_tokens:,}",
        "matmul rate": f"{run.rate / 1e9:,.1f} GFLOP/s",
        "limit": f"{run.operations / run.rate:,.2f} s, for {run.operations / 1e12:,.3f} TFLOP",
        "share of the limit": f"{r.share_of_limit:.3f}",
        "max |Δ log p| from plain": f"{r.max_abs_diff:.1e}, over {run.checked:,} requests",
        "peak memory": f"{r.peak_rss_mib:,.0f} MiB",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _methods_table(found: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="bench methods")
    names = ("method", "agreement", "abstained", "after a text", "tokens in", "decoded")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    for method, r in found.items():
        rate = r["agreement"]
        table.add_row(
            method,
            f"{rate['rate']:.3f} ({rate['low']:.3f}–{rate['high']:.3f})",
            *(f"{r[n]:,} of {r['verdicts']:,}" for n in ("abstained", "reasoned")),
            f"{r['submitted_tokens']:,}",
            f"{r['decoded_tokens']:,}",
        )
    return table


def _plain_table(title: str, values: dict[str, Any]) -> Table:
    table = _empty_table(f"bench {title}")
    for name, value in values.items():
        if isinstance(value, float):
            text = f"{value:,.3f}"
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), text)
    return table


def _empty_table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    return table
