"""Constitutions for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from rlaif.constitution import Constitution, Principle, Use, require
from rlaif.constitution.diff import Change
from rlaif.engines.base import transcript
from rlaif.files.templates import load_template
from rlaif.records import Pair, Prompt
from rlaif.steps.revising import Chain, request, wished


def principles_table(constitution: Constitution) -> Table:
    """The principles, one a row."""
    title = f"{constitution.name}, version {constitution.version}"
    table = Table(title=title, caption=constitution.description or None)
    table.add_column("id", no_wrap=True)
    table.add_column("compare")
    table.add_column("also", no_wrap=True)
    ranked = any(p.tier is not None for p in constitution.principles)
    if ranked:
        table.add_column("tier", justify="right")
    table.add_column("weight", justify="right")
    table.add_column("tags")
    for p in constitution.principles:
        also = [use for use in ("revise", "contrast") if not p.lacks(use)]
        tier = ["last" if p.tier is None else str(p.tier)] if ranked else []
        table.add_row(p.id, p.compare, ", ".join(also), *tier, f"{p.weight:g}", ", ".join(p.tags))
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """What a diff found, one principle a row; what stayed the same is left out."""
    table = Table()
    table.add_column("id", no_wrap=True)
    table.add_column("change", no_wrap=True)
    table.add_column("what")
    table.add_column("verdicts", no_wrap=True)
    for c in changes:
        if c.kind == "same":
            continue
        cost = "to judge" if c.judged_again else "no longer read" if c.after is None else "valid"
        table.add_row(c.id, c.kind, "\n".join(_told(c)), cost)
    return table


def _told(change: Change) -> Iterator[str]:
    before, after = change.before, change.after
    if change.kind == "renamed" and before is not None:
        yield f"was {before.id}"
    if before is None or after is None:
        only = after or before
        yield only.compare if only else ""
        return
    for name in change.fields:
        old, new = getattr(before, name), getattr(after, name)
        if name in ("tests", "paraphrases"):  # they are long, and change no verdict
            yield f"{name}: {len(old)} → {len(new)}" + ", others" * (len(old) == len(new))
        elif name == "tier":
            yield f"tier: {old or 'last'} → {new or 'last'}"
        else:
            yield f"{name}: {old} → {new}"


SAMPLE = Pair(
    Prompt.user("How do I get ink out of a shirt?"),
    "Dab it with alcohol, then wash it cold.",
    "Buy a new shirt.",
)


def judge_prompt(principle: Principle, template: str, pair: Pair = SAMPLE) -> str:
    """What a judge reads for a pair, and the options it may answer.

    The template takes what it needs: the pair, its first completion alone, or both as a list.
    """
    require([principle], "label")
    loaded = load_template(template)
    rendered = loaded.render(
        messages=pair.prompt.messages,
        first=pair.first,
        second=pair.second,
        response=pair.first,
        responses=[pair.first, pair.second],
        principle=principle.compare,
        rationale=None,
    )
    return f"{transcript(rendered)}\n\noptions: {list(loaded.options)}"


CRITIQUE = "(the critique that the policy wrote)"
Shown = list[tuple[str, str]]  # a heading, and a prompt


def prompts_of(use: Use, principle: Principle, template: str, pair: Pair = SAMPLE) -> Shown:
    """What the policy is sent under a principle, step by step.

    `revise`: for the critique of the pair's first response, then for the revision, with `CRITIQUE`
    where the policy's own words would stand. `contrast`: to follow the principle, and to violate
    it.
    """
    require([principle], use)
    loaded = load_template(template)
    if use == "revise":
        chain = Chain(pair.prompt, 0, pair.first)
        steps = {"critique": None, "revision": CRITIQUE}
        return [
            (step, transcript(request(loaded, chain, principle, said)))
            for step, said in steps.items()
        ]
    wishes = {"follow": principle.follow, "violate": principle.violate}
    return [(side, transcript(wished(loaded, pair.prompt, w))) for side, w in wishes.items()]
