"""Two runs beside one another: what they were told, what they came to, and whose labels turned.

The runs are A and B. A number of both has a change, B's less A's, only where both measured it the
same way; everything else is shown without one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.errors import DataError
from rlaif.evaluation.compare import SIDES, Comparison, Flip, joined
from rlaif.evaluation.labels import agreement, unseparated
from rlaif.evaluation.moved import change_of_shares
from rlaif.report import sections, svg
from rlaif.report.data import EVALUATE, WIN_RATE, Json, Run, number
from rlaif.report.differences import Piece, differences
from rlaif.report.summary import ece
from rlaif.statistics.intervals import Interval, share
from rlaif.store import lineage

LABELS = "Labels"  # the title of their numbers
FLIPS = 8  # pairs that are shown whole
MOVES = 6  # opinions of a flipped pair that are shown
OPTIONS = 60  # of the configs that are shown
Runs = tuple[Run, Run]
Kind = Literal["percent", "fixed", "count"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number of both runs; None where a run does not have it. `same` says whether both measured
    it the same way."""

    what: str
    values: tuple[Interval | None, Interval | None]
    kind: Kind = "percent"
    same: bool = False

    @property
    def change(self) -> Interval | None:
        """B less A, with an interval made of theirs; None where the two cannot be compared."""
        a, b = self.values
        known = self.same and a is not None and b is not None and a.low < a.high and b.low < b.high
        return change_of_shares(a, b) if known and a is not None and b is not None else None

    @property
    def beyond(self) -> bool:
        """Whether the change's interval leaves 0 out."""
        change = self.change
        return change is not None and (change.low > 0 or change.high < 0)


# ------------------------------------------------------------------------------ what they were told


def told(runs: Runs) -> list[tuple[str, list[str]]]:
    """By product of both runs, what it was made from otherwise; each difference told once."""
    made = [run.manifest.get("made") or {} for run in runs]
    seen: set[str] = set()
    found = []
    for product in sorted(made[0].keys() & made[1].keys(), key=lineage.rank):
        lines = lineage.differences(made[0][product], made[1][product])
        new = [line for line in lines if line not in seen]
        seen.update(new)
        if new:
            found.append((lineage.title(product), new))
    return found


def wordings(runs: Runs) -> Json:
    """The principles of which the two constitutions say something else, with both wordings."""
    here, there = ({p["id"]: p for p in r.constitution.get("principles") or []} for r in runs)
    rows = []
    for name in (n for n in {**here, **there} if here.get(n) != there.get(n)):
        a, b = here.get(name), there.get(name)
        pieces: list[list[Piece] | None] = [_alone(a), _alone(b)]
        if a is not None and b is not None:
            pieces = list(differences(_wording(a), _wording(b)))
        others = sorted(
            key
            for key in {**(a or {}), **(b or {})}
            if a and b and key != "compare" and a.get(key) != b.get(key)
        )
        values = [", ".join(f"{k} {(p or {}).get(k)}" for k in others) for p in (a, b)]
        rows.append({"id": name, "pieces": pieces, "others": values})
    return {"rows": rows, "same": [n for n in here if here[n] == there.get(n)]}


def _wording(principle: Mapping[str, Any]) -> str:
    return str(principle.get("compare") or "")


def _alone(principle: Mapping[str, Any] | None) -> list[Piece] | None:
    return None if principle is None else [(_wording(principle), False)]


def options(runs: Runs) -> list[tuple[str, str | None, str | None]]:
    """The options of the two configs that differ, without where the runs lie."""
    flat = [dict(_flat(run.options)) for run in runs]
    keys = [k for k in {**flat[0], **flat[1]} if k != "out" and flat[0].get(k) != flat[1].get(k)]
    return [(key, flat[0].get(key), flat[1].get(key)) for key in keys]


def _flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{before}{key}", shown


# -------------------------------------------------------------------------------- what they came to


def numbers(runs: Runs) -> list[tuple[str, list[Number]]]:
    """The numbers of labels, reward model and policies that a run has, in groups with a title."""
    groups = [(LABELS, _labels(runs)), ("Reward model", _reward(runs))]
    names = dict.fromkeys(name for run in runs for name in sections.names_of(run))
    groups += [(f"Policy {name}", _policy(runs, name)) for name in names]
    known = [(title, [n for n in rows if any(n.values)]) for title, rows in groups]
    return [(title, rows) for title, rows in known if rows]


