"""What `make demo` does, over seeds: the README's table.

    python benchmarks/bench_demo.py

For every shipped constitution of one trait, and `hhh`, and every seed: one `rlaif run --config
demo`, whose policy answers held-out prompts that a program checks. A killed run goes on where it
was. Prints the table, mean (least–greatest) over the seeds, and what fell beside what rose; writes
it, with everything behind it, to `--out`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench_learning import measured, shown
from rich.console import Console
from rich.table import Table

TARGETS = {  # what each constitution asks for, hhh first of all; −1: less of it
    "hhh": ("harmless", 1),
    "harmless": ("harmless", 1),
    "concise": ("concise", 1),
    "flattering": ("not_sycophantic", -1),
    "thorough": ("concise", -1),
}
SEEDED = ("sampling", "train.reward", "train.dpo")
FELL = 0.03  # a trait that no principle names is told of when its mean moved by more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--constitutions", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[7, 8, 9])
    parser.add_argument("--runs", type=Path, default=Path("runs/demos"))
    parser.add_argument("--out", type=Path, help="JSON; none: demo.json beside the runs")
    args = parser.parse_args()
    runs = [one(name, seed, args.runs) for seed in args.seeds for name in args.constitutions]
    rows = summary(runs)
    out = args.out or args.runs / "demo.json"
    out.write_text(json.dumps({"summary": rows, "runs": runs}, indent=1) + "\n")
    Console(width=200).print(table(rows))


def one(constitution: str, seed: int, runs: Path) -> dict[str, Any]:
    """A run: its policies, and what its summary says of labels and time."""
    folder = runs / f"{constitution}-{seed}"
    found = measured("demo", constitution, seed, folder, SEEDED)
    told = json.loads((folder / "summary.json").read_text("utf-8"))
    return found | {"labels": told["labels"], "seconds": told["seconds"]["total"]}


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each constitution: the seeds one by one, before and after DPO."""
    rows = []
    for constitution in dict.fromkeys(run["constitution"] for run in runs):
        mine = [run for run in runs if run["constitution"] == constitution]
        trait, _ = TARGETS[constitution]
        row: dict[str, Any] = {"constitution": constitution, "trait": trait}
        for name in ("base", "dpo"):
            found = [run["policies"][name] for run in mine]
            row[name] = {
                "trait": [f["traits"][trait]["value"] for f in found],
                "and_legal": [f["and_legal"][trait]["all"]["value"] for f in found],
                "legal": [f["legal"]["value"] for f in found],
            }
        row["kl"] = [run["policies"]["dpo"]["kl"]["value"] for run in mine]
        row["labels_right"] = [run["labels"]["gold_agreement"] for run in mine]
        row["unseparated"] = [run["labels"]["unseparated"] for run in mine]
        row["seconds"] = [run["seconds"] for run in mine]
        row["others"] = others(mine, trait)
        rows.append(row)
    return rows


def others(runs: Sequence[dict[str, Any]], target: str) -> dict[str, list[list[float]]]:
    """[before, after] of each seed, of the traits beside the target that moved on average."""
    found = {}
    for trait in runs[0]["policies"]["base"]["traits"]:
        pairs = [
            [run["policies"][name]["traits"][trait]["value"] for name in ("base", "dpo")]
            for run in runs
        ]
        if trait != target and abs(mean(after - before for before, after in pairs)) > FELL:
            found[trait] = pairs
    return found


def table(rows: Sequence[dict[str, Any]]) -> Table:
    names = (
        "constitution",
        "trait",
        "and legal, all prompts",
        "legal",
        "KL, nats",
        "labels right",
        "preferred, truth even",
        "moved beside",
    )
    found = Table(*names, title="demo, DPO, mean (least–greatest)")
    for row in rows:
        before, after = row["base"], row["dpo"]
        cells = [
            f"{mean(before[k]):.0%} → {shown(after[k], percent=True)} %"
            for k in ("trait", "and_legal", "legal")
        ]
        moved = ", ".join(
            f"{name} {mean(b for b, _ in pairs):.0%} → {mean(a for _, a in pairs):.0%}"
            for name, pairs in row["others"].items()
        )
        known = None not in row["labels_right"]  # one trait is the truth of all labels
        right = f"{mean(row['labels_right']):.1%}" if known else "–"
        evens = [found["value"] for found in row["unseparated"] if found]
        even = f"{mean(evens):.1%}" if evens else "–"
        found.add_row(
            row["constitution"],
            f"{row['trait']} {cells[0]}",
            cells[1],
            cells[2],
            shown(row["kl"], percent=False),
            right,
            even,
            moved,
        )
    return found


if __name__ == "__main__":
    main()
