"""How far labels can be trusted: against what is known of the pairs, and by themselves.

Pure functions over arrays of P pairs, C principles and the two orders; no model, no file. Every
number comes with the number of items it rests on, and with a 95 % interval over whole prompts
(`rlaif.statistics.intervals`): pairs and questions of one prompt are not independent.

In most published files the better response stands first. A judge that always said "first" would
then be right throughout, and κ would have one single label to agree on: so κ is taken over pairs
that are each turned by a coin, which only their content decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import DataError
from rlaif.evaluation.labels import Cube, agreement, reliability_points, unseparated
from rlaif.evaluation.settings import LabelLimits
from rlaif.statistics.agreement import kappa_of_table
from rlaif.statistics.calibration import (
    expected_calibration_error,
    fit_temperature,
    log_losses,
    rescaled,
)
from rlaif.statistics.intervals import Interval, bootstrap, bootstrap_of, share, wilson
from rlaif.statistics.slots import leaning, slot_intervals

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Json = dict[str, Any]

# How long the better response is, as a multiple of the other: upper ends of the groups.
LENGTHS: tuple[tuple[str, float], ...] = (
    ("under half as long", 1 / 2),
    ("½ to ⅘ as long", 4 / 5),
    ("about as long", 5 / 4),
    ("1¼ to 2 times as long", 2.0),
    ("over twice as long", math.inf),
)


@dataclass(frozen=True)
class Labels:
    """What an audit looks at, by pair (P,). `p` is the aggregated P(first), NaN where there is
    none; `preferred` says which of them are no ties; `known` is P(first) as known otherwise, NaN
    where it is not; `lengths` (P, 2) are characters of the first and the second completion; `tied`
    marks pairs without a `known` of which it is known all the same that neither side is better.
    Where the labels are at a temperature, `raw` (P,) is `p` without it."""

    ids: Sequence[str]
    prompts: Sequence[str]
    statuses: Sequence[str | None]
    p: Floats
    known: Floats
    lengths: Floats
    cube: Cube
    tied: Mask | None = None
    raw: Floats | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        sizes = {len(x) for x in (self.ids, self.prompts, self.statuses, self.p, self.known)}
        if sizes != {len(self.lengths)} or len(self.cube.p) not in (0, len(self.p)):
            raise DataError(f"an audit needs one row a pair, got {sorted(sizes)} rows")

    @cached_property
    def preferred(self) -> Mask:
        status = np.array([s == "preferred" for s in self.statuses], dtype=bool)
        return np.asarray(status & (self.p != 0.5), dtype=bool)

    @cached_property
    def even(self) -> Mask:
        """Pairs of which it is known that neither side is better."""
        equal = self.known == 0.5
        return np.asarray(equal if self.tied is None else equal | self.tied, dtype=bool)

    @cached_property
    def certain(self) -> Mask:
        """Pairs of which it is known which side is better."""
        return np.asarray(np.isfinite(self.known) & (self.known != 0.5), dtype=bool)

    def clusters(self, where: Mask) -> list[str]:
        """The prompts of some pairs: pairs of one prompt are not independent."""
        return [self.prompts[i] for i in np.flatnonzero(where).tolist()]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A temperature that was fitted on other labels: of which, what it is, and in what, beside
    the pairs, those were made otherwise (the judge, say)."""

    name: str
    temperature: float
    differs: tuple[str, ...] = ()


def audit(labels: Labels, elsewhere: Elsewhere | None = None) -> Json:
    """All that can be said about labels; None where there is nothing to say it of. `elsewhere`: a
    temperature of other labels, of which to tell whether it helps these."""
    return {
        "pairs": len(labels.ids),
        "prompts": len(set(labels.prompts)),
        "status": dict(Counter(s or "unlabelled" for s in labels.statuses)),
        "known": _against_known(labels, elsewhere),
        "judge": _judge(labels),
        "length": _length(labels),
    }


# ---------------------------------------------------------------------------- against what is known


def _against_known(labels: Labels, elsewhere: Elsewhere | None) -> Json | None:
    sure = labels.certain
    if not (sure | labels.even).any():
        return None
    both = sure & labels.preferred
    every = np.where(both, _right(labels), 0.5)[sure]
    out: Json = {
        "pairs": int(sure.sum()),
        "ties": int(labels.even.sum()),
        "accuracy": None,
        "unseparated": _unseparated(labels),
        # Over all pairs: one with a tie or an abstention gets half a point, as a guess would.
        "accuracy_all": share(every, labels.clusters(sure)).as_dict() if sure.any() else None,
        "by_principle": {
            name: _dict(agreement(labels.cube.debiased[:, c], labels.known, labels.prompts))
            for c, name in enumerate(labels.cube.principles)
        },
        "by_length": _by_length(labels, both),
    }
    if not both.any():
        return out
    sides, prompts = (labels.known[both] > 0.5).astype(np.float64), labels.clusters(both)
    return out | {
        "accuracy": share(_right(labels)[both], prompts).as_dict(),
        "kappa": _kappa(labels.p[both], sides, _turned(labels.ids)[both], prompts),
        **_calibration(labels, elsewhere),
    }


