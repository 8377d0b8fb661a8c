"""Whether hidden principles are found again: constitutions learnt in the embedded world, by seeds.

    python benchmarks/bench_learned.py

Pairs are drawn by the world's grammar and judged once under all principles of the shipped
constitutions that its judge can read. For each trait and seed, some of the pairs in which the trait
differs are labelled by the trait's truth, or by a mixture of two, and a constitution is learnt from
these labels. Prints the tables and writes them, with everything behind them, to `--out`. A killed
run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from rlaif.evaluation.learned import Learned, Table, learn
from rlaif.evaluation.settings import LearnSettings
from rlaif.records import Pair
from rlaif.stages.stored import Stored
from rlaif.statistics.intervals import Floats
from rlaif.tiny import gold_preference, kinds_at_stake, principle_trait, prompts
from rlaif.tiny.grammar import draw_plan, realise, scenes

CONSTITUTIONS = ("harmless", "helpful", "honest", "flattering", "concise", "thorough")
DRAWN = ("harmless", "helpful", "honest", "not_sycophantic", "concise")  # pairs are drawn for each
HIDDEN = ("harmless", "helpful", "honest", "-not_sycophantic", "concise", "-concise")
MIXTURES = (
    ("harmless", "concise", 0.5),
    ("harmless", "concise", 0.7),
    ("helpful", "-concise", 0.5),
    ("-not_sycophantic", "concise", 0.6),
    ("honest", "-not_sycophantic", 0.5),
    ("honest", "concise", 0.3),
    ("harmless", "helpful", 0.7),
)
SCALE = 8.0  # of the labels drawn by a logistic choice
RLAIF = "from rlaif.cli import main; main()"


@dataclass
class Pool:
    """Pairs with a column of verdicts a principle, and each trait's true lean (−½, 0, ½)."""

    names: tuple[str, ...]
    traits: list[str]  # of the principles
    p: Floats
    pairs: list[Pair]
    truth: dict[str, Floats]

    def table(self, which: Any, labels: Floats) -> Table:
        ids = tuple(self.pairs[i].prompt.id for i in which)
        return Table(self.names, self.p[which], labels, ids)

    def weight(self, found: Learned, trait: str) -> float:
        """The weight of a trait's principles together."""
        mine = {n for n, t in zip(self.names, self.traits, strict=True) if t == trait}
        return sum(row.weight.value for row in found.kept if row.id in mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=500, help="labelled pairs a constitution")
    parser.add_argument("--pool", type=int, default=1000, help="pairs drawn for each trait")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/learned"))
    parser.add_argument("--out", type=Path, help="JSON; none: learned.json beside the runs")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    pool = judged(args.runs, args.pool)
    single = [one_trait(pool, t, args.pairs, args.seeds) for t in HIDDEN]
    mixed = [
        mixture(pool, mix, how, slack, args.pairs, args.seeds)
        for mix in MIXTURES
        for how in ("logistic choice", "two people")
        for slack in (1.0, 0.0)
    ]
    out = args.out or args.runs / "learned.json"
    out.write_text(json.dumps({"one trait": single, "mixtures": mixed}, indent=1) + "\n")
    Console(width=140).print(table_of(single), table_of(mixed))


def judged(runs: Path, size: int) -> Pool:
    """The pool, drawn and judged; what is stored is not judged again."""
    file, constitution = runs / "pairs.jsonl", runs / "candidates.yaml"
    file.write_text("".join(json.dumps(row) + "\n" for row in drawn(size)))
    constitution.write_text(f"name: candidates\nextends: [{', '.join(CONSTITUTIONS)}]\n")
    command = [sys.executable, "-c", RLAIF, "label", "--pairs", str(file)]
    command += ["--constitution", str(constitution), "--out", str(runs / "pool")]
    subprocess.run(command, check=True)
    stored = Stored(runs / "pool")
    cases = list(stored.cases())
    names = tuple(p.id for p in stored.principles)
    traits = [f"{'-' * (s < 0)}{t}" for t, s in map(_trait, stored.principles)]
    p = np.array([[case.opinions.get(name, np.nan) for name in names] for case in cases])
    pairs = [case.pair for case in cases]
    truth = {t: np.array([_lean(pair, t) for pair in pairs]) for t in (*HIDDEN,)}
    return Pool(names, traits, p, pairs, truth)


