"""Runs to look at: one that a real judge labelled, and any that a test describes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.judges.base import verdict_key
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Prompt, Verdict
from rlaif.store import RunStore

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"></textarea>&amp; {{ 7 * 7 }}'


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight pairs, judged by the embedded model under `hhh`; one has hostile texts."""
    root = tmp_path_factory.mktemp("labelled")
    prompts = [f"Hello. How do I grow corn {where}?" for where in ("here", "there", "at home")]
    rows = [
        {
            "prompt": prompt,
            "chosen": f"Put the seed in the ground{' and wait' * i}. Give it water.",
            "rejected": f"Find out on your own{', please' * i}.",
        }
        for i in range(3)
        for prompt in prompts
    ][:7]
    rows.append({"prompt": HOSTILE, "chosen": f"No. {HOSTILE}", "rejected": f"Yes. {HOSTILE}"})
    pairs = root / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["label", "--pairs", str(pairs), "--judge", "tiny", "--constitution", "hhh"]
    done = CliRunner().invoke(app, [*words, "--out", str(root / "run")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return root / "run"


Told = Mapping[str, Sequence[float | None]]  # by principle P(first) in both orders
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes a run of the verdicts that a test names, as a judge would have left it."""

    def make(
        told: Sequence[Told],
        name: str = "run",
        wording: Mapping[str, str] | None = None,
        fingerprint: str = "judge",
        **preferences: Any,
    ) -> Path:
        ids = list(dict.fromkeys(p for one in told for p in one))
        words = {p: f"Is it {p}?" for p in ids} | dict(wording or {})
        pairs = [
            Pair(Prompt.user(f"question {i}", f"made:{i}"), f"yes number {i}", f"no number {i}, no")
            for i in range(len(told))
        ]
        verdicts = [
            Verdict(
                verdict_key(fingerprint, pair.id, order, principle, words[principle]),
                pair.id,
                principle,
                order,
                "model",
                p,
                reason=None if p is not None else "low_mass",
            )
            for pair, one in zip(pairs, told, strict=True)
            for principle, both in one.items()
            for order, p in zip(ORDERS, both, strict=True)
        ]
        rule = PreferenceSettings(**preferences)
        root = tmp_path / name
        with RunStore(root) as store:
            store.table("pairs").replace(pairs)
            store.table("verdicts").append(verdicts)
            store.table("preferences").replace(aggregate(pairs, verdicts, rule))
            listed = [{"id": p, "compare": words[p], "tags": [], "weight": 1.0} for p in ids]
            store.update_manifest("labelled", {"name": "made", "principles": listed})
            judge = {"model": "model", "method": "pairwise", "fingerprint": fingerprint}
            store.update_manifest("judge", {**judge, "template": "pairwise/default"})
        return root

    return make


@dataclass
class Page:
    """A page that is served by a process of its own."""

    process: subprocess.Popen[str]
    host: str
    port: int
    path: str  # what the printed address opens, with the token if there is one

    def get(
        self, path: str = "/", method: str = "GET", data: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and body. A header's `_` stands for `-`; Host is the page's own."""
        connection = HTTPConnection(self.host, self.port, timeout=300)
        sent = {"Host": f"{self.host}:{self.port}"}
        sent |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body

    def post(self, path: str, **fields: str) -> tuple[int, dict[str, str], str]:
        """The same, as the page's own form sends it."""
        origin = f"http://{self.host}:{self.port}"
        kind = "application/x-www-form-urlencoded"
        return self.get(path, "POST", urlencode(fields), origin=origin, content_type=kind)


@contextmanager
def serving() -> Iterator[Callable[..., Page]]:
    """Serves runs as `rlaif view` does, each in a process that ends with the block."""
    processes = []

    def serve(*runs: Path, **options: str) -> Page:
        words = [*map(str, runs), "--port", "0", *(f"--{k}={v}" for k, v in options.items())]
        program = "from rlaif.cli import main; main()"
        command = [sys.executable, "-c", program, "view", *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "4000"}, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        told = process.stdout.readline()
        found = re.search(r"http://([^/:]+):(\d+)(/\S*)", told)
        assert found, told
        return Page(process, found[1], int(found[2]), found[3])

    yield serve
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def served() -> Iterator[Callable[..., Page]]:
    """Serves runs until the test ends."""
    with serving() as serve:
        yield serve


@pytest.fixture(scope="module")
def page(labelled: Path) -> Iterator[Page]:
    """The page of `labelled`, for tests that change nothing."""
    with serving() as serve:
        yield serve(labelled)
