"""A constitution learnt from labelled pairs: which principles explain the labels, and how much.

Inverse constitutional AI (Findeis et al. 2024, arXiv 2406.06560) asks which principles of many
reconstruct given labels; C3AI (Kyrychenko et al. 2025, arXiv 2502.15861) picks those that a model
follows. Here each candidate is a column of verdicts, and a label is explained by

    P(first is better) = σ(s · Σ w (p − ½)),   w ≥ 0, Σ w = 1, s > 0,

which leans to the side to which the weighted mean of probabilities leans: the weights mean what
they mean in `aggregate: weighted`. There is no intercept, as exchanging the responses must exchange
the label. Which columns get a weight is decided by how often a sparse fit gives them one when the
prompts are drawn again (Bach 2008, arXiv 0804.1302; Meinshausen & Bühlmann 2010). Pure functions
over arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.constitution import Principle
from rlaif.errors import DataError
from rlaif.evaluation.settings import LearnSettings
from rlaif.judges.ensembles import over_principles
from rlaif.records import content_id
from rlaif.statistics.intervals import (
    Floats,
    Interval,
    bootstrap,
    bootstrap_of_many,
    share,
    standard_error,
)
from rlaif.statistics.logistic import fit_nonnegative

FEWEST_PROMPTS = 20
RIDGE = 0.1  # keeps the last fit finite where the labels are separated; it weighs a tenth of a pair
PENALTIES = np.logspace(0, -2, 15)  # of the least penalty that leaves every column out
FOLDS = 5


@dataclass(frozen=True)
class Table:
    """Labelled pairs: `p` (N, K) is P(first is better) under each of K candidates, NaN where the
    judge could not tell; `labels` (N,) P(first is better), never ½; `prompts` the prompts' ids."""

    candidates: tuple[str, ...]
    p: Floats
    labels: Floats
    prompts: tuple[str, ...]

    def rows(self, which: NDArray[np.bool_]) -> Table:
        """Some of the pairs."""
        kept = np.flatnonzero(which).tolist()
        prompts = tuple(self.prompts[i] for i in kept)
        return Table(self.candidates, self.p[kept], self.labels[kept], prompts)

    @property
    def lean(self) -> Floats:
        """p − ½, 0 where the judge could not tell."""
        return np.where(np.isfinite(self.p), self.p - 0.5, 0.0)

    def hits(self, weights: Floats) -> Floats:
        """Whether the weighted mean of what is known of each pair leans to the label's side, (N,);
        ½ where it leans to none."""
        return self._hits(self.lean @ weights)

    def agreement(self, weights: Floats) -> Interval:
        """The share of such pairs, with an interval over prompts."""
        return share(self.hits(weights), self.prompts)

    def agreement_of(self, principles: Sequence[Principle]) -> Interval:
        """The same for a constitution of some candidates, by its own weights and tiers."""
        weights = {p.id: p.weight for p in principles}
        tiers = {p.id: p.tier for p in principles}
        leans = []
        for row in self.p.tolist():
            said = dict(zip(self.candidates, row, strict=True))
            known = {name: said[name] for name in weights if math.isfinite(said[name])}
            p = over_principles(known, "weighted", weights, tiers)
            leans.append(0.0 if p is None else p - 0.5)
        return share(self._hits(np.array(leans)), self.prompts)

    def _hits(self, lean: Floats) -> Floats:
        lean = np.round(lean, 12)  # equal opinions on both sides cancel
        return np.where(lean == 0, 0.5, (lean > 0) == (self.labels > 0.5))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was found of one candidate.

    `stands_for` are the candidates that say the same, `same_as` the one that stands for this one.
    `selected` is the share of resamples in which the sparse fit gave it a weight; `weight`, with an
    interval over resamples, its part of the weighted mean, 0 where it was not kept. `train` and
    `held_out` are its agreement alone.
    """

    id: str
    stands_for: tuple[str, ...]
    same_as: str | None
    selected: float
    weight: Interval
    train: Interval
    held_out: Interval


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learnt. `rows` are the candidates, those of most weight first.

    `train` and `held_out` are the agreement of what is kept, None where nothing is; `best` is the
    candidate that agrees best on the training pairs, `gain` the held-out difference to it. `sets`
    are the held-out agreements of the constitutions that candidates came from. `scale` is s.
    """

    rows: tuple[Candidate, ...]
    scale: float
    train: Interval | None
    held_out: Interval | None
    best: str
    gain: Interval | None
    sets: Mapping[str, Interval]
    train_pairs: int
    train_prompts: int
    held_out_pairs: int
    held_out_prompts: int

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """Those that have a weight."""
        return tuple(row for row in self.rows if row.weight.value > 0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_held_out(prompts: Sequence[str], part: float, seed: int) -> NDArray[np.bool_]:
    """Which pairs have a prompt that is held out, (N,): at least one prompt is, and one is not."""
    names = sorted(set(prompts), key=lambda name: content_id("held out", seed, name))
    out = set(names[: min(max(round(part * len(names)), 1), len(names) - 1)])
    return np.array([name in out for name in prompts], dtype=bool)


def learn(
    table: Table, settings: LearnSettings, sets: Mapping[str, Sequence[Principle]] | None = None
) -> Learned:
    """Which candidates explain the labels of a table, and how much.

    `sets` are constitutions to measure beside, of principles that are all candidates. DataError
    for fewer than two candidates or FEWEST_PROMPTS prompts, or a ½ as label.
    """
    _require(table)
    out = is_held_out(table.prompts, settings.held_out, settings.seed)
    train, rest = table.rows(~out), table.rows(out)
    stands = merged(train, settings.same)
    heads = sorted(set(stands.tolist()))
    x = train.lean[:, heads]
    selected = np.zeros(len(stands))
    selected[heads] = selection(x, train.labels, train.prompts, settings)
    kept = np.flatnonzero(selected >= settings.stability)
    weights, scale = _weighed(train, kept, settings)
    found = np.array([w.value for w in weights])
    alone = np.eye(len(stands))
    names = table.candidates
    rows = [
        Candidate(
            id=name,
            stands_for=tuple(names[j] for j in np.flatnonzero(stands == k) if j != k),
            same_as=None if stands[k] == k else names[stands[k]],
            selected=float(selected[k]),
            weight=weights[k],
            train=train.agreement(alone[k]),
            held_out=rest.agreement(alone[k]),
        )
        for k, name in enumerate(names)
    ]
    best = max(range(len(rows)), key=lambda k: rows[k].train.value)
    gain = None
    if kept.size:
        gain = bootstrap(rest.hits(found) - rest.hits(alone[best]), rest.prompts)
    rows.sort(key=lambda row: (-row.weight.value, -row.selected, -row.train.value))
    return Learned(
        rows=tuple(rows),
        scale=scale,
        train=train.agreement(found) if kept.size else None,
        held_out=rest.agreement(found) if kept.size else None,
        best=names[best],
        gain=gain,
        sets={name: rest.agreement_of(given) for name, given in (sets or {}).items()},
        train_pairs=len(train.labels),
        train_prompts=len(set(train.prompts)),
        held_out_pairs=len(rest.labels),
        held_out_prompts=len(set(rest.prompts)),
    )


def _require(table: Table) -> None:
    if len(table.candidates) < 2:
        raise DataError(
            f"{len(table.candidates)} candidate: there is nothing to choose from. Give more "
            "constitutions (--candidates), or have some proposed (--propose N)"
        )
    if not np.isfinite(table.labels).all() or (table.labels == 0.5).any():
        raise DataError("each pair needs a label that prefers a side")
    prompts = len(set(table.prompts))
    if prompts < FEWEST_PROMPTS:
        raise DataError(
            f"labelled pairs of {prompts} prompts, and at least {FEWEST_PROMPTS} are needed: a "
            "constitution learnt from fewer would say more of these prompts than of the labels"
        )


def merged(table: Table, same: float) -> NDArray[np.int64]:
    """The number of the candidate that stands for each one, (K,).

    In the order of how well each explains the labels alone, a candidate joins the first before it
    whose column of p − ½ has a cosine of at least `same` with its own, else it stands for itself.
    """
    x = table.lean
    losses = [
        _mean_loss(x[:, [k]], table.labels, fit_alone(x[:, [k]], table.labels))
        for k in range(x.shape[1])
    ]
    length = np.sqrt((x**2).sum(axis=0))
    cosine = (x.T @ x) / np.maximum(np.outer(length, length), 1e-12)
    found, heads = np.arange(x.shape[1]), list[int]()
    for k in np.argsort(losses, kind="stable").tolist():
        head = next((h for h in heads if cosine[h, k] >= same), None)
        if head is None:
            heads.append(k)
        else:
            found[k] = head
    return found


def fit_alone(x: Floats, y: Floats, weights: Floats | None = None) -> Floats:
    """The fit without a penalty that leaves columns out, β ≥ 0 (K,)."""
    return fit_nonnegative(x, y, weights, ridge=RIDGE)


def _mean_loss(x: Floats, y: Floats, beta: Floats) -> float:
    return float(_losses(x, y, beta).mean())


def _losses(x: Floats, y: Floats, beta: Floats) -> Floats:
    z = x @ beta
    return np.asarray(np.logaddexp(0, z) - y * z)


def selection(x: Floats, y: Floats, prompts: Sequence[str], settings: LearnSettings) -> Floats:
    """The share of resamples of prompts in which the sparse fit gives each column a weight, (K,).

    The penalty is that of `penalty`; where it leaves every column out, all shares are 0.
    """
    l1 = penalty(x, y, prompts, settings)
    if l1 is None:
        return np.zeros(x.shape[1])
    index, k = _numbered(prompts)
    random = np.random.default_rng(settings.seed)
    times, beta = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _ in range(settings.bootstraps):
        drawn = np.bincount(random.integers(0, k, k), minlength=k)[index].astype(np.float64)
        beta = fit_nonnegative(x, y, drawn, l1=l1 * drawn.sum(), start=beta)
        times += beta > 1e-6
    return times / settings.bootstraps


def penalty(x: Floats, y: Floats, prompts: Sequence[str], settings: LearnSettings) -> float | None:
    """The penalty on Σβ, a pair, by cross-validation over prompts: the largest whose mean loss is
    within `slack` standard errors of the least. None where no column does better than saying ½."""
    top = float((x * (y - 0.5)[:, None]).mean(axis=0).max())
    if top <= 0:
        return None
    index, k = _numbered(prompts)
    fold = np.random.default_rng(settings.seed).permutation(k)[index] % FOLDS
    losses = np.zeros((len(PENALTIES), len(y)))
    for f in range(FOLDS):
        inside, outside = fold != f, fold == f
        beta = np.zeros(x.shape[1])
        for i, part in enumerate(PENALTIES):
            l1 = top * part * inside.sum()
            beta = fit_nonnegative(x[inside], y[inside], l1=l1, start=beta)
            losses[i, outside] = _losses(x[outside], y[outside], beta)
    means = losses.mean(axis=1)
    best = int(means.argmin())
    near = means <= means[best] + settings.slack * standard_error(losses[best], prompts)
    chosen = int(np.flatnonzero(near)[0])
    return None if chosen == 0 else top * float(PENALTIES[chosen])


def _numbered(prompts: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    place = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
    return np.array([place[name] for name in prompts]), len(place)


def _weighed(
    table: Table, kept: NDArray[np.int64], settings: LearnSettings
) -> tuple[list[Interval], float]:
    """The weight of each candidate, with intervals over resamples of prompts, and the scale s."""
    none = [Interval(0.0, 0.0, 0.0, len(table.labels))] * len(table.candidates)
    if not kept.size:
        return none, 0.0
    x, y = table.lean[:, kept], table.labels

    def parts(times: Floats) -> Floats:
        beta = fit_alone(x, y, times)
        return beta / beta.sum() if beta.sum() > 0 else np.full(len(beta), np.nan)

    found = bootstrap_of_many(
        parts, len(y), table.prompts, resamples=settings.bootstraps, seed=settings.seed
    )
    for k, interval in zip(kept.tolist(), found, strict=True):
        none[k] = interval
    return none, float(fit_alone(x, y).sum())
