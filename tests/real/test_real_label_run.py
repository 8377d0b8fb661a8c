"""A label run on a real model by the command line: it is heard from, and a kill costs little.

Times are the run's own processor seconds, so that a busy machine does not fail the test: on an idle
one they are seconds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rlaif.store import RunStore

RUN = [sys.executable, "-c", "from rlaif.cli import main; main()"]
OURS = re.compile(r"label: ([\d,.]+) of \d+")
SECONDS = 30.0
TOPICS = (
    "bread",
    "a bear",
    "Paris",
    "the sea",
    "a clock",
    "snow",
    "gold",
    "a bridge",
    "rice",
    "rain",
    "chess",
    "a lamp",
)
ASKED = ("Tell me about", "Write down what there is to know about", "Why do people talk about")
PAIRS = len(TOPICS) * len(ASKED)  # so many that a fast machine is still at work when it is killed

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="reads processor seconds from /proc"
)


def spent(process: subprocess.Popen[str]) -> float:
    """The processor seconds of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(folder: str, where: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["label", "--pairs", "pairs.jsonl", "--constitution", "sixteen", "--judge", folder]
    with (where / "log.txt").open("a") as log:
        return subprocess.Popen(
            [*RUN, *command, "--set", "judge.min_mass=0", "--out", "run"],
            cwd=where,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def stored(where: Path) -> dict[str, dict[str, object]]:
    table = RunStore(where / "run", read_only=True).table("verdicts").to_arrow()
    return {str(row["key"]): row for row in table.to_pylist()}


def test_it_tells_and_stores_within_30_seconds_and_a_kill_loses_no_more(
    folder: str, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": f"{asked} {topic}.",
            "chosen": f"There is much to say about {topic}, and I begin with where it comes from.",
            "rejected": f"No. I do not talk about {topic}, not today and not tomorrow either.",
        }
        for topic in TOPICS
        for asked in ASKED
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = start(folder, tmp_path)
    told, kept = [], []  # processor seconds at each new line of progress, and each new shard
    lines = shards = 0
    while len(kept) < 2:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        now = spent(process)
        seen = len(OURS.findall((tmp_path / "log.txt").read_text()))
        files = len(list((tmp_path / "run").glob("verdicts/*.parquet")))
        told += [now] * (seen > lines)
        kept += [now] * (files > shards)
        lines, shards = max(lines, seen), max(shards, files)
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"told at {told}, stored at {kept} processor seconds")
    assert told
    assert told[0] < SECONDS  # loading included
    for times in (told, kept):
        assert all(b - a < SECONDS for a, b in pairwise(times))
    before = stored(tmp_path)
    assert 0 < len(before) < PAIRS * 32
    again = start(folder, tmp_path)
    assert again.wait() == 0, (tmp_path / "log.txt").read_text()
    after = stored(tmp_path)
    assert len(after) == PAIRS * 32
    assert all(after[key] == row for key, row in before.items())
    assert not re.search(r"Loading weights|it/s", (tmp_path / "log.txt").read_text())
