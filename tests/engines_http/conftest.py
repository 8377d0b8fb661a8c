"""A real server that misbehaves on demand: sockets and bytes, no mock of the client."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlaif.engines.http import HTTPEngine
from rlaif.engines.settings import HTTPSettings

KEY = "sk-planted-8f3a1c-secret"


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: Any = None  # a dict is sent as JSON, a string and bytes as they are
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: str = ""  # "before" any byte, or "inside" the body


Script = Callable[[str, dict[str, Any], int], Reply | None]


def chat(
    top: dict[str, float], text: str = "A", finish: str = "length", prompt: int = 10, **usage: Any
) -> Reply:
    """A chat completion whose first token has these probabilities."""
    tokens = [
        {"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in top.items()
    ]
    first = {**(tokens[0] if tokens else {}), "top_logprobs": tokens}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    choice["logprobs"] = {"content": [first] if tokens else []}
    counts = {"prompt_tokens": prompt, "completion_tokens": 1, **usage}
    return Reply(body={"object": "chat.completion", "choices": [choice], "usage": counts})


@dataclass
class Server:
    """`script(path, body, k)` decides the k-th request to a path; None is the default answer."""

    script: Script = lambda *_: None
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "judge"}])
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    active: int = 0
    peak: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bodies(self, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]

    def decide(self, path: str, body: dict[str, Any]) -> Reply:
        with self.lock:
            count = sum(asked == path for asked, _ in self.asked)
            self.asked.append((path, body))
            if path.endswith("completions"):
                self.times.append(time.monotonic())
        reply = self.script(path, body, count)
        if reply is not None:
            return reply
        if path == "/v1/models":
            return Reply(body={"object": "list", "data": self.models})
        if path == "/v1/chat/completions":
            return chat({" A": 0.6, " B": 0.3})
        return Reply(404, {"error": {"message": "no such path"}})


def make_handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.answer(json.loads(self.rfile.read(length)))

        def answer(self, body: dict[str, Any]) -> None:
            with server.lock:
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                server.active += 1
                server.peak = max(server.peak, server.active)
            try:
                reply = server.decide(self.path, body)
                time.sleep(reply.delay)
            finally:
                with server.lock:
                    server.active -= 1
            try:
                self.write(reply)
            except OSError:  # the client did not wait
                self.close_connection = True

        def write(self, reply: Reply) -> None:
            if reply.cut == "before":
                self.close_connection = True
                return
            said = reply.body
            text = said if isinstance(said, str | bytes) else json.dumps(said)
            kind = "application/json" if not isinstance(said, str) else "text/html"
            data = text.encode() if isinstance(text, str) else text
            self.send_response(reply.status)
            for name, value in {"Content-Type": kind, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if reply.cut == "inside":
                data = data[: len(data) // 2]
                self.close_connection = True
            self.wfile.write(data)

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def another() -> Iterator[Server]:
    with serving() as server:
        yield server


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., HTTPEngine]]:
    """Makes engines on the server that lose no time in waiting."""
    monkeypatch.setenv("PLANTED_KEY", KEY)
    made: list[HTTPEngine] = []

    def make(**options: Any) -> HTTPEngine:
        defaults: dict[str, Any] = {"base_url": server.url, "api_key_env": "PLANTED_KEY"}
        defaults |= {"backoff": 0.01, "timeout": 30.0, "retries": 4}
        made.append(HTTPEngine("judge", HTTPSettings(**{**defaults, **options})))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def wire() -> type:
    """The words of the server's scripts, for test modules (which cannot import a conftest)."""

    class Wire:
        reply = Reply
        chat = staticmethod(chat)
        handler = staticmethod(make_handler)
        key = KEY

    return Wire