def _unseparated(labels: Labels) -> Json | None:
    """Labels that prefer one of two sides that the truth does not separate: noise to train on,
    which accuracy and κ leave out. `count` of the `n` preferred pairs whose truth is known."""
    p = np.where(labels.preferred, labels.p, np.nan)
    found = unseparated(p, labels.known, labels.even, labels.prompts)
    if found is None:
        return None
    return {**found.as_dict(), "count": int((labels.preferred & labels.even).sum())}


def _calibration(labels: Labels, elsewhere: Elsewhere | None) -> Json:
    """Of the preferred pairs of which P(first) is known, a tie's ½ too: that is their outcome.

    Temperatures are of the labels without one, whatever they are at: which pairs are preferred
    does not depend on it, so that labels at the temperature that an audit fits are fitted the same
    again.
    """
    here = labels.preferred & np.isfinite(labels.known)
    p, y, prompts = labels.p[here], labels.known[here], labels.clusters(here)
    raw = p if labels.raw is None else labels.raw[here]
    points, own = (
        reliability_points(p, y, prompts),
        _crossed(raw, y, _coin(labels.prompts, 0)[here]),
    )
    out: Json = {
        **_scores(p, y, prompts),
        "temperature": {
            **_temperature(raw, y, prompts),
            "applied": labels.temperature,
            "raw": None if labels.temperature is None else _scores(raw, y, prompts),
            **(_scores(own, y, prompts) if own is not None else dict.fromkeys(_SCORES)),
        },
        "reliability": [{"confidence": stated, **true.as_dict()} for stated, true in points],
    }
    if elsewhere is not None:
        out["transfer"] = _transfer(elsewhere, raw, own, y, prompts)
    return out


_SCORES = ("ece", "brier", "log_loss")


def _scores(p: Floats, y: Floats, prompts: Sequence[str]) -> Json:
    """How calibrated forecasts are; no log-loss where one of exactly 0 or 1 is wrong."""
    losses = log_losses(p, y)
    return {
        "ece": _ece(p, y, prompts),
        "brier": bootstrap((p - y) ** 2, prompts).as_dict(),
        "log_loss": bootstrap(losses, prompts).as_dict() if np.isfinite(losses).all() else None,
    }


def _transfer(
    elsewhere: Elsewhere, raw: Floats, own: Floats | None, y: Floats, prompts: Sequence[str]
) -> Json:
    """Whether a temperature that other labels were fitted with helps these.

    `change` is what a temperature changes of the mean log-loss, by pair and so with the interval of
    the difference; a forecast of 0 or 1 is changed by none. It helps, or harms, where that interval
    lies below, or above, 0. `own` is the labels' own, each half at the other half's.
    """
    other = rescaled(raw, 1 / elsewhere.temperature)

    def scored(p: Floats | None) -> Json | None:
        if p is None:
            return None
        with np.errstate(invalid="ignore"):
            change = log_losses(p, y) - log_losses(raw, y)
        change[(raw == 0) | (raw == 1)] = 0.0
        return {**_scores(p, y, prompts), "change": bootstrap(change, prompts).as_dict()}

    found = scored(other)
    assert found is not None
    low, high = found["change"]["low"], found["change"]["high"]
    return {
        "from": elsewhere.name,
        "temperature": elsewhere.temperature,
        "differs": list(elsewhere.differs),
        "verdict": "helps" if high < 0 else "harms" if low > 0 else "cannot be told",
        "raw": _scores(raw, y, prompts),
        "own": scored(own),
        "other": found,
    }


def _right(labels: Labels) -> Floats:
    return np.asarray((labels.p > 0.5) == (labels.known > 0.5), dtype=np.float64)


def _coin(ids: Sequence[str], digit: int) -> Mask:
    """A coin for each id, out of one of its hexadecimal digits."""
    return np.array([int(i.removeprefix("~")[digit], 16) & 1 for i in ids], dtype=bool)


def _turned(ids: Sequence[str]) -> Mask:
    """Which pairs to turn: a pair and its mirror end the same way round."""
    mirrored = np.array([i.startswith("~") for i in ids], dtype=bool)
    return np.asarray(_coin(ids, 0) ^ mirrored, dtype=bool)