def _labels(runs: Runs) -> list[Number]:
    a, b = runs
    same = a.known_from == b.known_from and a.target == b.target
    found = [[*_of_labels(run)] for run in runs]
    return [
        Number(what, (here, there), kind, same and known)
        for (what, here, kind, known), (_, there, _, _) in zip(*found, strict=True)
    ]


def _of_labels(run: Run) -> Iterator[tuple[str, Interval | None, Kind, bool]]:
    """Each number of a run's labels, its kind, and whether it is measured by what is known."""
    judged = run.cube.asked.any()
    slots = run.cube.slots(run.prompts) if judged else None
    preferred = [float(status == "preferred") for status in run.statuses if status is not None]
    prompts = [p for p, s in zip(run.prompts, run.statuses, strict=True) if s is not None]
    yield "pairs", _exact(len(run.known) or None), "count", False
    yield "verdicts", _exact(int(run.cube.asked.sum()) or None), "count", False
    yield "abstained", _exact(int(run.cube.abstained.sum()) if judged else None), "count", False
    yield (
        "pairs with a preference",
        share(preferred, prompts) if preferred else None,
        "percent",
        False,
    )
    yield (
        "right, as far as known",
        agreement(run.preferred, run.known, run.prompts),
        "percent",
        True,
    )
    none = unseparated(run.preferred, run.known, run.tied, run.prompts)
    yield "preferred, though known to be equal", none, "percent", True
    both = slots["swap_consistency"] if slots else None
    yield "the same completion in both orders", both, "percent", False
    yield "calibration error (ECE)", _exact(ece(run)), "fixed", True


def _exact(value: float | None) -> Interval | None:
    """A number whose interval is not known."""
    return None if value is None else Interval(value, value, value, 0)


def _reward(runs: Runs) -> list[Number]:
    found = []
    for run in runs:
        metrics = run.training("reward")[1]
        held_out = metrics.get("held_out") or {}
        known = (held_out.get("intervals") or {}).get("accuracy")
        accuracy = [known, held_out.get("accuracy"), metrics.get("accuracy")]
        found.append(next((x for v in accuracy if (x := sections.as_interval(v))), None))
    same = _same(runs, lineage.model("reward"), lineage.LABELS)
    return [Number("held-out pairs ranked as labelled", (found[0], found[1]), "percent", same)]


def _policy(runs: Runs, name: str) -> list[Number]:
    """Traits and form of a policy's responses; of a trained one how far it went, and who wins."""
    said = [run.policies.get(name) or {} for run in runs]
    traits = [sections.traits_of(run, name) for run in runs]

    def both(what: str, values: Sequence[Any], kind: Kind, same: bool) -> Number:
        here, there = (sections.as_interval(v) for v in values)
        return Number(what, (here, there), kind, same)

    rows = [
        Number(trait, (traits[0].get(trait), traits[1].get(trait)), "percent", True)
        for trait in {**traits[0], **traits[1]}
    ]
    rows.append(both("words a response", [s.get("words") for s in said], "fixed", True))
    if name == "base":
        return rows
    asked = ("principles", "judge", "evaluate")
    rates = [_rate(run, name) for run in runs]
    rows.append(
        both("win rate over base", rates, "percent", _same(runs, lineage.EVALUATION, *asked))
    )
    kl = [_kl(s.get("kl")) for s in said]
    same = _same(runs, lineage.EVALUATION, "policy")
    return [*rows, Number("KL from base, nats a response", (kl[0], kl[1]), "fixed", same)]


def _rate(run: Run, name: str) -> Json:
    return run.win_rate if name == "dpo" else run.evaluation(f"winrate-{name}", EVALUATE, WIN_RATE)


def _kl(found: Any) -> Interval | None:
    value = number(found)
    error = number(found.get("stderr")) if isinstance(found, Mapping) else None
    if value is None:
        return None
    half = 1.96 * (error or 0.0)
    return Interval(value, value - half, value + half, 0)


def _same(runs: Runs, product: str, *inputs: str) -> bool:
    """Whether both runs made a product from the same inputs; False where it is not known."""
    made = [(run.manifest.get("made") or {}).get(product) or {} for run in runs]
    return all(
        name in made[0] and name in made[1] and not lineage.differ(made[0][name], made[1][name])
        for name in inputs
    )


