"""vLLM's processes: they start quietly, and they end with the engine, the script or Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from rlaif.engines.base import Sampling
from rlaif.engines.load import load_engine
from rlaif.records import Message
from rlaif.files.templates import Rendered

def main():
    engine = load_engine(sys.argv[1], engine="vllm", vllm={"cache_gib": 0.25})
    prompt = Rendered.chat([Message("user", "Which is better?")])
    (score,) = engine.score([prompt], [[" A", " B"]])
    print(json.dumps(score.logprobs), flush=True)
    if sys.argv[2] == "busy":
        for seed in range(10**6):
            engine.generate([prompt] * 32, Sampling(n=8, max_new_tokens=900, seed=seed))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    """Starts the script in a session of its own, with vLLM's processes apart as by default."""
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(root)}
    started = []

    def run(task: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(script), folder("qwen2"), task],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """The processes of a session that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(session: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while members(session) and time.monotonic() < until:
        time.sleep(0.2)
    return not members(session)


def test_a_script_prints_its_own_lines_only_and_ends_without_close(start):
    process = start("once")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert len(json.loads(out)) == 2  # nothing of vLLM's on standard output
    assert "INFO" not in err
    assert "leaked" not in err
    assert gone(process.pid, 5)


def test_ctrl_c_ends_all_processes(start):
    process = start("busy")
    line = process.stdout.readline()
    assert len(json.loads(line)) == 2
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=120)
    # By KeyboardInterrupt; or, where vLLM's own process heard it first, by vLLM's word of its end.
    assert process.returncode != 0
    assert gone(process.pid, 10)
