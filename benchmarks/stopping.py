"""How many verdicts a label needs: stopping early over principles and orders, on stored runs.

    rlaif sample --config demo --limit 2400 --constitution sixteen --out runs/sixteen
    rlaif label runs/sixteen
    python benchmarks/stopping.py runs/sixteen

Asks no model. For each stated error and way of looking: the rule is fitted to some pairs of the run
that were judged in full, and the others are stopped by it (`rlaif/evaluation/stopping.py`); means
over seeds, whole prompts on one side. Prints verdicts saved, labels that come out otherwise, the
points of agreement that are lost (with what is known, else with the sides of labels made in full; a
tie is half right), and tokens: where a pair's prompt is kept between looks (its common beginning is
computed once an order), and where each look computes it anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlaif.evaluation.audit import Labels
from rlaif.evaluation.labels import Floats
from rlaif.evaluation.stopping import StoppingRule, fitted, ranking, sides, stopped
from rlaif.judges.base import expand
from rlaif.judges.load import make_judge
from rlaif.report.data import Run as StoredRun
from rlaif.stages.audit import stored_labels
from rlaif.stages.running import load_policy
from rlaif.stages.stored import Stored

Json = dict[str, Any]
ERRORS = (0.005, 0.01, 0.02, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--judged", type=float, default=0.6, help="share of pairs judged in full")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--errors", nargs="+", type=float, default=ERRORS)
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    args = parser.parse_args()
    stored = Stored(args.run)
    labels, margin = made_in_full(args.run), stored.config.preferences.min_margin
    columns = labels.cube.p.reshape(len(labels.p), -1)  # principle 1 in both orders, principle 2 …
    k, sizes = columns.shape[1], tokens(stored)
    print(
        f"{np.isfinite(labels.p).sum():,} labels of {k} verdicts; a pair in one order is "
        f"{sizes[0]:.0f} tokens, a question behind it {sizes[1]:.0f}"
    )
    rows = []
    for how in ("every verdict", "few looks", "one order first"):
        for error in args.errors:
            split = partial(one, labels, columns, margin, error, how, args.judged)
            found = [split(seed) for seed in range(args.seeds)]
            rows.append(mean_of([row | tokens_of(row, k, sizes) for row in found]))
    show(rows)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2))


def made_in_full(run: Path) -> Labels:
    """A run's labels. Where no principle had anything to say, which is a tie, P is ½."""
    labels = stored_labels(StoredRun(run))
    tied = np.array([status == "tie" for status in labels.statuses]) & ~np.isfinite(labels.p)
    return replace(labels, p=np.where(tied, 0.5, labels.p))


def tokens(stored: Stored, most: int = 32) -> tuple[float, float]:
    """Tokens that all questions about a pair in one order share, and of a question: means."""
    (judged,) = stored.judges
    judge = make_judge(load_policy(judged.section, None), judged.section)
    encoder = judge.engine.encoder
    shared, own = [], []
    for case, _ in zip(stored.cases(verdicts=False), range(most), strict=False):
        asks = expand([case.pair], stored.principles, ["first_second"])
        paths = [list(encoder.prompt(judge.render(ask))) for ask in asks]
        same = next(i for i, ids in enumerate(zip(*paths, strict=False)) if len({*ids}) > 1)
        shared.append(same)
        own += [len(path) - same for path in paths]
    return float(np.mean(shared)), float(np.mean(own))


