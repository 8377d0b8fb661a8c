"""A learnt constitution as a file: its principles with their weights, and the evidence beside."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from rlaif.constitution import Constitution, Principle
from rlaif.errors import DataError
from rlaif.evaluation.learned import Candidate, Learned
from rlaif.statistics.intervals import Interval

HEADER = "# Learnt from labelled pairs by `rlaif constitution learn`."


def written(learned: Learned, candidates: Mapping[str, Principle], name: str) -> str:
    """The YAML text of the constitution of what was kept. It has been read again, and loads.

    Weights are those of `aggregate: weighted`, rounded to four digits; comments say how often each
    principle was selected, how well it agrees alone, and what it stands for.
    """
    assert learned.held_out is not None
    assert learned.gain is not None
    head = {
        "name": name,
        "description": (
            f"Agrees with {told(learned.held_out)} of the labels of {learned.held_out_pairs} pairs "
            f"of {learned.held_out_prompts} prompts that it was not learnt from. To be used with "
            "preferences.aggregate: weighted."
        ),
    }
    lines = [
        HEADER,
        f"# {learned.train_pairs} pairs of {learned.train_prompts} prompts were learnt from, and "
        f"{learned.held_out_pairs} of {learned.held_out_prompts} held out.",
        f"# Held out: {told(learned.held_out)}; {_signed(learned.gain)} against the best single",
        f"# principle of the training pairs ({learned.best}).",
        *(f"# Beside it: {what} {told(interval)}." for what, interval in learned.sets.items()),
        _dumped(head).rstrip(),
        "principles:",
    ]
    for row in learned.kept:
        p = candidates[row.id]
        entry = {
            **p.model_dump(mode="json", exclude_defaults=True, exclude={"weight", "tier"}),
            "weight": max(round(row.weight.value, 4), 1e-4),
        }
        lines += [f"  # {line}" for line in evidence(row)]
        lines.append(textwrap.indent(_dumped([entry]), "  ").rstrip())
    text = "\n".join(lines) + "\n"
    loaded = Constitution.parse(text, f"{name}.yaml")
    if [p.id for p in loaded.principles] != [row.id for row in learned.kept]:
        raise DataError(f"the learnt constitution '{name}' cannot be written and read back")
    return text


def evidence(row: Candidate) -> list[str]:
    """What speaks for a principle, as lines."""
    lines = [
        f"weight {row.weight.value:.2f} [{row.weight.low:.2f}, {row.weight.high:.2f}], selected in "
        f"{row.selected:.0%} of the resamples",
        f"alone: {told(row.train)} of the training labels, {told(row.held_out)} held out",
    ]
    if row.stands_for:
        lines.append(f"stands for {', '.join(row.stands_for)}, whose verdicts say the same")
    return lines


def told(interval: Interval) -> str:
    """A share with its interval."""
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _signed(interval: Interval) -> str:
    low, high = (f"{100 * x:+.1f}" for x in (interval.low, interval.high))
    return f"{100 * interval.value:+.1f} points [{low}, {high}]"


def _dumped(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def table_of(learned: Learned) -> str:
    """What was found of every candidate and of what it is measured against, as aligned lines."""
    rows = [("", "weight", "selected", "alone, training", "alone, held out")]
    for row in learned.rows:
        if row.same_as is not None:
            rows.append((row.id, f"as {row.same_as}", "", told(row.train), told(row.held_out)))
        else:
            weight = f"{row.weight.value:.3f}" if row.weight.value else "–"
            alone = (told(row.train), told(row.held_out))
            rows.append((row.id, weight, f"{row.selected:.0%}", *alone))
    best = next(row for row in learned.rows if row.id == learned.best)
    ends = [(f"best single: {best.id}", "", "", told(best.train), told(best.held_out))]
    ends += [(f"constitution {k}", "", "", "", told(v)) for k, v in learned.sets.items()]
    if learned.train is not None and learned.held_out is not None:
        ends.insert(0, ("what is learnt", "", "", told(learned.train), told(learned.held_out)))
    rows += ends
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
    said = (
        f"{learned.train_pairs:,} pairs of {learned.train_prompts:,} prompts learnt from, "
        f"{learned.held_out_pairs:,} of {learned.held_out_prompts:,} held out"
    )
    return "\n".join([said, *lines])