def _kappa(p: Floats, y: Floats, turned: Mask, prompts: Sequence[str]) -> Json:
    judge, truth = (p > 0.5) ^ turned, (y > 0.5) ^ turned
    cell = 2 * judge.astype(int) + truth

    def kappa(weights: Floats) -> float:
        return kappa_of_table(np.bincount(cell, weights, minlength=4).reshape(2, 2))

    return bootstrap_of(kappa, len(p), prompts).as_dict()


def _ece(p: Floats, y: Floats, prompts: Sequence[str]) -> Json:
    def ece(weights: Floats) -> float:
        return expected_calibration_error(p, y, weights=weights)

    return bootstrap_of(ece, len(p), prompts).as_dict()


def _temperature(p: Floats, y: Floats, prompts: Sequence[str]) -> Json:
    """The best temperature."""
    found = asdict(fit_temperature(p, y, prompts))
    return found | {"slope": found["slope"] if math.isfinite(found["slope"]) else None}


def _crossed(p: Floats, y: Floats, half: Mask) -> Floats | None:
    """Each half at the temperature that fits the other, so that nothing is measured on what it was
    fitted to; None where a half has none."""
    if half.all() or not half.any():
        return None
    after = np.empty_like(p)
    for side in (half, ~half):
        fitted = fit_temperature(p[~side], y[~side])
        if fitted.value is None:
            return None
        after[side] = fitted(p[side])
    return after


def _by_length(labels: Labels, both: Mask) -> list[Json]:
    """Accuracy by how long the known better response is: a judge that likes length is right where
    the better one is longer, and wrong where it is shorter."""
    better, other = np.where(
        (labels.known > 0.5)[:, None], labels.lengths, labels.lengths[:, ::-1]
    ).T
    ratio, right, low = better / np.maximum(other, 1), _right(labels), 0.0
    out: list[Json] = []
    for name, high in LENGTHS:
        here = both & (ratio >= low) & (ratio < high)
        found = share(right[here], labels.clusters(here)) if here.any() else None
        out.append(
            {
                "name": name,
                "below": high if math.isfinite(high) else None,
                **(_dict(found) or {"n": 0}),
            }
        )
        low = high
    return out


# ---------------------------------------------------------------------------- by themselves


def _judge(labels: Labels) -> Json | None:
    cube = labels.cube
    asked = int(cube.asked.sum())
    if not asked:
        return None
    reasons = sorted(set(cube.reason[cube.abstained].tolist()))
    asked_of = _names(labels, np.nonzero(cube.asked)[0])

    def part(what: Mask) -> Json:
        """The share of the verdicts asked for."""
        return share(what[cube.asked].astype(np.float64), asked_of).as_dict()

    pairs, *_ = np.nonzero(np.isfinite(cube.mass))
    masses = cube.mass[np.isfinite(cube.mass)]
    return {
        "verdicts": asked,
        "abstained": part(cube.abstained),
        "abstained_by_reason": {name: part(cube.reason == name) for name in reasons},
        "label_mass": bootstrap(masses, _names(labels, pairs), resamples=1000).as_dict()
        if masses.size
        else None,
        "low_mass_decile": float(np.quantile(masses, 0.1)) if masses.size else None,
        **_slots(labels),
    }


def _names(labels: Labels, pairs: NDArray[np.int64]) -> list[str]:
    return [labels.prompts[i] for i in pairs.tolist()]


def _slots(labels: Labels) -> Json:
    """Position bias over the questions (a pair under a principle) judged in both orders on which
    the judge leans to a side; how many are judged in both, and how many it leans on."""
    p = labels.cube.p
    pairs, principles = np.nonzero(np.isfinite(p).all(axis=2))
    both = p[pairs, principles]
    names = ("swap_consistency", "same_slot_rate", "first_slot_share", "says_first")
    clear = leaning(*both.T) if len(both) else np.zeros(0, dtype=bool)
    out: Json = {"questions": len(both), "leaning": None, **dict.fromkeys(names)}
    if len(both):
        out["leaning"] = share(clear.astype(np.float64), _names(labels, pairs)).as_dict()
    if clear.any():
        found = slot_intervals(both[clear, 0], both[clear, 1], _names(labels, pairs[clear]))
        out |= {name: _dict(found.get(name)) for name in names}
    return out


def _length(labels: Labels) -> Json:
    """What length has to do with the labels, and with what is known, for comparison."""
    judged, sure = np.isfinite(labels.p), labels.certain
    return {
        "correlation": _correlation(labels, labels.p, judged),
        "longer": _longer(labels, labels.p, labels.preferred),
        "known_correlation": _correlation(labels, labels.known, sure),
        "known_longer": _longer(labels, labels.known, sure),
    }


