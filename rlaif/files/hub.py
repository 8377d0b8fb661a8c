"""Whether the Hugging Face hub is within reach, asked once: without it, nothing waits for it.

The hub's library tries a name five times over, half a minute in all, before it says that there is
no network. Here a second tells, and what is missing is told in one sentence; what lies in the cache
is taken from there.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from functools import cache
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from rlaif.errors import EngineError

SECONDS = 1.5  # to look up the hub's address and to connect
_YES = frozenset({"1", "ON", "YES", "TRUE"})
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def offline() -> bool:
    """Whether the hub cannot be asked: so set by HF_HUB_OFFLINE, or out of reach.

    Then the hub's own library is told so too, for this process and those it starts.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        return True
    if _reached(*_first_hop()):
        return False
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return True


def check_name(model: str) -> None:
    """EngineError for a hub's name that is neither in the cache nor to be had now."""
    if Path(model).exists() or not _NAME.fullmatch(model):
        return
    if not offline() or _cached(model):
        return
    raise EngineError(
        f"cannot load the model '{model}': there is no such folder here, it is not in the hub's "
        f"cache ({_cache()}), and {_host()} is out of reach. Give a folder that holds a model, or "
        "connect to a network once (and unset HF_HUB_OFFLINE)"
    )


def _cached(model: str) -> bool:
    found = _cache() / ("models--" + model.replace("/", "--")) / "snapshots"
    return any(found.glob("*/*"))


def _cache() -> Path:
    """Where the hub's library keeps what it downloaded."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    found = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(found or f"{home}/hub")).expanduser()


def _host() -> str:
    return urlsplit(_endpoint()).hostname or "huggingface.co"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _first_hop() -> tuple[str, int]:
    """Host and port that a request to the hub goes to first: a proxy's, or the hub's own."""
    hub = urlsplit(_endpoint())
    names = (f"{hub.scheme}_proxy", "all_proxy")
    given = [os.environ.get(name) or os.environ.get(name.upper()) for name in names]
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    proxy = next(filter(None, given), None)
    if proxy and not _exempt(_host(), exempt):
        hub = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80)


def _exempt(host: str, exempt: str) -> bool:
    names = [name.strip().lstrip(".") for name in exempt.split(",") if name.strip()]
    return any(name == "*" or host == name or host.endswith("." + name) for name in names)


@cache
def _reached(host: str, port: int) -> bool:
    """Whether a connection opens. Looking up a name knows no time limit, hence the thread."""
    found = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=SECONDS).close()
        except OSError:
            return
        found.append(True)

    thread = Thread(target=connect, name="rlaif-hub", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return bool(found)
