"""Nothing the server says tells the key, sends prompts elsewhere, or fills the memory."""

from __future__ import annotations

import gzip
import json
import resource
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.engines.base import Sampling
from rlaif.engines.server import MOST_BYTES, Secret
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment

CHAT = "/v1/chat/completions"
ASK = Rendered((RenderedMessage("user", (Segment("x", True),)),))
AB = [" A", " B"]
KEY = 'sk-pl/an+ted="8f3a1c'


def escaped(key: str, how: int) -> str:
    """A key as servers echo it: each way that a page, a URL or a JSON text writes it."""
    return [
        key,
        quote(key, safe=""),
        "".join(f"%{ord(c):02x}" for c in key),
        quote(quote(key, safe=""), safe=""),
        json.dumps(key)[1:-1],
        "".join(f"\\u{ord(c):04X}" for c in key),
        "".join(f"\\x{ord(c):02x}" for c in key),
        key.replace("=", "\\="),
        "".join(f"&#{ord(c)};" for c in key),
        "".join(f"&#x{ord(c):X};" for c in key),
        "".join(c if i % 2 else f"%{ord(c):02X}" for i, c in enumerate(key)),
    ][how]


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
    how=st.integers(0, 10),
    around=st.text(max_size=10),
)
def test_the_key_is_cleared_however_it_is_written(key: str, how: int, around: str) -> None:
    said = f"{around}<{escaped(key, how)}>{around}"
    assert f"<{'***'}>" in Secret(key).clean(said)


def test_words_that_are_no_keys_are_left_alone() -> None:
    text = "The box is EMPTY, and none of it is token-abc."
    for word in ("", "EMPTY", "none"):
        assert Secret(word).clean(text) == text
    assert Secret(KEY).clean(text) == text


@pytest.mark.parametrize("how", range(11))
def test_the_key_in_answers_and_errors(
    how: int, server: Any, connect: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    engine = connect(retries=0)
    server.script = lambda *_: wire.chat({"x": 0.9}, f"it is {escaped(KEY, how)}!", "stop")
    ((said,),) = engine.generate([ASK], Sampling(n=1))
    assert said.text == "it is ***!"
    said_raw = json.dumps({"error": {"message": "key X"}}).replace("X", escaped(KEY, how))
    server.script = lambda path, *_: wire.reply(400, said_raw) if path == CHAT else None
    with pytest.raises(EngineError) as caught:
        engine.score([ASK], [AB])
    assert KEY not in str(caught.value)
    assert escaped(KEY, how) not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.fixture
def elsewhere(server: Any, wire: Any) -> Any:
    """Another host, that answers as well and counts who asks: by name, not by number."""
    other = type(server)()
    http = ThreadingHTTPServer(("127.0.0.1", 0), wire.handler(other))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    other.url = f"http://localhost:{http.server_port}/v1"
    yield other
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_being_sent_to_another_host_is_refused_by_name(
    status: int, server: Any, connect: Any, wire: Any, elsewhere: Any
) -> None:
    to = {"Location": elsewhere.url + "/chat/completions"}
    server.script = lambda path, *_: wire.reply(status, "", to) if path == CHAT else None
    with pytest.raises(
        EngineError, match=r"sends requests on to another host, http://localhost:\d"
    ):
        connect().score([ASK], [AB])
    assert elsewhere.asked == []
    assert len(server.bodies()) == 1  # and not tried again


def test_a_redirect_on_the_same_server_is_followed(server: Any, connect: Any, wire: Any) -> None:
    def script(path: str, *_: Any) -> Any:
        return (
            wire.reply(307, "", {"Location": "/elsewhere"})
            if path == CHAT
            else (wire.chat({" A": 0.6, " B": 0.3}) if path == "/elsewhere" else None)
        )

    server.script = script
    (scores,) = connect().score([ASK], [AB])
    assert scores.mass == pytest.approx(0.9)


@pytest.mark.parametrize("depth", [100, 500, 900, 5000])
def test_answers_of_any_depth_end_in_one_paragraph(
    depth: int, server: Any, connect: Any, wire: Any
) -> None:
    deep = '{"choices":' * depth + "1" + "}" * depth
    server.script = lambda path, *_: wire.reply(200, deep) if path == CHAT else None
    with pytest.raises(EngineError):
        connect(retries=0).score([ASK], [AB])


def test_an_answer_without_an_end_is_cut(server: Any, connect: Any, wire: Any) -> None:
    """Half a megabyte of gzip that unpacks to 512 MiB, of which the cap is all that is held."""
    bomb = gzip.compress(b" " * (512 << 20), 1)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    engine = connect()
    server.script = lambda path, *_: wire.reply(200, bomb, headers) if path == CHAT else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(EngineError, match="longer than 64 MiB, which is refused"):
        engine.score([ASK], [AB])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 3 * MOST_BYTES
    assert time.monotonic() - start < 20
    assert len(server.bodies()) == 1
