"""What people look for, as a query over the sums of `rlaif.view.index`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlaif.errors import ConfigError
from rlaif.view.index import Json, Made

PAGE = 25  # pairs a page
SORTS = {
    "run": ("in the run's order", "n"),
    "sure": ("most decided first", "margin DESC NULLS LAST, n"),
    "unsure": ("least decided first", "margin NULLS LAST, n"),
    "orders": ("orders disagree most", "orders DESC, n"),
    "principles": ("principles disagree most", "principles DESC, n"),
    "jurors": ("jurors disagree most", "jurors DESC, n"),
    "heads": ("the reward ensemble is least sure", "heads DESC, n"),
    "long": ("longest first", "greatest(len_first, len_second) DESC, n"),
}
STATUSES = ("preferred", "tie", "abstained", "unlabelled")
SIDES = {
    "first": "prefers response 1",
    "second": "prefers response 2",
    "even": "leans less than 0.05",
    "abstained": "abstained",
}
KNOWN = {
    "right": "the judge agrees with the pair's own label",
    "wrong": "the judge disagrees with the pair's own label",
    "none": "no label of its own",
}
_EVEN = 0.05
TELLING = 0.1  # a gap of two orders, or a lean to either side, under which nobody disagrees
_WORDS = "array_to_string(list_transform(prompt, lambda m: m.content), chr(10))"


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; "" where nothing is. With a principle, `side` and the margin are its own,
    else they are the label's."""

    text: str = ""
    principle: str = ""
    side: str = ""
    low: str = ""
    high: str = ""
    status: str = ""
    orders: str = ""
    principles: str = ""
    jurors: str = ""
    abstained: str = ""
    shortest: str = ""
    longest: str = ""
    source: str = ""
    known: str = ""
    sort: str = "run"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """Out of a query string. ConfigError names a value that cannot be."""
        names = [f.name for f in fields(cls)]
        found = cls(**{n: query[n][:500].strip() for n in names if query.get(n, "").strip()})
        for name, given, known in (
            ("sort", found.sort, SORTS),
            ("status", found.status, STATUSES),
            ("side", found.side, SIDES),
            ("known", found.known, KNOWN),
        ):
            if given and given not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got '{given}'")
        return found

    @property
    def given(self) -> dict[str, str]:
        """What differs from nothing, as a query string holds it."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in told.items() if v and (k, v) != ("sort", "run")}

    def where(self, made: Made) -> tuple[str, list[Any]]:
        """SQL over `facts`, and its values. ConfigError for a number that is none."""
        parts: list[tuple[str, list[Any]]] = []
        low, high = _number("margin from", self.low), _number("margin to", self.high)
        if self.principle:
            parts.append(self._of_principle(made, low, high))
        else:
            parts += _between("margin", low, high)
            if self.side:
                parts.append((_side(self.side), []))
        if self.status:
            parts.append(("status = ?", [self.status]))
        for name in ("orders", "principles", "jurors"):
            if getattr(self, name):
                parts.append((f"{name} >= {TELLING}", []))
        if self.abstained:
            parts.append(("abstained > 0", []))
        length = "greatest(len_first, len_second)"
        parts += _between(length, *(_number("length", n) for n in (self.shortest, self.longest)))
        if self.source:
            parts.append(("contains(lower(source), lower(?))", [self.source]))
        if self.known:
            agree = {"right": "> 0", "wrong": "< 0"}.get(self.known)
            told = f"(known - 0.5) * (p - 0.5) {agree}" if agree else "known IS NULL"
            parts.append((told, []))
        if self.text:
            # A literal of either case: half the time of `contains` on `lower` of both.
            found = " OR ".join(
                f"regexp_matches({c}, ?, 'il')" for c in ("first", "second", _WORDS)
            )
            sql = f"id IN (SELECT id FROM {made.shards('pairs')} WHERE {found})"
            parts.append((sql, [self.text] * 3))
        return " AND ".join(sql for sql, _ in parts) or "true", [v for _, vs in parts for v in vs]

    def _of_principle(
        self, made: Made, low: float | None, high: float | None
    ) -> tuple[str, list[Any]]:
        if self.principle not in made.principles:
            raise ConfigError(
                f"no principle '{self.principle}' in this run: {', '.join(made.principles)}"
            )
        parts = [("c = ?", [made.principles.index(self.principle)])]
        parts += _between("abs(p - 0.5)", low, high)
        if self.side:
            parts.append((_side(self.side), []))
        where = " AND ".join(sql for sql, _ in parts)
        return f"n IN (SELECT n FROM opinion WHERE {where})", [v for _, vs in parts for v in vs]


def _side(side: str) -> str:
    return {
        "first": "p > 0.5",
        "second": "p < 0.5",
        "even": f"abs(p - 0.5) < {_EVEN}",
        "abstained": "abstained > 0",
    }[side]


def _between(what: str, low: float | None, high: float | None) -> list[tuple[str, list[Any]]]:
    limits = ((">=", low), ("<=", high))
    return [(f"{what} {sign} ?", [limit]) for sign, limit in limits if limit is not None]


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{name}: expected a number, got '{text}'")
    return found


def page(made: Made, wanted: Filter, number: int) -> tuple[int, list[Json]]:
    """How many pairs there are, and the facts of those on a page (from 1), with `opinions`."""
    where, values = wanted.where(made)
    order, start = SORTS[wanted.sort][1], (number - 1) * PAGE
    rows = made.run(  # counted in the same query, as words are looked for in all texts
        f"SELECT *, count(*) OVER () AS total FROM facts WHERE {where} "
        f"ORDER BY {order} LIMIT {PAGE} OFFSET {start}",
        values,
    )
    total = rows[0]["total"] if rows else 0
    for row in rows:
        row["opinions"] = []
    if rows:
        by_n = {row["n"]: row for row in rows}
        told = (
            f"SELECT * FROM opinion WHERE n IN ({', '.join(map(str, by_n))}) ORDER BY n, c, juror"
        )
        for opinion in made.run(told):
            by_n[opinion["n"]]["opinions"].append(opinion)
    elif number > 1:  # beyond the last page
        [found] = made.run(f"SELECT count(*) AS total FROM facts WHERE {where}", values)
        total = found["total"]
    return int(total), rows
