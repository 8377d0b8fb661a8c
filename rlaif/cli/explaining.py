"""`rlaif constitution explain`, `what-if`: which principles turned a run's labels, and what other
weights and tiers would make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rlaif.cli.looking import MostOption
from rlaif.cli.options import OutOption, RunArgument, SetOption, the_run
from rlaif.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rlaif.constitution import Constitution, Principle
    from rlaif.evaluation.attribution import Opinions
    from rlaif.evaluation.compare import LabelRule
    from rlaif.stages.stored import Stored

Json = dict[str, Any]
Value = TypeVar("Value")
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
]
FIGHTS = 10  # shown of those who pull apart


def explain(
    run: RunArgument = None,
    out: OutOption = None,
    most: MostOption = None,
    json_file: JsonOption = None,
) -> None:
    """Tell which principles turned a run's labels, and which of them fight; no judge is asked.

    With --json, each label with its principles' Shapley values.

    Example: rlaif constitution explain runs/demo --json told.json
    """
    from rlaif.cli.pairs import say
    from rlaif.evaluation.explained import explained
    from rlaif.files.small import write_json
    from rlaif.stages.stored import Stored

    stored = Stored(the_run(run, out))
    found = explained(stored.opinions())
    typer.echo(_about(stored))
    say(_explained(found, 5 if most is None else most), typer.echo)
    if json_file is not None:
        write_json(json_file, found)


def what_if(
    run: RunArgument = None,
    out: OutOption = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=NUMBER", help="Another weight of a principle; may be repeated."),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=N", help="Another tier: 1, 2, …, or `last`; may be repeated."),
    ] = None,
    constitution: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The weights and tiers of another one, that asks nothing else."
        ),
    ] = None,
    overrides: SetOption = None,
    most: MostOption = None,
    json_file: JsonOption = None,
) -> None:
    """Tell what becomes of a run's labels under other weights or tiers; nothing is changed.

    Weights count with --set preferences.aggregate=weighted.

    Example: rlaif constitution what-if runs/demo --tier no-harm=1 --tier least-harm=1

    Example: rlaif constitution what-if runs/demo --constitution mine.yaml
    """
    from rlaif.cli.pairs import say
    from rlaif.evaluation.explained import compared
    from rlaif.files.small import write_json
    from rlaif.stages.stored import Stored

    if not (weight or tier or constitution or overrides):
        raise ConfigError("nothing is to change: give --weight, --tier, --constitution or --set")
    stored = Stored(the_run(run, out))
    before = stored.opinions()
    after = before if constitution is None else _of_constitution(before, stored, constitution)
    after = _set(after, stored, overrides or ())
    after = after.by(_edited(after, weight or (), tier or ()))
    found = compared(before, after)
    typer.echo(_about(stored))
    say(_compared(found, 10 if most is None else most), typer.echo)
    if json_file is not None:
        write_json(json_file, found)


# ------------------------------------------------------------------------------------- the edit


def _of_constitution(before: Opinions, stored: Stored, name: str) -> Opinions:
    """By the weights and tiers of another constitution, which may leave principles out, and asks
    nothing that the run did not ask."""
    import numpy as np

    from rlaif.constitution import Constitution

    other = Constitution.load(name)
    _require_asked(stored.principles, other)
    ids = {p.id for p in other.principles}
    p = before.p.copy()
    p[[c for c, known in enumerate(before.principles) if known not in ids]] = np.nan
    weights = {p.id: p.weight for p in other.principles}
    tiers = {p.id: p.tier for p in other.principles}
    return replace(before, p=p, rule=replace(before.rule, weights=weights, tiers=tiers))


def _require_asked(asked: Sequence[Principle], other: Constitution) -> None:
    known = {p.id: p.compare for p in asked}
    new = [p.id for p in other.principles if known.get(p.id) != p.compare]
    if new:
        raise ConfigError(
            f"constitution '{other.name}' asks what this run did not: {', '.join(new)}. Judge them "
            f"with `rlaif label --constitution`; here weights and tiers may differ"
        )


def _set(before: Opinions, stored: Stored, overrides: Sequence[str]) -> Opinions:
    """By other settings of the rule."""
    from rlaif.config import load_config

    keys = [item.partition("=")[0] for item in overrides]
    known = {f"preferences.{n}": n for n in ("aggregate", "tier_margin", "min_margin")}
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"--set {key}: only {', '.join(known)} are of the rule over principles; for the "
                "others, run `rlaif label` with them" + nearest(key, known)
            )
    given = load_config(str(stored.store.path("run.yaml")), list(overrides)).preferences
    rule, margin = before.rule, before.min_margin
    if "preferences.aggregate" in keys:
        rule = replace(rule, name=given.aggregate)
    if "preferences.tier_margin" in keys:
        rule = replace(rule, tier_margin=given.tier_margin)
    if "preferences.min_margin" in keys:
        margin = given.min_margin
    return replace(before, rule=rule, min_margin=margin)


def _edited(found: Opinions, weight: Sequence[str], tier: Sequence[str]) -> LabelRule:
    """The rule with the weights and tiers that options name."""
    rule = found.rule
    weights = _given("--weight", weight, found.principles, _weight)
    tiers = _given("--tier", tier, found.principles, _tier)
    if weights and rule.name != "weighted":
        raise ConfigError(
            f"weights do not count under aggregate {rule.name}: add "
            "--set preferences.aggregate=weighted"
        )
    return replace(rule, weights={**rule.weights, **weights}, tiers={**rule.tiers, **tiers})


def _given(
    option: str, items: Sequence[str], known: Sequence[str], read: Callable[[str], Value]
) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if name not in known:
            raise ConfigError(f"{option} {item}: no principle '{name}' here.{nearest(name, known)}")
        if name in found:
            raise ConfigError(f"{option}: '{name}' is given twice")
        try:
            found[name] = read(text if equals else "")
        except ValueError as error:
            raise ConfigError(f"{option} {item}: expected {error} after '{name}='") from None
    return found


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


def _tier(text: str) -> int | None:
    if text == "last":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("1, 2, … or `last`")
    return int(text)


# ------------------------------------------------------------------------------------- the lines


def _about(stored: Stored) -> str:
    rule = stored.rule
    tiers = len({rule.tiers.get(p.id) for p in stored.principles})
    ranked = f" in {tiers} tiers" if tiers > 1 else ""
    name = stored.constitution.get("name")
    return f"{stored.store.root}: constitution {name}, rule {rule.name}{ranked}"


def _explained(found: Json, most: int) -> Iterator[str]:
    from rlaif.cli.pairs import table

    rows = found["principles"]
    yield f"{found['pairs']:,} pairs, of which the labels prefer a side of {found['preferred']:,}"
    if not found["preferred"]:
        yield (
            f"  all lie within {found['farthest']:.2g} of ½, and the margin of ties is "
            f"{found['min_margin']:g} (preferences.min_margin)"
        )
    yield ""
    ranked = any(row["tier"] is not None for row in rows)
    head = ["principle", *["tier"] * ranked, "counted", "with label", "decided"]
    head += ["turned", "lost", "gained", "Shapley", "share"]
    yield from table([head, *(_row(row, ranked) for row in rows)])
    yield "\n  turned, lost, gained: labels that change sides, come to prefer none, or come to"
    yield "  prefer one, without that principle alone. Shapley: its part of a label's log-odds, in"
    yield "  nats, on average where it counted; share: of all parts." + _error(rows, found["exact"])
    yield from _notes(rows)
    yield from _matrix(found)
    yield from _fights(found["together"])
    yield from _hanging(found["labels"], most)


def _row(row: Json, ranked: bool) -> list[str]:
    without, shapley = row["without"], row["shapley"]
    tier = ["last" if row["tier"] is None else str(row["tier"])] if ranked else []
    counts = [f"{without[k]:,}" for k in ("turned", "lost", "gained")]
    share = "–" if shapley["share"] is None else f"{shapley['share']:.0%}"
    return [
        row["principle"],
        *tier,
        f"{row['counted']:,}",
        _percent(row["with_label"]),
        f"{row['decided']:,}",
        *counts,
        "–" if shapley["mean"] is None else f"{shapley['mean']:.2g}",
        share,
    ]


def _percent(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['value']:.0%}"


def _error(rows: Sequence[Json], exact: bool) -> str:
    if exact:
        return ""
    worst = max(row["shapley"]["standard_error"] for row in rows)
    return f" Sampled: ±{worst:.1g} a label (standard error)"


def _notes(rows: Sequence[Json]) -> Iterator[str]:
    """Each note with the principles that have it."""
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        yield f"  {note}: {', '.join(r['principle'] for r in rows if note in r['notes'])}"


def _matrix(found: Json) -> Iterator[str]:
    """Of the pairs on which two lean, the share on which they lean to one side."""
    from rlaif.cli.pairs import table

    names = [row["principle"] for row in found["principles"]]
    if len(names) < 2:
        return
    cells = {}
    for row in found["together"]:
        n = row["same"] + row["apart"]
        cell = f"{row['same'] / n:.0%}" if n else "–"
        cells[row["a"], row["b"]] = cells[row["b"], row["a"]] = cell
    yield "\nto the same side, of the pairs on which both lean:"
    rows = [["", *(str(i) for i in range(1, len(names) + 1))]]
    for i, a in enumerate(names, 1):
        rows.append([f"{i:>2} {a}", *(cells.get((a, b), "") for b in names)])
    yield from table(rows)


def _fights(together: Sequence[Json]) -> Iterator[str]:
    from rlaif.cli.pairs import table

    apart = sorted((r for r in together if r["apart"]), key=lambda r: -r["apart"])
    if not apart:
        return
    yield "\npull apart most often, and with whom the label goes:"
    rows = [["a", "b", "pairs", "with a", "with b", "neither"]]
    for r in apart[:FIGHTS]:
        counts = [r[f"label_with_{who}"] for who in ("a", "b", "neither")]
        rows.append([r["a"], r["b"], *(f"{n:,}" for n in (r["apart"], *counts))])
    yield from table(rows, left=2)


def _hanging(labels: Sequence[Json], most: int) -> Iterator[str]:
    """Labels that one principle alone turns, the clearest first."""
    found = [row for row in labels if row["turned_by"]]
    yield f"\n{len(found):,} labels would say something else without one principle"
    found.sort(key=lambda row: -abs((0.5 if row["p"] is None else row["p"]) - 0.5))
    for row in found[:most]:
        p = "–" if row["p"] is None else f"{row['p']:.2f}"
        yield f"  {p}  {row['pair']}  without {' or '.join(row['turned_by'])}"


def _compared(found: Json, most: int) -> Iterator[str]:
    from rlaif.cli.pairs import table

    yield (
        f"{found['pairs']:,} pairs: {found['flipped']:,} labels flip, {found['lost']:,} prefer no "
        f"side any more, {found['gained']:,} come to prefer one"
    )
    if found["mean_change"] is not None:
        yield f"  the labels lie {found['mean_change']:.3f} apart on average"
    yield "\nlabels: as they are by row, as they would be by column"
    sides = ("first", "second", "neither")
    cells = {(r["before"], r["after"]): r["pairs"] for r in found["sides"]}
    rows = [["", *sides], *([a, *(f"{cells.get((a, b), 0):,}" for b in sides)] for a in sides)]
    yield from table(rows)
    yield "\nwith the label, where a principle leans and the label prefers a side; and decided"
    yield from table(
        [
            [r["principle"], " → ".join(map(_percent, r["with_label"])), *_decided(r)]
            for r in found["principles"]
        ]
    )
    shown = found["changed"][:most]
    if shown:
        yield f"\nof the {len(found['changed']):,} that change, those that move farthest:"
    for row in shown:
        p = " → ".join("–" if p is None else f"{p:.2f}" for p in row["p"])
        yield f"  {p}  {row['pair']}  {' → '.join(row['side'])}"


def _decided(row: Json) -> list[str]:
    return [" → ".join(f"{n:,}" for n in row["decided"])]
