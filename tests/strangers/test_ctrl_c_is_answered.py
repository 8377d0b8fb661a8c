"""Ctrl-C is answered at once, once, with the sentence that is meant, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

GOES_ON = "stopped; the same command goes on from here\n"
RUN = "from rlaif.cli import main; main()"


def heard() -> None:
    """Ctrl-C is heard, as in a terminal: a test runner's workers ignore it, and so would theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    folder: Path, *arguments: str, program: str = RUN, **variables: str
) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables},
    )  # fmt: skip


def stop(child: subprocess.Popen[str], within: float = 4.0) -> tuple[str, str]:
    """Ctrl-C for the whole group; what the command wrote to its end."""
    assert child.poll() is None, child.communicate()
    began = time.monotonic()
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - began < within
    assert child.returncode == 130
    return out, err


def pairs(folder: Path, count: int) -> None:
    rows = [
        {"prompt": f"Can you help me {i} ?", "chosen": "Yes , I can .", "rejected": "No ."}
        for i in range(count)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LABEL = ("label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "run")


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.0])
def test_wherever_a_command_is_among_its_imports(tmp_path: Path, seconds: float) -> None:
    pairs(tmp_path, 20_000)
    child = start(tmp_path, *LABEL)
    time.sleep(seconds)
    _, err = stop(child)
    assert err == GOES_ON


def wait_for(child: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 90
    while not list(folder.glob(pattern)):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_while_a_model_labels_and_what_is_stored_stays(tmp_path: Path) -> None:
    pairs(tmp_path, 20_000)
    child = start(tmp_path, *LABEL)
    wait_for(child, tmp_path, "run/verdicts/*.parquet")
    _, err = stop(child)
    assert err == GOES_ON
    from rlaif.store import RunStore

    with RunStore(tmp_path / "run") as store:  # its lock is free, its shards whole
        assert len(store.table("verdicts").read()) > 0


def test_while_a_model_trains(tmp_path: Path) -> None:
    program = (
        "import time\nfrom rlaif.cli import main\nimport rlaif.training.loop as loop\n"
        "write = loop.Journal.write\n"
        "def slow(*given):\n    write(*given)\n    time.sleep(30)\n"
        "loop.Journal.write = slow\nmain()\n"
    )
    pairs(tmp_path, 8)
    done = start(tmp_path, *LABEL, "--set", "preferences.min_margin=0")
    assert done.wait(60) == 0
    child = start(tmp_path, "train", "dpo", "--out", "run", "--policy", "tiny", program=program)
    wait_for(child, tmp_path, "run/models/dpo/training.jsonl")
    _, err = stop(child)
    assert err == GOES_ON


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_while_workers_of_ray_label(tmp_path: Path) -> None:
    pairs(tmp_path, 20_000)
    child = start(tmp_path, *LABEL, "--executor", "ray")
    wait_for(child, tmp_path, "run/verdicts/*.parquet")
    _, err = stop(child, within=20.0)
    *progress, last = err.splitlines(keepends=True)
    assert last == GOES_ON
    assert all(line.startswith("label: ") for line in progress)


# Stand for libraries that do not take Ctrl-C as they should.
DEAF = {
    "swallows it": "try:\n time.sleep(60)\nexcept BaseException:\n  time.sleep(60)",
    "turns it into an error": "try:\n time.sleep(60)\nexcept BaseException: raise ValueError('x')",
    "prints of its own": "try:\n time.sleep(60)\nfinally: print('Traceback', file=sys.stderr)",
    "is in C and never looks": "np.linalg.eigvals(np.random.rand(4000, 4000))",
    "has a thread that goes on": (
        "threading.Thread(target=time.sleep, args=[60]).start()\ntime.sleep(60)"
    ),
    "has a worker in its group": (
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=[60]).start()\n"
        "time.sleep(60)"
    ),
}


@pytest.mark.parametrize("how", DEAF)
def test_whatever_a_library_makes_of_it(tmp_path: Path, how: str) -> None:
    program = (
        "import multiprocessing, sys, threading, time\nimport numpy as np\n"
        "import rlaif.cli.app as app\nfrom rlaif.cli import main\n"
        "def library():\n print('begun', flush=True)\n "
        + DEAF[how].replace("\n", "\n ")
        + "\napp.app = library\nmain()\n"
    )
    child = start(tmp_path, "label", program=program)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    time.sleep(0.2)
    _, err = stop(child)
    assert err == GOES_ON


def test_a_command_that_does_not_go_on_does_not_say_so(tmp_path: Path) -> None:
    program = (
        "import time\nimport rlaif.cli.app as app\nfrom rlaif.cli import main\n"
        "app.app = lambda: (print('begun', flush=True), time.sleep(60))\nmain()\n"
    )
    for command in ("report", "export", "config", "init"):
        child = start(tmp_path, command, program=program)
        assert child.stdout is not None
        child.stdout.readline()
        assert stop(child)[1] == "stopped\n"


def test_a_process_told_to_ignore_it_does(tmp_path: Path) -> None:
    program = (
        "import time\nimport rlaif.cli.app as app\nfrom rlaif.cli import main\n"
        "app.app = lambda: (print('begun', flush=True), time.sleep(1), print('done'))\n"
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nmain()\n"
    )
    child = start(tmp_path, "label", program=program)
    assert child.stdout is not None
    child.stdout.readline()
    os.killpg(child.pid, signal.SIGINT)
    assert child.communicate(timeout=30) == ("done\n", "")
    assert child.returncode == 0
