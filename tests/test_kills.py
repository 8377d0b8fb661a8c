"""`rlaif label` killed with -9 at random moments and run again: the same store, row for row."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlaif.store import RunStore

KILLS = 25
PAIRS = 40
# One process imports PyTorch and loads the model, then each try is a fork of it: so a kill strikes
# at the labelling, not at the imports.
SERVER = """
import os, sys
import torch, transformers, pyarrow.parquet
torch.set_num_threads(1)
import rlaif.stages, rlaif.engines.hf, rlaif.evaluation.metrics, rlaif.judges.pairwise
from rlaif.cli import main
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["rlaif", *line.split()]
        sys.stdout = sys.stderr
        try:
            main()
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Server:
    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "log.txt").open("w"),
            text=True,
            cwd=folder,
            env=environment,
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, arguments: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(arguments + "\n")
        self.process.stdin.flush()
        return int(self.read())

    def end(self) -> int:
        return int(self.read())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def server(folder: Path):  # type: ignore[no-untyped-def]
    rows = []
    for i in range(PAIRS):
        prompt = f"\n\nHuman: Tell me about thing {i}.\n\nAssistant:"
        rows.append({"chosen": f"{prompt} It is good.", "rejected": f"{prompt} No, number {i}."})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    server = Server(folder)
    yield server
    server.process.kill()


def wait_for_shards(run: Path, more: int, seconds: float) -> None:
    """Until `more` shards of verdicts have come, or the run had time enough to end."""
    start = time.monotonic()
    before = len(list(run.glob("verdicts/*.parquet")))
    while len(list(run.glob("verdicts/*.parquet"))) < before + more:
        if time.monotonic() - start > 2 * seconds:
            return
        time.sleep(0.005)


def rows_of(path: Path) -> list[dict[str, object]]:
    table = RunStore(path, read_only=True).table("verdicts").to_arrow()
    return sorted(table.to_pylist(), key=lambda row: str(row["key"]))


# By whom, the kills, verdicts a pair. The second judge of the jury marks in one order.
JUDGE = ("", KILLS, 4)
JURY = ("--config jury.yaml ", 5, 6)


@pytest.mark.parametrize(("options", "kills", "verdicts"), [JUDGE, JURY])
def test_killed_at_random_moments_ends_with_the_same_store(
    server: Server, folder: Path, options: str, kills: int, verdicts: int
) -> None:
    whole, parts = f"whole{verdicts}", f"parts{verdicts}"
    (folder / "jury.yaml").write_text(
        "jury:\n- {name: a, min_mass: 0}\n- {name: b, method: rubric, min_mass: 0}\n"
    )
    command = f"label --pairs pairs.jsonl --set chunk=2 --set judge.min_mass=0 {options}--out "
    started = time.monotonic()
    server.start(command + whole)
    assert server.end() == 0
    seconds = time.monotonic() - started
    rng = random.Random(7)
    killed = 0
    sizes = set()
    while killed < kills:
        child = server.start(command + parts)
        wait_for_shards(folder / parts, rng.randrange(6), seconds)
        time.sleep(rng.uniform(0, seconds / 20))
        with suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        code = server.end()
        assert code in (-signal.SIGKILL, 0), (folder / "log.txt").read_text()[-2000:]
        if code == 0:  # done before the kill: begin again, so that every kill hits work
            assert rows_of(folder / parts) == rows_of(folder / whole)
            shutil.rmtree(folder / parts)
            continue
        killed += 1
        sizes.add(sum(len(pq.read_table(f)) for f in (folder / parts).glob("verdicts/*.parquet")))
    server.start(command + parts)
    assert server.end() == 0, (folder / "log.txt").read_text()[-2000:]
    assert rows_of(folder / parts) == rows_of(folder / whole)
    assert len(rows_of(folder / parts)) == PAIRS * verdicts
    assert len(sizes) > min(3, kills // 3), (
        f"the kills did not strike at different moments: {sizes}"
    )
    for table in ("pairs", "preferences"):
        found, expected = (
            RunStore(folder / name, read_only=True).table(table).to_arrow()  # type: ignore[call-overload]
            for name in (parts, whole)
        )
        assert found == expected
