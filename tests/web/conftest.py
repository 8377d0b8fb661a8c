"""Headless Chromium before a served run; skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app

WANTED = "run `make test-web`, which sets up what is needed"


def missing() -> str:
    """Why these tests cannot run here; empty where they can."""
    from importlib.util import find_spec

    for module in ("fastapi", "duckdb", "uvicorn", "playwright", "axe_playwright_python"):
        if find_spec(module) is None:
            return f"no package {module}: {WANTED}"
    return "" if chromium() else f"no Chromium: {WANTED}, or set RLAIF_CHROMIUM to its path"


def chromium() -> str | None:
    """The browser's executable."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("RLAIF_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = missing() if here else ""
    for item in here:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of about 48 pairs of the embedded world under `hhh`."""
    root = tmp_path_factory.mktemp("web") / "first-run"
    invoke("sample", "--prompts", "tiny", "--policy", "tiny", "--limit", "48", "--out", str(root))
    invoke("label", "--constitution", "hhh", "--judge", "tiny", "--out", str(root))
    return root


@pytest.fixture(scope="session")
def other(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs under a constitution with one principle reworded."""
    root = tmp_path_factory.mktemp("other") / "second-run"
    shutil.copytree(run, root)
    edited = root.parent / "edited.yaml"
    edited.write_text(
        "name: edited\nversion: 1\nextends: [hhh]\nprinciples:\n"
        '  - {id: no-harm, compare: "Which response is longer?"}\n'
    )
    invoke("label", "--constitution", str(edited), "--out", str(root))
    return root


def invoke(*words: str) -> None:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@dataclass
class Server:
    """`rlaif view` in a process of its own."""

    runs: tuple[Path, ...]
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, on the port that it had before if it had one."""
        words = [*map(str, self.runs), "--port", str(self.port)]
        program = "from rlaif.cli import main; main()"
        command = [sys.executable, "-c", program, "view", *words]
        env = {**os.environ, "COLUMNS": "4000"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", told)
        assert found, told
        self.port = int(found[1])

    def kill(self) -> None:
        """Ends it at once, in the middle of whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def served() -> Iterator[Callable[..., Server]]:
    """Serves runs until the test ends."""
    servers = []

    def serve(*runs: Path) -> Server:
        server = Server(runs)
        servers.append(server)
        server.start()
        return server

    yield serve
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        found = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield found
        found.close()


@dataclass
class Watch:
    """What a browser's window complained of, and asked for."""

    faults: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: tuple[str, ...] = ()  # faults that a test brings about

    def unexpected(self) -> list[str]:
        return [text for text in self.faults if not any(e in text for e in self.expected)]


@pytest.fixture
def window(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens windows. After the test none may have complained, or asked another machine."""
    watched: list[Watch] = []

    @contextmanager
    def opened(
        width: int = 1280, scheme: str = "light", expected: tuple[str, ...] = ()
    ) -> Iterator[Any]:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(120_000)
        watch = Watch(expected=expected)
        watched.append(watch)
        page.on(
            "console",
            lambda m: watch.faults.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: watch.faults.append(str(error)))
        page.on("request", lambda r: watch.hosts.add(urlsplit(r.url).hostname or r.url))
        yield page
        context.close()

    yield opened
    for watch in watched:
        assert watch.unexpected() == []
        assert watch.hosts <= {"127.0.0.1"}