def _correlation(labels: Labels, p: Floats, where: Mask) -> Json | None:
    """Pearson's r of P(first) and the log of how much longer the first is.

    Over the pairs and their mirrors, so that it does not depend on which completion stands first:
    Σxy / √(Σx² Σy²) with x = ln((l₁ + 1)/(l₂ + 1)), y = p − ½.
    """
    x = np.log1p(labels.lengths[where, 0]) - np.log1p(labels.lengths[where, 1])
    y = p[where] - 0.5

    def r(weights: Floats) -> float:
        scale = (weights * x * x).sum() * (weights * y * y).sum()
        return float((weights * x * y).sum() / math.sqrt(scale)) if scale > 0 else math.nan

    if len(x) < 2 or not math.isfinite(r(np.ones(len(x)))):
        return None
    return bootstrap_of(r, len(x), labels.clusters(where)).as_dict()


def _longer(labels: Labels, p: Floats, where: Mask) -> Json | None:
    """How often the longer of two completions of unlike length is the better one."""
    unlike = where & (labels.lengths[:, 0] != labels.lengths[:, 1])
    if not unlike.any():
        return None
    longer = (p > 0.5) == (labels.lengths[:, 0] > labels.lengths[:, 1])
    return share(longer[unlike].astype(np.float64), labels.clusters(unlike)).as_dict()


def _dict(found: Interval | None) -> Json | None:
    return None if found is None else found.as_dict()


# ---------------------------------------------------------------------------- fit to train on


def failed(quality: Mapping[str, Any], limits: LabelLimits) -> dict[str, str]:
    """The limits that labels pass, each with what was found; `quality` is `label_quality`'s.

    Of consistency and accuracy it is the upper end of the 95 % interval over prompts that must
    reach the limit: few pairs are no proof of a bad judge. A limit on consistency of ½ or more also
    refuses a judge that cannot be told from a coin, which agrees with itself half of the time: its
    interval must lie above ½, unless there are too few prompts for any judge's to do so. What is
    not known passes no limit, but for flip rates (`kinds` of `rlaif.stages.testing`), of which the
    lower end must not pass the limit: whoever sets one has them measured.
    """
    faults = {}
    max_abstained, min_accuracy = limits.max_abstained, limits.min_accuracy
    asked, abstained = quality.get("verdicts") or 0, quality.get("abstained") or 0
    if max_abstained is not None and asked and abstained / asked > max_abstained:
        faults["max_abstained"] = (
            f"the judge abstained in {abstained:,} of {asked:,} verdicts "
            f"({abstained / asked:.1%}; the limit is {max_abstained:.1%})"
        )
    swap, limit = _swap(quality), limits.min_swap_consistency
    if swap is not None and limit is not None:
        found, prompts = swap
        what = "both orders of a question prefer the same response on"
        best = wilson(prompts, prompts)  # what a judge that always agrees with itself would have
        if found.high < limit:
            faults["min_swap_consistency"] = _told(found, what, limit)
        elif limit >= 0.5 and found.low <= 0.5 < best.low:
            faults["min_swap_consistency"] = (
                f"{_told(found, what, limit)}: that cannot be told from a coin, whose verdicts "
                "agree half of the time; more pairs would tell it from a weak judge"
            )
    known = quality.get("gold_agreement")
    if known is not None and min_accuracy is not None and known["high"] < min_accuracy:
        faults["min_accuracy"] = _told(Interval(**known), "what is known agrees on", min_accuracy)
    flips = _flips(quality.get("kinds"), limits.max_flip_rate)
    return {**faults, "max_flip_rate": flips} if flips else faults


def _flips(kinds: Mapping[str, Any] | None, limit: float | None) -> str | None:
    """The kinds of change that turn round more of a judge's clear answers than the limit."""
    if limit is None:
        return None
    if kinds is None:
        return (
            "it is not known how the wording matters to this judge under these principles: run "
            "`rlaif constitution test NAME --invariance --out RUN`"
        )
    shares = {kind: row["flipped"] for kind, row in kinds.items() if row["flipped"]}
    found = [
        _told(Interval(**flipped), f"another {kind} turns round", limit)
        for kind, flipped in shares.items()
        if flipped["low"] > limit
    ]
    return "; ".join(found) or None


def _swap(quality: Mapping[str, Any]) -> tuple[Interval, int] | None:
    """The share of questions whose orders agree, and of how many prompts they are.

    Labels of an earlier version have no interval: their questions count as independent.
    """
    value, n = quality.get("swap_consistency"), quality.get("questions") or 0
    if value is None or not n:
        return None
    if (found := quality.get("swap_interval")) is not None:
        return Interval(**found), quality["swap_prompts"]
    return wilson(value * n, n), n


def _told(found: Interval, what: str, limit: float) -> str:
    return (
        f"{what} {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] of {found.n:,} "
        f"(the limit is {limit:.1%})"
    )
