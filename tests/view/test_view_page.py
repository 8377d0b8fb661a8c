"""The served page: what it shows, that text stays text, and whom it answers."""

from __future__ import annotations

import html
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import ConfigError, DataError
from rlaif.records import ORDERS
from rlaif.store import RunStore
from rlaif.view.app import make_app
from rlaif.view.security import HEADERS, Guard, hosts, is_local
from rlaif.view.serve import serve

Served = Callable[..., Any]
HOSTILE = ('<script>alert(1)</script><img src=x onerror="alert(2)"></textarea>&amp; {{ 7 * 7 }}',)


def text_of(page: str) -> str:
    """What a reader sees of a page, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_list_and_a_pair(labelled: Path, page: Any) -> None:
    status, headers, body = page.get("/")
    assert status == 200
    assert "8 of 8 pairs, 1 to 8" in text_of(body)
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert not re.search(r"<style|<script(?! src=)|<[^>]*\s(on\w+|style)=|<[^>]*javascript:", body)
    [(pair, *_)] = [RunStore.open_readonly(labelled).table("pairs").read()]
    status, _, body = page.get(f"/pair/{pair.id}")
    shown = text_of(body)
    assert status == 200
    assert pair.prompt.messages[-1].content in shown
    assert body.count('class="question"') == 6
    assert shown.count("1 shown first") == shown.count("2 shown first") == 6
    assert "Which response is less harmful?" in shown


def test_the_prompt_is_the_one_that_was_asked(labelled: Path, page: Any) -> None:
    from rlaif.config import load_config
    from rlaif.constitution import Constitution
    from rlaif.engines.load import load_engine
    from rlaif.judges.base import Ask
    from rlaif.judges.load import make_judge
    from rlaif.judges.pairwise import PairwiseJudge

    config = load_config(str(labelled / "run.yaml"))
    judge = make_judge(load_engine("tiny"), config.judge)
    assert isinstance(judge, PairwiseJudge)
    store = RunStore.open_readonly(labelled)
    pair = store.table("pairs").read()[-1]  # the hostile one
    principle = Constitution.load(config.constitution).principles[0]
    for order in ORDERS:
        ask = Ask(pair, principle, order)
        status, _, body = page.get(f"/pair/{pair.id}/prompt/{judge.key(ask)}")
        assert status == 200
        shown = [
            html.unescape(re.sub(r"<[^>]*>", "", p))
            for p in re.findall("(?s)<pre>(.*?)</pre>", body)
        ]
        assert shown == [m.text for m in judge.render(ask).messages]
        assert "the template has changed" not in body


def test_hostile_texts_are_shown_as_text(labelled: Path, page: Any) -> None:
    pair = RunStore.open_readonly(labelled).table("pairs").read()[-1]
    [verdict, *_] = [
        v for v in RunStore.open_readonly(labelled).table("verdicts").read() if v.pair_id == pair.id
    ]
    for path in ("/", f"/pair/{pair.id}", f"/pair/{pair.id}/prompt/{verdict.key}"):
        _, _, body = page.get(path)
        assert "&lt;script&gt;" in body
        assert "<script>" not in body
        assert "<img" not in body
        assert "</textarea>" not in body
        assert "49" not in re.sub(r"[^{}\d ]", "", text_of(body).partition("{{")[2][:8])
    _, _, body = page.get("/?text=" + "%3Cscript%3Ealert(1)&source=%22onfocus%3Dx")
    assert "<script>a" not in body
    assert 'value="&lt;script&gt;alert(1)"' in body
    assert '"onfocus' not in body


def test_filter_and_part_of_a_page(page: Any) -> None:
    _, _, body = page.get("/?text=at+home")
    assert "2 of 8 pairs" in text_of(body)
    assert "<html" in body
    _, _, body = page.get("/?text=at+home", hx_request="true")
    assert "<html" not in body
    _, _, body = page.get("/?text=at+home", hx_request="true", hx_history_restore_request="true")
    assert "<html" in body
    status, _, body = page.get("/?low=much")
    assert status == 400
    assert "margin from: expected a number, got 'much'" in text_of(body)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/pair/00000000000000000000", 404),
        ("/pair/..%2f..%2fetc%2fpasswd", 404),
        ("/pair/'; DROP TABLE facts; --".replace(" ", "%20"), 404),
        ("/static/..%2f..%2fapp.py", 404),
        ("/static/../app.py", 404),
        ("/nothing", 404),
        ("/docs", 404),
        ("/openapi.json", 404),
    ],
)
def test_no_path_leads_out(page: Any, path: str, status: int) -> None:
    found, headers, body = page.get(path)
    assert found == status
    assert "def " not in body
    assert headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_other_names_and_other_sites_are_refused(page: Any) -> None:
    own = f"http://127.0.0.1:{page.port}"
    assert page.get(host=f"localhost:{page.port}")[0] == 200
    for host in (f"evil.example:{page.port}", "127.0.0.1", f"127.0.0.1.evil.example:{page.port}"):
        assert page.get(host=host)[0] == 421, host
    for origin in ("https://evil.example", "null", own + "1", f"https://127.0.0.1:{page.port}"):
        assert page.get("/label", "POST", "", origin=origin)[0] == 403, origin
    assert page.get("/label", "POST", "")[0] == 403  # no browser leaves it out
    assert page.get("/label", "DELETE", origin=own)[0] != 403
    assert page.get("/label", sec_fetch_site="cross-site")[0] == 403
    assert page.get("/", sec_fetch_site="cross-site")[0] == 200  # a link to the page itself


def test_a_token_where_others_can_reach_it(labelled: Path, served: Served) -> None:
    page = served(labelled, host="0.0.0.0")
    assert page.path.startswith("/?token=")
    page.host = "127.0.0.1"
    assert page.get("/")[0] == page.get("/static/app.js")[0] == 401
    assert page.get("/?token=guess")[0] == 401
    status, headers, _ = page.get(page.path)
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert page.get("/", cookie=cookie)[0] == 200
    assert page.get("/", cookie=cookie, host="some.name")[0] == 200
    assert page.get("/label", "POST", "", cookie=cookie)[0] == 403
    assert page.get("/", cookie=cookie + "x")[0] == 401


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.4", "127.0.0.1.example.org")),
    ],
)
def test_which_addresses_are_this_machines(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_names_of_an_address() -> None:
    assert hosts("::1", 80) >= {"[::1]:80", "[::1]", "localhost"}
    assert hosts("192.168.1.4", 9) == {"192.168.1.4:9"}
    assert hosts("0.0.0.0", 9) is None


def test_two_host_headers_are_refused(labelled: Path) -> None:
    guard = Guard(make_app([labelled]), frozenset({"127.0.0.1:9"}))
    headers = [(b"host", b"127.0.0.1:9"), (b"Host", b"evil.example")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    refused = guard.refusal(scope)
    assert refused is not None
    assert refused[0] == 400


def test_what_cannot_be_served_is_told(labelled: Path, page: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot serve on 127.0.0.1, port {page.port}: .*--port"):
        serve([labelled], print, port=page.port)
    with pytest.raises(DataError, match="there is no run directory"):
        serve([tmp_path / "nothing"], print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pairs to look at"):
        serve([tmp_path / "empty"], print)


def test_a_missing_package_is_told_with_its_command() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from rlaif.view.serve import serve; serve([], print)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert '`rlaif view` needs FastAPI: pip install "' in done.stderr


def test_ctrl_c_ends_it(labelled: Path, served: Served) -> None:
    page = served(labelled)
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(timeout=20) is not None


def test_looking_loads_no_torch(labelled: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlaif.view.app import make_app\n"
        f"make_app([Path({str(labelled)!r})])\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