def one(
    labels: Labels, columns: Floats, margin: float, error: float, how: str, judged: float, seed: int
) -> Json:
    """One split by prompts into pairs judged in full, halved for weights and λ, and the others."""
    rng = np.random.default_rng(seed)
    prompts = sorted({*labels.prompts})
    drawn = dict(zip(prompts, rng.random(len(prompts)).tolist(), strict=True))
    lot = np.array([drawn[name] for name in labels.prompts])
    turn = rng.random(len(lot)) < 0.5  # no side of a pair is the better one by where it stands
    n, k = columns.shape
    mirrored = 1 - columns.reshape(n, -1, 2)[:, :, ::-1].reshape(n, k)
    x, p = np.where(turn[:, None], mirrored, columns), np.where(turn, 1 - labels.p, labels.p)
    truth = np.where(turn, 1 - labels.known, labels.known)
    if not np.isfinite(truth).any():  # nothing is known but the labels made in full
        truth = np.where(sides(p, margin) == 0, np.nan, p)
    known = np.isfinite(p)
    full, rest = known & (lot < judged), known & (lot >= judged)
    rule = fitted(
        x[full],
        p[full],
        (lot < judged / 2)[full],
        margin=margin,
        error=error,
        looks=None if how == "every verdict" else [k // 8, k // 4, k // 2],
        order=by_orders(x[full], p[full]) if how == "one order first" else None,
    )
    said, asked = stopped(rule, x[rest], p[rest])
    whole, right = sides(p[rest], margin), sides(np.nan_to_num(truth[rest], nan=0.5), 0)
    told = np.isfinite(truth[rest]) & (right != 0)

    def agrees(given: Any) -> float:
        """Half a point for a tie."""
        return float(np.where(given == 0, 0.5, given == right)[told].mean())

    return {
        "how": how,
        "error": error,
        "verdicts": float(asked.mean()),
        "saved": k / float(asked.mean()),
        "otherwise": float((said != whole).mean()),
        "lost": agrees(whole) - agrees(said),
        "rule": rule,
        "asked": asked,
    }


def tokens_of(row: Json, k: int, sizes: tuple[float, float]) -> Json:
    """How many times fewer tokens are computed than for all pairs in full, packed."""
    kept, anew = costs(row["rule"], sizes)
    at = np.searchsorted(row["rule"].looks, row["asked"])
    whole = 2 * sizes[0] + k * sizes[1]  # both beginnings, and every question
    return {"kept": whole / float(kept[at].mean()), "anew": whole / float(anew[at].mean())}


def by_orders(x: Floats, p: Floats) -> list[int]:
    """All principles in one order, by information, then in the other."""
    first = np.where(np.isfinite(x), x, 0.5)[:, ::2]
    ranked = [2 * c for c in ranking(first, p)]
    return ranked + [column + 1 for column in ranked]


def costs(rule: StoppingRule, sizes: tuple[float, float]) -> tuple[Floats, Floats]:
    """Tokens of a pair up to each look, its beginnings kept, and computed anew at each look."""
    kept, anew, total = [], [], 0.0
    before = 0
    for look in rule.looks:
        total += len({c % 2 for c in rule.order[before:look]}) * sizes[0]
        total += (look - before) * sizes[1]
        anew.append(total)
        kept.append(len({c % 2 for c in rule.order[:look]}) * sizes[0] + look * sizes[1])
        before = look
    return np.array(kept), np.array(anew)


def mean_of(rows: Sequence[Json]) -> Json:
    """Means over seeds, with the least and greatest of what is lost."""
    found: Json = {
        key: value if isinstance(value, str) else float(np.mean([row[key] for row in rows]))
        for key, value in rows[0].items()
        if key not in ("rule", "asked")
    }
    lost = [row["lost"] for row in rows]
    return {**found, "lost_least": min(lost), "lost_most": max(lost)}


def show(rows: Sequence[Json]) -> None:
    table = Table(caption="means over seeds; of lost points of agreement the range, too")
    for head in ("asked", "error", "verdicts", "saved", "otherwise", "lost", "kept", "anew"):
        table.add_column(head, justify="left" if head == "asked" else "right")
    for row in rows:
        ends = f"[{100 * row['lost_least']:z.1f}, {100 * row['lost_most']:z.1f}]"
        table.add_row(
            row["how"],
            f"{row['error']:.1%}",
            f"{row['verdicts']:.1f}",
            f"{row['saved']:.1f}×",
            f"{row['otherwise']:.1%}",
            f"{100 * row['lost']:z.1f} {ends}",
            f"{row['kept']:.2f}×",
            f"{row['anew']:.2f}×",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
