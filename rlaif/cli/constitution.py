"""`rlaif constitution`: checked, shown, tested, explained, learnt, compared, imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli import explaining, learn, testing
from rlaif.cli.options import App
from rlaif.errors import ConfigError, DataError, nearest
from rlaif.files.small import write_text

if TYPE_CHECKING:
    from rlaif.constitution import Use

app = App(
    help="Check, show, test, explain, learn, compare and import constitutions.",
    no_args_is_help=True,
)
app.command("test")(testing.command)
app.command("explain")(explaining.explain)
app.command("what-if")(explaining.what_if)
app.command("learn")(learn.command)
Name = Annotated[str, typer.Argument(help="A file, or a shipped name.")]


@app.command("check")
def check_constitution(
    names: Annotated[list[str], typer.Argument(help="Files, or shipped names.")],
    use: Annotated[
        str | None,
        typer.Option("--for", help="What they are for: `label`, `revise` or `contrast`."),
    ] = None,
) -> None:
    """Check constitutions; every fault is named with file, line and column.

    Example: rlaif constitution check constitutions/*.yaml --for revise
    """
    from rlaif.cli.console import Terminal
    from rlaif.constitution import check

    wanted = None if use is None else _use(use)
    faults: list[str] = []
    for name in names:
        try:
            found, told = check(name, wanted)
        except ConfigError as error:
            found, told = None, [str(error)]
        faults += told
        if found and not told:
            tiers = len({p.tier for p in found.principles})
            ranked = f" in {tiers} tiers" if tiers > 1 else ""
            Terminal().say(f"{name}: {len(found.principles)} principles{ranked}, fine")
    if faults:
        raise ConfigError("\n".join(faults))


@app.command("show")
def show_constitution(
    name: Name,
    prompt: Annotated[
        str | None, typer.Option(help="Show the exact prompt for this principle's id.")
    ] = None,
    use: Annotated[
        str,
        typer.Option(
            "--for",
            help="Whose prompt: the judge's (`label`), or the policy's for critique and revision "
            "(`revise`), or for both sides of a `contrast`.",
        ),
    ] = "label",
    method: Annotated[
        str | None,
        typer.Option(help="The judge's method, by its default template; `pairwise` if not given."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Another template: a path or a shipped name.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Take the first pair of this file as the sample.")
    ] = None,
) -> None:
    """Show the principles, or the exact prompt that a model gets for one of them.

    Example: rlaif constitution show harmless --prompt no-harm --method cot

    Example: rlaif constitution show harmless --prompt no-harm --for revise
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.show import SAMPLE, judge_prompt, principles_table, prompts_of
    from rlaif.constitution import Constitution
    from rlaif.files.readers import read_pairs
    from rlaif.files.readers.settings import PairReading

    found, terminal, wanted = Constitution.load(name), Terminal(), _use(use)
    if method is not None and wanted != "label":
        raise ConfigError(f"--method is how a judge judges: leave it out with --for {wanted}")
    if prompt is None:
        if wanted != "label":
            ids = ", ".join(p.id for p in found.principles)
            raise ConfigError(f"--for {wanted} shows one principle: give --prompt, one of {ids}")
        terminal.out.print(principles_table(found))
        return
    pair = SAMPLE if pairs is None else next(iter(read_pairs(pairs, PairReading(limit=1))))
    principle = found.select([prompt])[0]
    if wanted == "label":  # no line of a prompt is broken
        typer.echo(judge_prompt(principle, template or f"{method or 'pairwise'}/default", pair))
        return
    for step, text in prompts_of(wanted, principle, template or f"{wanted}/default", pair):
        typer.echo(f"--- {step}\n{text}\n")


def _use(name: str) -> Use:
    from rlaif.constitution import NEEDS

    wanted = next((known for known in NEEDS if known == name), None)
    if wanted is None:
        raise ConfigError(f"--for {name}: unknown use.{nearest(name, NEEDS)}")
    return wanted


@app.command("diff")
def diff_constitutions(before: Name, after: Name) -> None:
    """What changed between two constitutions, and which verdicts stay valid.

    Example: rlaif constitution diff harmless my-harmless.yaml
    """
    from rlaif.cli.console import Terminal
    from rlaif.cli.show import changes_table
    from rlaif.constitution import Constitution
    from rlaif.constitution.diff import diff

    changes, terminal = diff(Constitution.load(before), Constitution.load(after)), Terminal()
    if any(c.kind != "same" for c in changes):
        terminal.out.print(changes_table(changes))
    columns = [c for c in changes if c.after is not None and c.after.compare]
    again = sum(c.judged_again for c in columns)
    terminal.say(
        f"{len(columns) - again} of {len(columns)} columns of verdicts stay valid, {again} to judge"
    )


@app.command("import")
def import_file(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Published JSON, or a Markdown or text list of principles."
        ),
    ],
    to: Annotated[Path, typer.Argument(help="The constitution to write, a .yaml file.")],
    name: Annotated[str | None, typer.Option(help="Its name; else that of the file.")] = None,
) -> None:
    """Make a constitution of principles that others published.

    Example: rlaif constitution import RLMadisonInstructions.json cai.yaml
    """
    from rlaif.cli.console import Terminal
    from rlaif.constitution import Constitution
    from rlaif.constitution.published import import_constitution

    if to.exists():
        raise DataError(f"{to} exists: remove it, or name another file")
    text = import_constitution(path, name or to.stem)
    write_text(to, text)
    Terminal().say(f"{len(Constitution.load(to).principles)} principles written to {to}")


@app.command("schema")
def constitution_schema() -> None:
    """Print the JSON Schema of constitution files, for editors.

    Example: rlaif constitution schema > constitution.schema.json
    """
    from rlaif.constitution import schema

    typer.echo(json.dumps(schema(), indent=2))
