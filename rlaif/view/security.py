"""Who may ask the page for what: the same browser window on the same machine, and nobody else.

A page on 127.0.0.1 can be reached by every web site that a browser shows: by a name that resolves
to 127.0.0.1 (DNS rebinding), or by a form that posts there. So the Host header must be one that the
page was started for, and what changes something must come from the page itself. What a model or a
person wrote is text: templates escape it, and the Content-Security-Policy runs no script and takes
no style but the package's own files. Where the page is bound to an address that others reach, a
token that the start printed is asked for.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

Scope = dict[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
COOKIE = "rlaif-view"
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address that a server is bound to."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def hosts(host: str, port: int) -> frozenset[str] | None:
    """The Host headers of a page bound to an address; None where it is bound to all of them, whose
    names nobody knows: there the token alone decides."""
    if host in ("0.0.0.0", "::"):
        return None
    own = f"[{host}]" if ":" in host else host
    names = {own, *LOCAL} if is_local(host) else {own}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses what does not come from the page itself, and puts the headers on every answer."""

    app: App
    hosts: frozenset[str] | None
    token: str | None = None

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        refused = self.refusal(scope)
        if refused is None:
            await self.app(scope, receive, answer)
            return
        status, text, more = refused
        plain = [(b"content-type", b"text/plain; charset=utf-8"), *more]
        await answer({"type": "http.response.start", "status": status, "headers": plain})
        await answer({"type": "http.response.body", "body": text.encode()})

    def refusal(self, scope: Scope) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Why a request is refused, with its status; None for one that is not."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key in ("host", "origin") and key in headers:
                return 400, f"two {key} headers\n", []
            headers[key] = value.decode("latin-1")
        host = headers.get("host", "")
        if self.hosts is not None and host.lower() not in self.hosts:
            return 421, f"this page is not served under the name {host!r}\n", []
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin", "")
            if origin.lower() != f"http://{host}".lower():
                return 403, f"a request from {origin or 'nowhere'} may change nothing here\n", []
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return 403, "another site may not open this\n", []
        return self._without_token(scope, headers)

    def _without_token(
        self, scope: Scope, headers: dict[str, str]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        if self.token is None or self._same(_cookie(headers.get("cookie", ""))):
            return None
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        if scope["method"] == "GET" and self._same(dict(query).get("token", "")):
            rest = urlencode([(k, v) for k, v in query if k != "token"])
            there = scope["path"] + ("?" + rest if rest else "")
            if there.startswith("//"):
                there = "/"
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            return 303, "", [(b"location", there.encode()), (b"set-cookie", cookie.encode())]
        return 401, "open the address that `rlaif view` printed, with its token\n", []

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
