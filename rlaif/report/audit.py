"""An audit as people read it: a plain table for the terminal, a section for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from markupsafe import Markup

from rlaif.errors import DataError
from rlaif.files.small import reason
from rlaif.report import svg
from rlaif.report.formats import MISSING, count, fixed, percent
from rlaif.statistics.intervals import Interval

Json = dict[str, Any]
Row = tuple[str, str, str, str]  # what, value, 95 % interval, n
KNOWN = {
    "pairs": "the pairs’ own labels",
    "people": "what people decided",
    "gold": "the embedded world’s gold checker",
}


def table(audit: Mapping[str, Any]) -> str:
    """The audit as lines of text, aligned."""
    groups = list(_groups(audit))
    rows = [row for _, rows in groups for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    out: list[str] = []
    for title, rows in groups:
        heading = ("", "", "95 % interval", "n") if not out else ("",) * 4
        widths[2] = max(widths[2], len("95 % interval"))
        name_width = max(widths[0], 34)
        cells = f"{heading[1]:>{widths[1]}}  {heading[2]:>{widths[2]}}  {heading[3]:>{widths[3]}}"
        out.append(f"{title:<{name_width + 2}}  {cells}".rstrip())
        out += [
            f"  {name:<{name_width}}  {value:>{widths[1]}}  {ends:>{widths[2]}}  {n:>{widths[3]}}"
            for name, value, ends, n in rows
        ]
    return "\n".join(out)


def section(audit: Mapping[str, Any]) -> Json | None:
    """What the page shows; None where no audit was made."""
    if not audit:
        return None
    try:
        return _section(audit)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"evaluation/audit.json is not what this version writes ({reason(error)}): run "
            "`rlaif eval audit` again"
        ) from error


def _section(audit: Mapping[str, Any]) -> Json:
    known = audit.get("known") or {}
    points = [(p["confidence"], _interval(p)) for p in known.get("reliability") or ()]
    lengths = [(g["name"], _interval(g)) for g in known.get("by_length") or () if g["n"]]
    return {
        "groups": [
            (title, [(_indented(name), *rest) for name, *rest in rows])
            for title, rows in _groups(audit)
        ],
        "reliability": svg.reliability(points, label="Reliability of the labels")
        if points
        else None,
        "lengths": _lengths(lengths) if lengths else None,
    }


def _indented(name: str) -> str:
    """Leading spaces that a page keeps."""
    return name.replace("  ", "\u2003")


def _lengths(groups: list[tuple[str, Interval]]) -> Markup:
    return svg.whiskers(
        [(name, [found]) for name, found in groups],
        ["labels"],
        label="Accuracy by how long the better response is",
        x_label="share right, 95 % interval",
        reference=0.5,
    )


def _interval(found: Mapping[str, Any]) -> Interval:
    return Interval(found["value"], found["low"], found["high"], found["n"])


def _groups(audit: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    pairs, prompts = audit["pairs"], audit["prompts"]
    yield (
        f"{count(pairs)} pairs of {count(prompts)} prompts",
        [(name, percent(n / pairs), "", count(n)) for name, n in audit["status"].items()],
    )
    if audit.get("known"):
        yield from _known(audit["known"], KNOWN.get(audit.get("known_from") or "", "what is known"))
    if audit.get("judge"):
        yield "The judge by itself", list(_judge(audit["judge"]))
    yield "Length", list(_length(audit["length"]))


def _known(known: Mapping[str, Any], source: str) -> Iterator[tuple[str, list[Row]]]:
    rows = [
        _row("accuracy, preferred pairs", known.get("accuracy"), percent),
        _unseparated(known["unseparated"]),
        _row("accuracy, ties and abstentions ½", known["accuracy_all"], percent),
        _row("Cohen’s κ", known.get("kappa"), fixed),
        _row("calibration error (ECE)", known.get("ece"), fixed),
        _row("Brier score (¼: always ½)", known.get("brier"), fixed),
        _row("log-loss (0.693: always ½)", known.get("log_loss"), fixed),
    ]
    if fitted := known.get("temperature"):
        rows += _temperature(fitted)
    yield f"Against {source}", rows
    if transfer := known.get("transfer"):
        yield from _transfer(transfer)
    principles = known["by_principle"]
    if len(principles) > 1:
        rows = [_row(name, found, percent) for name, found in principles.items()]
        yield "Accuracy of each principle", rows
    rows = [_row(g["name"], g if g["n"] else None, percent) for g in known["by_length"]]
    yield "Accuracy where the better response is", rows


def _unseparated(found: Mapping[str, Any] | None) -> Row:
    """Preferred labels of pairs that the truth does not separate; no accuracy counts these."""
    name = "preferred, though known to be equal"
    return _row(f"{name}: {count(found['count'])}" if found else name, found, percent)


def _transfer(found: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """A temperature of other labels beside none and these labels' own."""
    rows = []
    for title, at in (
        ("without a temperature", "raw"),
        ("at their own, the other half’s", "own"),
        ("at the other run’s", "other"),
    ):
        scores = found[at] or {}
        rows += [
            _row(f"ECE {title}", scores.get("ece"), fixed),
            _row(f"log-loss {title}", scores.get("log_loss"), fixed),
        ]
        if at != "raw":
            rows.append(_row("  change of log-loss", scores.get("change"), fixed))
    verdict = {"helps": "it helps here", "harms": "it harms here"}.get(
        found["verdict"], "whether it helps cannot be told"
    )
    unlike = f"; fitted with another {', '.join(found['differs'])}" if found["differs"] else ""
    yield (
        f"The temperature {fixed(found['temperature'], 2)} of {found['from']}: {verdict}{unlike}",
        rows,
    )


