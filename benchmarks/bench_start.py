"""What starting costs: processor seconds of commands beside those of the model's bare load.

    python benchmarks/bench_start.py --pairs 12 --times 5

Every program is a new process; they take turns, so that all meet the same machine. `bare` is what
Transformers needs to import itself and load the judge's model and tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rlaif.files.resources import TINY_WEIGHTS

RLAIF = "from rlaif.cli import main; main()"
BARE = (
    "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
    f"M.from_pretrained({str(TINY_WEIGHTS)!r}); T.from_pretrained({str(TINY_WEIGHTS)!r})"
)


def seconds(folder: Path, program: str, *arguments: str) -> float:
    """Processor seconds, user and system, of one process."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"prompt": f"Can you help me {i} ?", "chosen": "Yes , I can .", "rejected": "No ."}
            for i in range(given.pairs)
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        label = ("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out")
        seconds(folder, RLAIF, *label, "run")  # fills the caches, and is reported on below
        for i in range(given.times):
            programs = {
                "python": ("pass",),
                "bare": (BARE,),
                f"label {given.pairs} pairs": (RLAIF, *label, f"run{i}"),
                "report": (RLAIF, "report", "run"),
                "config check": (RLAIF, "config", "check", "demo"),
                "--help": (RLAIF, "--help"),
            }
            for title, program in programs.items():
                found.setdefault(title, []).append(seconds(folder, *program))
    for title, values in found.items():
        print(
            f"{title:16} median {statistics.median(values):6.2f} s "
            f"({min(values):.2f} to {max(values):.2f})"
        )


if __name__ == "__main__":
    main()
