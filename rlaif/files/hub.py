"""Whether the Hugging Face hub is within reach, asked once: without it, nothing waits for it. And
how a folder goes there.

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

from rlaif.errors import ConfigError, EngineError
from rlaif.files.small import reason

SECONDS = 1.5  # to look up the hub's address and to connect
_YES = frozenset({"1", "ON", "YES", "TRUE"})
_NOT_PUSHED = ["checkpoints/**", "run.key"]  # a run's own business
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


def require_reach(name: str) -> None:
    """ConfigError for a name that no repository can have, EngineError where the hub is away: before
    anything is made to be pushed."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise ConfigError(f"--push-to {name}: expected OWNER/NAME, such as me/my-preferences")
    if offline():
        raise EngineError(
            f"cannot push to {name}: {_host()} is out of reach, or HF_HUB_OFFLINE is set. Connect "
            "and run the command again, or name a folder and upload that: `hf upload`",
            retryable=True,
        )


def push_folder(folder: Path, name: str, kind: str, *, private: bool = False) -> str:
    """Uploads a folder to the hub as the repository `name` (`OWNER/NAME`) of a `kind`, `dataset` or
    `model`, made if it is not there; returns its address.

    The hub is that of HF_ENDPOINT, the token that of HF_TOKEN or of `hf auth login`. EngineError
    where the hub refuses or breaks off.
    """
    require_reach(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=_endpoint())
    try:
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            ignore_patterns=_NOT_PUSHED,
            commit_message="Uploaded by rlaif",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = ": set HF_TOKEN, or log in with `hf auth login`" if status in (401, 403) else ""
        raise EngineError(f"{_host()} refuses {name} ({status}){hint}. {error}") from error
    except Exception as error:  # its client's own, whose library changes with the hub's version
        raise EngineError(
            f"cannot push to {name}: {reason(error)}; try again", retryable=True
        ) from error
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{_endpoint()}/{prefix}{name}"
