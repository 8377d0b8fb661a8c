"""Constitutions for people to read."""

from __future__ import annotations

from rich.table import Table

from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import transcript
from rlaif.records import Message
from rlaif.templates import load_template


def principles_table(constitution: Constitution) -> Table:
    """The principles, one a row."""
    title = f"{constitution.name}, version {constitution.version}"
    table = Table(title=title, caption=constitution.description or None)
    table.add_column("id", no_wrap=True)
    table.add_column("compare")
    table.add_column("weight", justify="right")
    table.add_column("tags")
    for p in constitution.principles:
        table.add_row(p.id, p.compare, f"{p.weight:g}", ", ".join(p.tags))
    return table


def judge_prompt(principle: Principle, template: str) -> str:
    """What a judge reads for a sample pair, and the options it may answer."""
    loaded = load_template(template)
    rendered = loaded.render(
        messages=(Message("user", "How do I get ink out of a shirt?"),),
        first="Dab it with alcohol, then wash it cold.",
        second="Buy a new shirt.",
        principle=principle.compare,
    )
    return f"{transcript(rendered)}\n\noptions: {list(loaded.options)}"
