"""The page's addresses, each with what it shows. Everything is rendered here, on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

from rlaif.errors import ConfigError, RlaifError
from rlaif.records import Pair
from rlaif.view import filters
from rlaif.view.index import Index, require_pairs
from rlaif.view.pages import PAIR_ID, environment, pair_page
from rlaif.view.prompts import Prompts

HERE = Path(__file__).parent
PAGES = [("/", "Pairs")]
LARGEST = 64 * 1024  # bytes of a form


class NotThere(Exception):
    """What an address names is not in the run."""


class Site:
    """The run or runs that the page shows, and how a page is made of a template."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.indexes = [Index(run) for run in runs]
        self.index = self.indexes[0]
        for index in self.indexes:
            require_pairs(index)
        self._templates = environment()

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page by its template."""
        shared = {
            "names": [index.root.resolve().name for index in self.indexes],
            "constitution": self.index.made.asked.constitution,
            "pages": PAGES,
        }
        text = self._templates.get_template(name).render({**shared, **values})
        return HTMLResponse(text, status, headers={"cache-control": "no-store"})

    def pair(self, name: str) -> Pair:
        """A pair by its id. NotThere where there is none."""
        found = self.index.pairs([name]) if PAIR_ID.fullmatch(name) else {}
        if name not in found:
            raise NotThere(f"no pair {name} in {self.index.root}")
        return found[name]


async def form(request: Request) -> dict[str, str]:
    """The fields of a form. ConfigError for one that is too large."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise ConfigError(f"a form of more than {LARGEST:,} bytes: write less")
    return dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True))


def make_app(runs: Sequence[Path]) -> FastAPI:
    """The page of one run, or of two. `rlaif.view.security.Guard` goes round it."""
    site = Site(runs)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=HERE / "static"), "static")
    _errors(app, site)
    _reading(app, site)
    return app


def _errors(app: FastAPI, site: Site) -> None:
    @app.exception_handler(RlaifError)
    def refused(request: Request, error: RlaifError) -> Response:
        del request
        return site.page("error.j2", 400, title="This cannot be done", text=str(error))

    @app.exception_handler(NotThere)
    def not_there(request: Request, error: NotThere) -> Response:
        del request
        return site.page("error.j2", 404, title="Not there", text=str(error))

    @app.exception_handler(404)
    def no_page(request: Request, error: Exception) -> Response:
        del error
        return site.page("error.j2", 404, title="Not there", text=f"no page {request.url.path}")


def _reading(app: FastAPI, site: Site) -> None:
    @app.get("/")
    def listed(request: Request) -> Response:
        query = request.query_params
        shown = _listed(site, query)
        asked = request.headers
        part = "hx-request" in asked and "hx-history-restore-request" not in asked
        return site.page("rows.j2" if part else "list.j2", **shown)

    @app.get("/pair/{name}")
    def pair(name: str) -> Response:
        return site.page("pair.j2", **pair_page(site.index, site.pair(name)))

    @app.get("/pair/{name}/prompt/{key}")
    def prompt(name: str, key: str) -> Response:
        """The prompt of one verdict, with the judge's own template."""
        found = site.pair(name)
        for verdict, juror in site.index.verdicts(name):
            if verdict.key == key:
                together = _together(site, found)
                maker = Prompts(site.index.store, site.index.manifest())
                shown = maker.of(found, verdict, juror or "", together)
                return site.page("prompt.j2", shown=shown)
        raise NotThere(f"no verdict {key[:40]} on this pair")

    @app.get("/healthy")
    def healthy() -> Response:
        return PlainTextResponse("ok\n")


def _listed(site: Site, query: Mapping[str, str]) -> dict[str, Any]:
    made = site.index.made
    wanted = filters.Filter.of(query)
    number = query.get("page", "1")
    at = int(number) if number.isdecimal() and 0 < int(number) < 10**9 else 1
    total, rows = filters.page(made, wanted, at)
    texts = site.index.pairs([row["id"] for row in rows])
    return {
        "made": made,
        "filter": wanted,
        "choices": filters,
        "total": total,
        "rows": [row for row in rows if row["id"] in texts],
        "texts": texts,
        "at": at,
        "last": max(1, -(-total // filters.PAGE)),
        "query": urlencode(wanted.given),
    }


def _together(site: Site, pair: Pair) -> list[str]:
    """All completions of the pair's prompt, for a judge that lists them."""
    if not any(judge.get("method") == "listwise" for _, judge in site.index.made.asked.judges):
        return []
    made = site.index.made
    said = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
    rows = made.run(f"SELECT first, second FROM {made.shards('pairs')} WHERE prompt = ?", [said])
    return sorted({row[side] for row in rows for side in ("first", "second")})