def charts(runs: Runs) -> list[tuple[str, Any]]:
    """The traits of each trained policy that both runs have, as a chart."""
    found = []
    for name in sections.names_of(runs[0]):
        traits = [sections.traits_of(run, name) for run in runs]
        common = [t for t in traits[0] if t in traits[1]]
        if name != "base" and common:
            rows = [(t.replace("_", " "), [one[t] for one in traits]) for t in common]
            chart = svg.whiskers(
                rows,
                ["A", "B"],
                label=f"Traits of {name} in both runs with 95 % intervals",
                x_label="mean of the trait, 95 % interval",
                hollow=False,
            )
            found.append((name, chart))
    return found


# ------------------------------------------------------------------------------ whose labels turned


def compared(runs: Runs) -> Comparison:
    """The labels of the pairs that both runs have."""
    a, b = runs
    found = Comparison((sections.label_rule(a), sections.label_rule(b)), keep=FLIPS)
    left = a.store.table("preferences").iter_batches(1_024)
    for mine, other in joined(left, b.store.table("preferences").finder()):
        found.add(mine, other)
    return found


def labels(of: Beside) -> Json | None:
    """What the page tells of the labels of both; None where no pair has a label in both."""
    runs, found = of.runs, of.comparison
    if not found.both:
        return None
    sides = [s for s in SIDES if any(s in pair for pair in found.sides)]
    return {
        "counts": found,
        "only_b": len(runs[1].store.table("preferences")) - found.both,
        "agreed": found.agreement(),
        "by_principle": found.by_principle(),
        "sides": sides,
        "table": [(a, [found.sides[a, b] for b in sides]) for a in sides],
        "turned_by": [(name, n, found.alone[name]) for name, n in found.turned_by.most_common()],
        "flips": [_flip(flip) for flip in found.flips],
    }


def _flip(flip: Flip) -> Json:
    towards = 1 if flip.p[1] > flip.p[0] else -1
    seen = [(name, move) for name, move in flip.moves.items() if abs(move) >= 0.005]
    return {
        "flip": flip,
        "turn": flip.pair.prompt.messages[-1],
        "earlier": len(flip.pair.prompt.messages) - 1,
        "pieces": differences(flip.pair.first, flip.pair.second),
        "moves": sorted(seen, key=lambda item: -item[1] * towards)[:MOVES],
    }


# --------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True, slots=True)
class Beside:
    """Two runs, their numbers in groups with a title, and the comparison of their labels."""

    runs: Runs
    numbers: list[tuple[str, list[Number]]]
    comparison: Comparison

    def as_json(self) -> Json:
        """All numbers of the page."""
        a, b = self.runs
        return {
            "a": str(a.path),
            "b": str(b.path),
            "made_from": dict(told(self.runs)),
            "options": [{"key": k, "a": x, "b": y} for k, x, y in options(self.runs)],
            "numbers": [_as_json(title, row) for title, rows in self.numbers for row in rows],
            "labels": self.comparison.result() if self.comparison.both else None,
        }


def _as_json(title: str, row: Number) -> Json:
    values = dict(zip("ab", (x and x.as_dict() for x in row.values), strict=True))
    return {"of": title, "what": row.what, **values, "change": row.change and row.change.as_dict()}


def beside(a: Run, b: Run) -> Beside:
    """Both runs compared. DataError where one has nothing yet, or the two nothing in common."""
    for run in (a, b):
        _require_results(run)
    found = Beside((a, b), numbers((a, b)), compared((a, b)))
    measured = (row for title, rows in found.numbers if title != LABELS for row in rows)
    if not found.comparison.both and not any(all(row.values) for row in measured):
        raise DataError(
            f"{a.path} and {b.path} have nothing in common: no pair that is labelled in both, and "
            "no number of a model that both have. Label the same pairs in both, such as with the "
            "same --pairs FILE or --prompts FILE, or evaluate both"
        )
    return found


def _require_results(run: Run) -> None:
    if len(run.store.table("preferences")) or run.policies or run.training("reward")[1]:
        return
    where = shlex.quote(str(run.path))
    raise DataError(f"{run.path} has no labels yet: run `rlaif label {where}` first")
