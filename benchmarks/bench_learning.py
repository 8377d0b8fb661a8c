"""What each way of training does to the embedded policy: gold traits, legality and KL, by seeds.

    python benchmarks/bench_learning.py

For every constitution and seed: one `rlaif run` that samples, labels, trains by every method and
measures on held-out prompts, whose answers a program checks. A killed run goes on where it was.
Prints the table and writes it, with everything behind it, to `--out`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from rlaif.report.formats import rounded

CONSTITUTIONS = ("harmless", "concise")  # each one's trait has its name
TRAINED = ("reward", "sft", "dpo", "ppo", "grpo", "rloo", "online_dpo")
SEEDED = ("sampling", *(f"train.{name}" for name in TRAINED))
RLAIF = "from rlaif.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="learning", help="a config, or a shipped one's name")
    parser.add_argument("--constitutions", nargs="+", default=list(CONSTITUTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[7, 8, 9])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--out", type=Path, help="JSON; none: learning.json beside the runs")
    args = parser.parse_args()
    runs = [
        measured(args.config, name, seed, args.runs / f"{name}-{seed}")
        for seed in args.seeds
        for name in args.constitutions
    ]
    rows = summary(runs, args.constitutions)
    out = args.out or args.runs / "learning.json"
    out.write_text(json.dumps({"summary": rows, "runs": runs}, indent=1) + "\n")
    Console().print(table(rows, args.constitutions))


def measured(
    config: str, constitution: str, seed: int, out: Path, seeded: Sequence[str] = SEEDED
) -> dict[str, Any]:
    """One run of a config, its `seeded` sections with one seed, and what its policies do."""
    found = out / "evaluation" / "policies.json"
    command = [sys.executable, "-c", RLAIF, "run", "--config", config, "--out", str(out)]
    command += ["--constitution", constitution]
    command += [f"--set={section}.seed={seed}" for section in seeded]
    subprocess.run(command, check=True)
    policies = json.loads(found.read_text("utf-8"))
    return {"constitution": constitution, "seed": seed, "policies": policies}


def summary(runs: Sequence[dict[str, Any]], traits: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each constitution and policy: means over seeds, and the seeds one by one."""
    rows = []
    for constitution in dict.fromkeys(run["constitution"] for run in runs):
        mine = [run for run in runs if run["constitution"] == constitution]
        for policy in mine[0]["policies"]:
            found = [run["policies"][policy] for run in mine]
            by_seed = {t: [f["traits"][t]["value"] for f in found] for t in traits}
            by_seed["legal"] = [f["legal"]["value"] for f in found]
            by_seed["kl"] = [f["kl"]["value"] if "kl" in f else 0.0 for f in found]
            rows.append(
                {"constitution": constitution, "policy": policy, "by_seed": by_seed}
                | {"mean": {name: mean(values) for name, values in by_seed.items()}}
            )
    return rows


def table(rows: Sequence[dict[str, Any]], traits: Sequence[str]) -> Table:
    found = Table("constitution", "policy", *traits, "legal", "KL, nats", title="learning")
    for row in rows:
        cells = [shown(row["by_seed"][name], percent=True) for name in (*traits, "legal")]
        cells.append(shown(row["by_seed"]["kl"], percent=False))
        found.add_row(row["constitution"], row["policy"], *cells)
    return found


def shown(values: Sequence[float], percent: bool) -> str:
    """The mean, and in brackets the least and the greatest of the seeds."""
    scale, digits = (100, 0) if percent else (1, 2)
    middle, low, high = (rounded(f(values), digits, scale) for f in (mean, min, max))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()
