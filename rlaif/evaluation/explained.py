"""What the principles of a run did to its labels, summed up; what another rule would make of them.

Counts and shares over `attribution.Opinions`, ready to be written as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlaif.evaluation.attribution import Opinions, Sides
from rlaif.evaluation.vectors import Floats
from rlaif.statistics.intervals import Interval, share

Json = dict[str, Any]
FOLLOWS = 0.9  # a principle only follows length when its share for the longer surely is above this


def explained(found: Opinions) -> Json:
    """Each principle's part in the labels, who fights whom, and each label with what made it."""
    values, errors = found.shapley
    return {
        "pairs": len(found.labels),
        "preferred": int((found.sides != 0).sum()),
        "min_margin": found.min_margin,
        "farthest": float(np.nanmax(np.abs(found.labels - 0.5))),
        "exact": not errors.any(),
        "principles": [_principle(found, c) for c in range(len(found.principles))],
        "together": _together(found),
        "labels": list(_labels(found, values)),
    }


def _principle(found: Opinions, c: int) -> Json:
    values, errors = (x[c] for x in found.shapley)
    name, p, sides = found.principles[c], found.p[c], found.sides
    counted, side, without = ~np.isnan(p), _leaning(p), found.side(found.without[c])
    change = np.abs(found.without[c] - found.labels)
    turned = {
        "turned": int((without * sides == -1).sum()),
        "lost": int(((sides != 0) & (without == 0)).sum()),
        "gained": int(((sides == 0) & (without != 0)).sum()),
    }
    every = np.abs(found.shapley[0]).sum()
    row: Json = {
        "principle": name,
        "tier": found.rule.tiers.get(name),
        "weight": found.rule.weights.get(name, 1.0),
        "counted": int(counted.sum()),
        "with_label": _share(side == sides, (side != 0) & (sides != 0), found.prompts),
        "decided": int((found.decided == c).sum()),
        "without": {**turned, "mean_change": _mean(change[np.isfinite(change)])},
        "shapley": {
            "mean": _mean(np.abs(values[counted])),
            "towards_label": _mean((values * sides)[counted & (sides != 0)]),
            "share": float(np.abs(values).sum() / every) if every else None,
            "standard_error": float(np.sqrt((errors[counted] ** 2).mean())) if counted.any() else 0,
        },
        "longer": _longer(found, side),
    }
    return row | {"notes": list(_notes(row))}


def _notes(row: Json) -> Iterator[str]:
    """What is to be known of a principle that does less than it seems to."""
    if not row["counted"]:
        yield "never count"
        return
    if not row["decided"]:
        yield "never decide"
    if not any(row["without"][what] for what in ("turned", "lost", "gained")):
        yield "redundant, as no label changes without it alone"
    longer = row["longer"]
    if longer is not None and longer["low"] > FOLLOWS:
        yield "only prefer the longer response"
    if longer is not None and longer["high"] < 1 - FOLLOWS:
        yield "only prefer the shorter response"


def _together(found: Opinions) -> list[Json]:
    """For each two principles: on how many pairs both lean, to how many sides; and with whom the
    label goes where they pull apart."""
    leaning = [_leaning(p) for p in found.p]
    rows = []
    for a, b in combinations(range(len(leaning)), 2):
        same = int((leaning[a] * leaning[b] == 1).sum())
        apart = leaning[a] * leaning[b] == -1
        labels = found.sides[apart] * leaning[a][apart]
        rows.append(
            {
                "a": found.principles[a],
                "b": found.principles[b],
                "same": same,
                "apart": int(apart.sum()),
                "label_with_a": int((labels == 1).sum()),
                "label_with_b": int((labels == -1).sum()),
                "label_with_neither": int((labels == 0).sum()),
            }
        )
    return rows


def _labels(found: Opinions, values: Floats) -> Iterator[Json]:
    """Each pair's label with the principles that counted: their opinions and Shapley values in
    nats, and those without which the label would say something else."""
    other = found.side(found.without) != found.sides  # (C, N)
    for i, (pair, label) in enumerate(zip(found.pairs, found.labels.tolist(), strict=True)):
        counted = np.flatnonzero(~np.isnan(found.p[:, i])).tolist()
        names = [found.principles[c] for c in counted]
        column = int(found.decided[i])
        yield {
            "pair": pair,
            "p": None if label != label else label,
            "side": _SIDES[int(found.sides[i])],
            "decided": None if column < 0 else found.principles[column],
            "turned_by": [found.principles[c] for c in counted if other[c, i]],
            "opinions": dict(zip(names, found.p[counted, i].tolist(), strict=True)),
            "shapley": dict(zip(names, values[counted, i].tolist(), strict=True)),
        }


# ---------------------------------------------------------------------------------- another rule

_SIDES = {1: "first", -1: "second", 0: "neither"}


def compared(before: Opinions, after: Opinions) -> Json:
    """What becomes of the labels under another rule: how many flip, fall away or come, and with
    whom each principle's labels go."""
    cells = Counter(zip(before.sides.tolist(), after.sides.tolist(), strict=True))
    change = np.abs(after.labels - before.labels)
    moved = before.sides != after.sides
    order = np.argsort(-np.where(moved, np.nan_to_num(change), -1.0), kind="stable")
    return {
        "pairs": len(before.labels),
        "sides": [
            {"before": _SIDES[a], "after": _SIDES[b], "pairs": cells[a, b]}
            for a in _SIDES
            for b in _SIDES
            if cells[a, b]
        ],
        "flipped": cells[1, -1] + cells[-1, 1],
        "lost": sum(n for (a, b), n in cells.items() if a and not b),
        "gained": sum(n for (a, b), n in cells.items() if b and not a),
        "mean_change": _mean(change[np.isfinite(change)]),
        "principles": [
            {
                "principle": name,
                "with_label": [_with(p, x.sides, x.prompts) for x in (before, after)],
                "decided": [int((x.decided == c).sum()) for x in (before, after)],
            }
            for c, (name, p) in enumerate(zip(before.principles, before.p, strict=True))
        ],
        "changed": [
            {
                "pair": before.pairs[i],
                "p": [_known(before.labels[i]), _known(after.labels[i])],
                "side": [_SIDES[int(x.sides[i])] for x in (before, after)],
            }
            for i in order[: int(moved.sum())].tolist()
        ],
    }


def _with(p: Floats, sides: Sides, prompts: Sequence[str]) -> Json | None:
    side = _leaning(p)
    return _share(side == sides, (side != 0) & (sides != 0), prompts)


def _known(p: float) -> float | None:
    return None if np.isnan(p) else float(p)


def _leaning(p: Floats) -> Sides:
    """Which response each opinion prefers, 0 where it counts not or is ½."""
    return np.sign(np.nan_to_num(p - 0.5)).astype(np.int8)


def _longer(found: Opinions, side: Sides) -> Json | None:
    """How often a principle prefers the longer of two responses of unlike length."""
    longer = np.sign(found.lengths[0] - found.lengths[1])
    return _share(side == longer, (side != 0) & (longer != 0), found.prompts)


def _share(hits: Any, where: Any, prompts: Sequence[str]) -> Json | None:
    """The share of hits where something is so, with its interval over prompts; None of none."""
    chosen = np.flatnonzero(where)
    if not len(chosen):
        return None
    names = [prompts[i] for i in chosen.tolist()]
    told: Interval = share(np.asarray(hits, dtype=np.float64)[chosen], names)
    return told.as_dict()


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