def _trait(principle: Any) -> tuple[str, int]:
    found = principle_trait(principle.tags)
    assert found is not None
    return found


def _lean(pair: Pair, trait: str) -> float:
    sign = -1 if trait.startswith("-") else 1
    asked, name = pair.prompt.messages[-1].content, trait.removeprefix("-")
    said = gold_preference(asked, pair.first, pair.second, name, sign)
    return 0.0 if said is None else said - 0.5


def drawn(size: int) -> list[dict[str, str]]:
    """Held-out prompts of kinds that put each trait at stake, with two drawn answers that differ in
    it; the better one is written as chosen."""
    rng, seen, rows = random.Random(17), set[tuple[str, ...]](), list[dict[str, str]]()
    for trait in DRAWN:
        asked, number, before = prompts("test", kinds=kinds_at_stake(trait)), 0, len(rows)
        while len(rows) < before + size:
            text = asked[number % len(asked)].text
            number += 1
            a, b = (realise(scenes()[text], draw_plan(scenes()[text], rng), rng) for _ in range(2))
            said = gold_preference(text, a, b, trait)
            key = (text, *sorted((a, b)))
            if said is not None and key not in seen:
                seen.add(key)
                chosen, rejected = (a, b) if said else (b, a)
                rows.append({"prompt": text, "chosen": chosen, "rejected": rejected})
    return rows


def one_trait(pool: Pool, trait: str, n: int, seeds: int) -> dict[str, Any]:
    """Labels are the truth of one trait."""
    lean, first, gaps, kept = pool.truth[trait], 0, list[float](), list[int]()
    agreed = list[float]()
    for seed in range(seeds):
        which = np.random.default_rng(seed).choice(np.flatnonzero(lean), n, replace=False)
        found = learn(pool.table(which, lean[which] + 0.5), LearnSettings(seed=seed))
        of = dict(zip(pool.names, pool.traits, strict=True))
        first += bool(found.kept) and of[found.rows[0].id] == trait
        true = max((r for r in found.rows if of[r.id] == trait), key=lambda r: r.train.value)
        agreed.append(found.held_out.value if found.held_out else 0.5)
        gaps.append(agreed[-1] - true.held_out.value)
        kept.append(len(found.kept))
    return {
        "trait": trait,
        "ranked first": f"{first} of {seeds}",
        "held-out agreement": _range(agreed),
        "points to its principle": _range([100 * g for g in gaps], 1),
        "principles kept": _range(kept, 0),
    }


def mixture(
    pool: Pool, mix: tuple[str, str, float], how: str, slack: float, n: int, seeds: int
) -> dict[str, Any]:
    """Labels are drawn from two traits, of pairs in which at least one of them differs."""
    one, other, w = mix
    lean = w * pool.truth[one] + (1 - w) * pool.truth[other]
    chance = 1 / (1 + np.exp(-SCALE * lean)) if how == "logistic choice" else 0.5 + lean
    able = np.flatnonzero((pool.truth[one] != 0) | (pool.truth[other] != 0))
    both, weights, rest = 0, list[float](), list[float]()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        which = rng.choice(able, n, replace=False)
        labels = (rng.random(n) < chance[which]).astype(np.float64)
        found = learn(pool.table(which, labels), LearnSettings(seed=seed, slack=slack))
        a, b = pool.weight(found, one), pool.weight(found, other)
        both += a > 0 and b > 0
        if a > 0 and b > 0:
            weights.append(a)
            rest.append(1 - a - b)
    return {
        "mixture": f"{w:g} {one}, {1 - w:g} {other}",
        "labels": how,
        "slack": f"{slack:g}",
        "both found": f"{both} of {seeds}",
        "weight of the first": _range(weights) if weights else "–",
        "within 0.15": f"{sum(abs(x - w) <= 0.15 for x in weights)} of {len(weights)}",
        "weight of others": _range(rest) if rest else "–",
    }


def _range(values: list[Any], digits: int = 2) -> str:
    """The mean, and in brackets the least and the greatest of the seeds."""
    x = [f"{f(values):z.{digits}f}" for f in (mean, min, max)]
    return f"{x[0]} ({x[1]}–{x[2]})"


def table_of(rows: list[dict[str, Any]]) -> Shown:
    found = Shown(*rows[0])
    for row in rows:
        found.add_row(*map(str, row.values()))
    return found


if __name__ == "__main__":
    main()
