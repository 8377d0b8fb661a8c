"""Starts the page: `rlaif view`."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.errors import ConfigError, missing_extra

PORT = 8765


def serve(
    runs: Sequence[Path],
    say: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
) -> None:
    """Serves the page of one run, or of two side by side, until it is interrupted.

    Bound to an address that other machines reach, it asks for a token, which is in the address
    that is told by `say`. Port 0 takes a free one. Raises ConfigError where a package is missing or
    the port is taken, DataError where there is no such run.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        package = "FastAPI" if "fastapi" in str(error) else "Uvicorn"
        raise missing_extra(package, "view", "`rlaif view`") from error
    from rlaif.view.app import make_app
    from rlaif.view.security import Guard, hosts, is_local

    token = None if is_local(host) else secrets.token_urlsafe(24)
    app = make_app(runs)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot serve on {host}, port {port}: {error.strerror or error}. Give another by "
            "--port, or 0 for any that is free"
        ) from error
    port = bound.getsockname()[1]
    guarded = Guard(app, hosts(host, port), token)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    say(f"{' and '.join(map(str, runs))}: open {address} (Ctrl-C ends it)")
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    with bound:
        uvicorn.Server(config).run(sockets=[bound])
