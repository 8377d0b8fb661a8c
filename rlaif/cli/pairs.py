"""Pairs, their verdicts and what two runs say of them, as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlaif.evaluation.cases import Case
from rlaif.evaluation.compare import SIDES, Comparison, Flip
from rlaif.evaluation.largest import Largest
from rlaif.records import Pair, Verdict
from rlaif.report.formats import printable
from rlaif.statistics.agreement import Agreement

APART = {
    "principles": "the principles are farthest apart",
    "orders": "the two orders of a question are farthest apart",
    "jurors": "the jurors are farthest apart",
}
WIDTH = 100


def table(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Rows as aligned lines, the first `left` columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def number(value: float | None) -> str:
    """A probability with two decimals; a dash for none."""
    return "–" if value is None else f"{value:.2f}"


def one_line(text: str, width: int) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


# ------------------------------------------------------------------------------------- one pair


def whole(case: Case, wording: Mapping[str, str]) -> Iterator[str]:
    """A pair with its label and every verdict. `wording` is what each principle asks."""
    yield f"pair {case.pair.id}"
    yield _label(case)
    for message in case.pair.prompt.messages:
        yield f"\n{message.role}:"
        yield _indented(message.content)
    thoughts = case.pair.thoughts or ("", "")
    sides = (("first", case.pair.first, thoughts[0]), ("second", case.pair.second, thoughts[1]))
    for name, text, thought in sides:
        if thought:
            yield f"\nthought before {name}:"
            yield _indented(thought)
        yield f"\n{name} ({len(text.split()):,} words):"
        yield _indented(text)
    yield ""
    if not case.verdicts:
        yield "no verdict of the judge of these labels is stored"
        return
    yield from _verdicts(case, wording)
    yield from _written(case)


def _label(case: Case) -> str:
    preference = case.preference
    known = "" if case.pair.label is None else f"; it came with the label {case.pair.label:.2f}"
    if preference is None:
        return f"not labelled yet{known}"
    if preference.p_first is None:
        why = f" ({preference.reason})" if preference.reason else ""
        return f"{preference.status}{why}, no label{known}"
    text = f"P(first is better) {preference.p_first:.3f}: "
    if preference.status == "preferred":
        text += "the first" if preference.first_is_chosen else "the second"
        text += f" is preferred, decided by {case.principle}" if case.principle else " is preferred"
    else:
        text += f"a {preference.status}"
    return text + known


def _verdicts(case: Case, wording: Mapping[str, str]) -> Iterator[str]:
    yield "P(first is better):"
    several = len({v.judge for v in case.verdicts}) > 1
    rows = [["principle", *(["judge"] if several else []), "shown 1st", "shown 2nd", "both"]]
    for principle, judges in case.columns.items():
        for judge, asked in judges.items():
            said = [_said(asked.get("first_second")), _said(asked.get("second_first"))]
            both = number(case.jurors(principle).get(judge))
            rows.append([principle, *([judge] if several else []), *said, both])
    yield from table(rows, left=1 + several)
    yield ""
    for principle in case.columns:
        counted = case.opinions.get(principle)
        told = "does not count" if counted is None else f"counts as {counted:.2f}"
        yield from textwrap.wrap(
            f"{principle}: {printable(wording.get(principle, ''))} ({told})",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )


def _said(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    return number(verdict.p_first) if verdict.reason is None else verdict.reason


def _written(case: Case) -> Iterator[str]:
    """What the judges wrote before they decided."""
    for verdict in case.verdicts:
        shown = "first" if verdict.order == "first_second" else "second"
        of = f"{verdict.judge}, {verdict.principle}, the {shown} shown first"
        for what, texts in (("thought", verdict.thoughts), ("rationale", verdict.rationales)):
            for text in texts:
                yield f"\n{what} of {of}:"
                yield _indented(text)


def _indented(text: str) -> str:
    return textwrap.indent(printable(text), "  ", lambda _: True)


# ------------------------------------------------------------------------------------ many pairs


def farthest(cases: Iterable[Case], by: Sequence[str], most: int) -> tuple[int, dict[str, Any]]:
    """How many cases there are, and by each of `by` the `most` in which opinions are farthest
    apart, as (distance, case), the farthest first. Keeps no more than these in memory."""
    kept, total = {name: Largest[Case](most) for name in by}, 0
    for case in cases:
        total += 1
        for name, largest in kept.items():
            distance = case.apart(name)
            if distance is not None:
                largest.add(distance, case)
    return total, {name: largest.found() for name, largest in kept.items()}


def listed(name: str, found: Sequence[tuple[float, Case]]) -> Iterator[str]:
    """Pairs on which the principles, orders or jurors are farthest apart."""
    yield f"where {APART[name]}:"
    for distance, case in found:
        yield f"  {distance:.2f}  {short(case)}"
        yield f"        {_opposed(case, name)}"


def short(case: Case) -> str:
    """A pair on one line: its id, label, and the last turn of its prompt."""
    said = case.pair.prompt.messages[-1].content if case.pair.prompt.messages else ""
    label = f"{number(case.label):>4} {case.status}"
    return f"{case.pair.id:<21} {label:<15} {one_line(said, 52)}"


def _opposed(case: Case, name: str) -> str:
    """Who says what, where they are farthest apart."""
    if name == "principles":
        return _ends(case.opinions)
    widest: tuple[float, str] = (-1.0, "")
    for principle, judges in case.columns.items():
        if name == "jurors":
            said = [("", case.jurors(principle))]
        else:
            names = {"first_second": "shown 1st", "second_first": "shown 2nd"}
            said = [
                (
                    f" by {judge}" if len(judges) > 1 else "",
                    {names[o]: v.p_first for o, v in asked.items() if v.p_first is not None},
                )
                for judge, asked in judges.items()
            ]
        for of, values in said:
            if len(values) > 1:
                distance = max(values.values()) - min(values.values())
                widest = max(widest, (distance, f"{principle}{of}: {_ends(values)}"))
    return widest[1]


def _ends(values: Mapping[str, float]) -> str:
    low, high = min(values, key=lambda n: values[n]), max(values, key=lambda n: values[n])
    return f"{high} {values[high]:.2f}, {low} {values[low]:.2f}"


# -------------------------------------------------------------------------------------- two runs


def comparison(found: Comparison, only_b: int, most: int) -> Iterator[str]:
    """What two runs, A and B, say of the same pairs."""
    only = [f"{n:,} only in {run}" for n, run in ((found.only_a, "A"), (only_b, "B")) if n]
    yield f"{found.both:,} pairs labelled in both" + (f" ({', '.join(only)})" if only else "")
    agreed = found.agreement()
    if agreed is None:
        yield "no pair of which both runs prefer a side"
    else:
        yield f"  both prefer a side of {agreed.same_side.n:,}: the same of {_agreed(agreed)}"
    if found.change is not None:
        yield f"  the labels lie {found.change:.3f} apart on average"
    yield "\nlabels: A's by row, B's by column"
    sides = [s for s in SIDES if any(s in pair for pair in found.sides)]
    rows = [["", *sides], *([a, *(f"{found.sides[a, b]:,}" for b in sides)] for a in sides)]
    yield from table(rows)
    principles = found.by_principle()
    if principles:
        yield "\nprinciples in both, where they lean: the same side"
        yield from table([[name, _agreed(a)] for name, a in principles.items()], left=2)
    yield from _flips(found, most)


def _agreed(agreed: Agreement) -> str:
    same, kappa = agreed.same_side, agreed.kappa
    return (
        f"{same.value:.1%} [{same.low:.1%}, {same.high:.1%}], "
        f"κ {kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
    )


def _flips(found: Comparison, most: int) -> Iterator[str]:
    yield f"\n{found.flip_count:,} flipped" + (", turned by:" if found.flip_count else "")
    rows = [
        [name or "no one thing alone", f"{n:,}", f"{found.alone[name]:,} alone"]
        for name, n in found.turned_by.most_common()
    ]
    if rows:
        yield from table(rows)
    shown = found.flips[:most]
    if shown:
        yield f"\nthe {len(shown)} farthest apart:" if len(shown) > 1 else "\nthe farthest apart:"
    for flip in shown:
        yield from _flip(flip)


def _flip(flip: Flip) -> Iterator[str]:
    pair, towards = flip.pair, 1 if flip.p[1] > flip.p[0] else -1
    yield f"  {flip.p[0]:.2f} → {flip.p[1]:.2f}  {pair.id}  {one_line(_last(pair), 56)}"
    able = sorted(flip.moves.items(), key=lambda item: -item[1] * towards)
    told = ", ".join(f"{name} {move:+.2f}" for name, move in able[:3])
    if told:
        yield f"               {told}"


def _last(pair: Pair) -> str:
    return pair.prompt.messages[-1].content if pair.prompt.messages else ""


def say(lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Writes the lines as they are made: no line is broken."""
    for line in lines:
        write(line)