def _temperature(fitted: Mapping[str, Any]) -> Iterator[Row]:
    n = count(fitted["n"])
    if fitted.get("applied") is not None:
        yield ("these labels are at the temperature", fixed(fitted["applied"], 2), "", n)
        yield _row("  ECE without it", fitted["raw"]["ece"], fixed)
        yield _row("  Brier score without it", fitted["raw"]["brier"], fixed)
        yield _row("  log-loss without it", fitted["raw"]["log_loss"], fixed)
    if fitted["value"] is None:
        slope = fitted["slope"]
        why = "one-sided" if slope is None else "at chance"
        yield (f"best temperature: none, {why}", MISSING, "", n)
        return
    low, high = fixed(fitted["low"], 2), "∞" if fitted["high"] is None else fixed(fitted["high"], 2)
    yield ("best temperature (1: calibrated)", fixed(fitted["value"], 2), f"{low} – {high}", n)
    if fitted["ece"] is not None:
        yield _row("  ECE at the other half’s", fitted["ece"], fixed)
        yield _row("  Brier score at the other half’s", fitted["brier"], fixed)
        yield _row("  log-loss at the other half’s", fitted.get("log_loss"), fixed)


def _judge(judge: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("verdicts abstained", judge["abstained"], percent)
    for name, found in judge["abstained_by_reason"].items():
        yield _row(f"  {name}", found, percent)
    yield _row("label mass", judge["label_mass"], fixed)
    yield _row("leans to a side by 0.1 or more", judge["leaning"], percent)
    for name, key in (
        ("both orders prefer the same response", "swap_consistency"),
        ("both orders prefer the same slot", "same_slot_rate"),
        ("  of these, the first slot", "first_slot_share"),
        ("all picks for the first slot", "says_first"),
    ):
        yield _row(name, judge[key], percent)


def _length(length: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("correlation of label and length", length["correlation"], fixed)
    yield _row("prefers the longer response", length["longer"], percent)
    if length["known_correlation"]:
        yield _row("known labels: correlation", length["known_correlation"], fixed)
        yield _row("known labels: the longer is better", length["known_longer"], percent)


def _row(name: str, found: Mapping[str, Any] | None, form: Callable[[float | None], str]) -> Row:
    if found is None:
        return (name, MISSING, "", "0")
    ends = f"{form(found['low'])} – {form(found['high'])}"
    return (name, form(found["value"]), ends, count(found["n"]))
