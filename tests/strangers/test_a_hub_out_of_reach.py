"""A hub out of reach is told of in seconds and in one sentence; a cache serves without it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlaif.files import hub
from rlaif.files.resources import TINY_WEIGHTS

RUN = "from rlaif.cli import main; main()"


def command(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, float]:
    """Status, what stands on standard error, and seconds, with HF_HUB_OFFLINE unset."""
    left = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**left, "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1", **variables},
    )
    told = done.stderr.splitlines(keepends=True)
    slow = "starting: "  # a line that only a slow machine prints
    error = "".join(line for line in told if not line.startswith(slow))
    return done.returncode, error, time.monotonic() - began


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Can you help me {i} ?", "chosen": "Yes .", "rejected": "No ."}
        for i in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


LABEL = ("label", "--pairs", "pairs.jsonl", "--out", "run", "--judge")


def test_a_name_that_is_not_here_is_one_sentence_in_seconds(pairs: Path, nowhere: str) -> None:
    status, error, seconds = command(pairs, *LABEL, "some/model", HF_ENDPOINT=nowhere)
    assert status == 2
    assert error.count("\n") == 1
    assert error.startswith("error: cannot load the model 'some/model': there is no such folder")
    assert "127.0.0.1 is out of reach" in error
    assert seconds < 10  # two, on a machine that does nothing else


def test_a_host_whose_name_leads_nowhere(pairs: Path) -> None:
    endpoint = "https://hub.invalid"
    status, error, seconds = command(pairs, *LABEL, "some/model", HF_ENDPOINT=endpoint)
    assert (status, error.count("\n")) == (2, 1)
    assert "hub.invalid is out of reach" in error
    assert seconds < 10


def test_a_model_in_the_cache_is_loaded_without_a_hub(pairs: Path, nowhere: str) -> None:
    root = pairs / "hub" / "hub" / "models--some--model"
    shutil.copytree(TINY_WEIGHTS, root / "snapshots" / "1234")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("1234")
    status, error, _ = command(pairs, *LABEL, "some/model", HF_ENDPOINT=nowhere)
    assert status == 0, error
    assert "Retrying" not in error


def test_a_data_set_that_is_not_here(pairs: Path, nowhere: str) -> None:
    status, error, _ = command(
        pairs,
        "label",
        "--pairs",
        "some/pairs",
        "--judge",
        "tiny",
        "--out",
        "run",
        HF_ENDPOINT=nowhere,
    )
    assert status == 2
    assert error.count("\n") == 1
    assert "Retrying" not in error


def test_a_hub_within_reach_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not hub.offline()
        hub.check_name("some/model")  # may be there
        assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("variables", "hop"),
    [
        ({}, ("huggingface.co", 443)),
        ({"HF_ENDPOINT": "http://mirror:8080/hub"}, ("mirror", 8080)),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128)),
        ({"https_proxy": "proxy:3128", "no_proxy": "localhost,.co"}, ("huggingface.co", 443)),
        ({"ALL_PROXY": "http://other"}, ("other", 80)),
        ({"HTTP_PROXY": "http://proxy:3128"}, ("huggingface.co", 443)),
    ],
)
def test_what_is_asked_first(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hop: tuple[str, int]
) -> None:
    for name in ("HF_ENDPOINT", "https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub._first_hop() == hop
