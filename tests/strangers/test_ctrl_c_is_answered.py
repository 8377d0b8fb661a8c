"""Ctrl-C is answered at once, once, with the sentence that is meant, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app

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
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heard,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables},
    )


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
    *progress, said = err.splitlines(keepends=True)  # a slow machine tells of its progress first
    assert said == GOES_ON
    assert all(line.startswith("label: ") for line in progress)
    from rlaif.store import RunStore

    with RunStore(tmp_path / "run") as store:  # its lock is free, its shards whole
        assert len(store.table("verdicts").read()) > 0


WAITS = "stopping when this step is done, with a checkpoint; Ctrl-C again stops at once\n"
SLOW = (
    "import time\nfrom rlaif.cli import main\nimport rlaif.training.loop as loop\n"
    "write = loop.Journal.write\n"
    "def slow(*given):\n    write(*given)\n    time.sleep(SECONDS)\n"
    "loop.Journal.write = slow\nmain()\n"
)
TRAIN = {
    "dpo": ("--set", "train.dpo.batch_size=4", "--set", "train.dpo.epochs=4"),
    "sft": (
        "--data",
        "answers.jsonl",
        "--set",
        "train.sft.batch_size=2",
        "--set",
        "train.sft.epochs=2",
    ),
    "ppo": (
        "--reward",
        "own:score",
        "--steps",
        "4",
        "--set",
        "train.ppo.batch_size=4",
        "--set",
        "train.ppo.held_out=null",
    ),
    "grpo": (
        "--reward",
        "own:score",
        "--steps",
        "2",
        "--set",
        "train.grpo.batch_size=4",
        "--set",
        "train.grpo.group=2",
        "--set",
        "train.grpo.iterations=2",
    ),
    "online-dpo": ("--steps", "4", "--set", "train.online_dpo.batch_size=4"),
}


def labelled(folder: Path) -> None:
    pairs(folder, 8)
    texts = "".join(f"Can you help me {i} ?\n" for i in range(8))
    (folder / "prompts.txt").write_text(texts)
    (folder / "own.py").write_text("def score(p, c):\n    return [len(x) / 99 for x in c]\n")
    rows = [{"prompt": f"Help {i} ?", "answer": "Yes , I can ."} for i in range(4)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = start(
        folder,
        *LABEL,
        "--set",
        "preferences.min_margin=0",
        "--set",
        "sampling.max_new_tokens=8",
        "--set",
        "train.limits=null",
    )
    assert done.wait(60) == 0, done.communicate()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ready")
    labelled(folder)
    return folder


def training(name: str, *more: str) -> tuple[str, ...]:
    live = name in ("ppo", "grpo", "online-dpo")
    prompts = ("--prompts", "prompts.txt", "--judge", "tiny") if live else ()
    return ("train", name, "--out", "run", "--policy", "tiny", *prompts, *TRAIN[name], *more)


@pytest.mark.parametrize("name", TRAIN)
def test_a_training_ends_its_step_and_goes_on_from_it(
    ready: Path, tmp_path: Path, name: str
) -> None:
    """Bit for bit as without; checkpoints are otherwise 20 steps and more apart."""
    here, whole = tmp_path / "here", tmp_path / "whole"
    for folder in (here, whole):
        shutil.copytree(ready, folder)
    undisturbed = start(whole, *training(name))
    assert undisturbed.wait(120) == 0, undisturbed.communicate()
    model = f"run/models/{name}"
    child = start(here, *training(name), program=SLOW.replace("SECONDS", "1"))
    wait_for(child, here, f"{model}/training.jsonl")
    while not (here / model / "training.jsonl").read_text():
        time.sleep(0.02)
    _, err = stop(child, within=20)
    told = re.fullmatch(f"(?s).*{WAITS}stopped; the same command goes on after step (\\d+)\n", err)
    assert told, err
    lines = (here / model / "training.jsonl").read_text().splitlines()
    assert len(lines) == int(told[1])
    shown = CliRunner().invoke(app, ["status", str(here / "run")]).output
    assert f"goes on after step {told[1]}" in shown
    assert f"next: rlaif train {name}" in shown
    again = start(here, *training(name))
    assert again.wait(120) == 0, again.communicate()
    steps = [json.loads(x)["step"] for x in (here / model / "training.jsonl").open()]
    assert steps == [json.loads(x)["step"] for x in (whole / model / "training.jsonl").open()]
    weights = [(folder / model / "model.safetensors").read_bytes() for folder in (here, whole)]
    assert weights[0] == weights[1]


def test_a_second_one_ends_at_once_and_says_where_it_goes_on(ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "here")
    child = start(tmp_path / "here", *training("dpo"), program=SLOW.replace("SECONDS", "60"))
    wait_for(child, tmp_path / "here", "run/models/dpo/training.jsonl")
    while not (tmp_path / "here/run/models/dpo/training.jsonl").read_text():
        time.sleep(0.02)
    assert child.stderr is not None
    os.killpg(child.pid, signal.SIGINT)
    while (line := child.stderr.readline()) != WAITS:  # it comes while the step goes on
        assert line, "no answer"
    _, err = stop(child)
    assert (
        err == "stopped; the same command goes on at the first step: no checkpoint is written yet\n"
    )


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
