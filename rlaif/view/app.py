"""The page's addresses, each with what it shows. Everything is rendered here, on the server."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from rlaif.errors import ConfigError, RlaifError
from rlaif.records import ORDERS, Pair
from rlaif.report.data import Run as StoredRun
from rlaif.report.differences import differences
from rlaif.report.sections import training
from rlaif.store.people import Choice, Decision, People
from rlaif.view import filters
from rlaif.view.comparing import Compared
from rlaif.view.index import Index, require_pairs
from rlaif.view.labelling import (
    NOTE,
    QUEUES,
    REASONS,
    Next,
    Rated,
    Ratings,
    next_pair,
    require_name,
    shown_order,
)
from rlaif.view.pages import PAIR_ID, environment, pair_page
from rlaif.view.prompts import Prompts
from rlaif.view.rejudging import LETTERS, SAMPLES, SIZES, Rejudger, changes, sample, side

HERE = Path(__file__).parent
PAGES = [
    ("/", "Pairs"),
    ("/label", "Label"),
    ("/principles", "Principles"),
    ("/training", "Training"),
]
NONCE = re.compile(r"[0-9a-f]{20}")  # a decision's id, from the form
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
        self.people = People(self.index.root)
        self.rated = Rated()
        self.rejudger = Rejudger(self.index.root)
        self.compared = Compared(*self.indexes) if len(self.indexes) == 2 else None
        self._templates = environment()

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page by its template."""
        shared = {
            "names": [index.root.resolve().name for index in self.indexes],
            "constitution": self.index.made.asked.constitution,
            "pages": PAGES + [("/compare", "Compare")] * (self.compared is not None),
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
    _labelling(app, site)
    _comparing(app, site)
    _rejudging(app, site)
    _training(app, site)
    return app


def _errors(app: FastAPI, site: Site) -> None:
    @app.exception_handler(RlaifError)
    def refused(request: Request, error: RlaifError) -> Response:
        del request
        return site.page("error.j2", 400, title="This cannot be done", text=str(error))

    @app.exception_handler(OSError)
    def gone(request: Request, error: OSError) -> Response:
        del request
        [why, *_] = str(error).splitlines() or [type(error).__name__]
        text = f"files of the run are gone, or were replaced just now ({why}): load the page again"
        return site.page("error.j2", 503, title="Not now", text=text)

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


def _labelling(app: FastAPI, site: Site) -> None:
    @app.get("/label")
    def label(request: Request) -> Response:
        query = request.query_params
        if not query.get("who", "").strip():
            return site.page("who.j2", ratings=_ratings(site), pair=query.get("pair", ""))
        who = require_name(query["who"])
        work = _work(site, who, query.get("queue", "mixed"), query.get("pair", ""))
        return site.page("label.j2", **work)

    @app.post("/label")
    async def decide(request: Request) -> Response:
        given = await form(request)
        who, queue = require_name(given.get("who", "")), given.get("queue", "mixed")
        again = await run_in_threadpool(_decide, site, who, given)
        if "hx-request" not in request.headers:
            there = {"who": who, "queue": queue, **({"pair": again} if again else {})}
            return RedirectResponse("/label?" + urlencode(there), 303)
        work = await run_in_threadpool(_work, site, who, queue, again)
        return site.page("work.j2", **work)


def _decide(site: Site, who: str, given: Mapping[str, str]) -> str:
    """Saves what a person did; returns the pair to show again after one was taken back, else ""."""
    said, note = given.get("choice", ""), given.get("note", "").strip()
    if len(note) > NOTE:
        raise ConfigError(f"a note has at most {NOTE:,} letters, got {len(note):,}")
    if said == "undo":
        last = site.people.last(who)
        if last is None:
            return ""
        site.people.add(Decision(who, last.pair_id, last.order, "undo", undoes=last.id))
        return last.pair_id
    pair = site.pair(given.get("pair", ""))
    order = shown_order(who, pair.id)
    sides = {"a": "first", "b": "second"} if order == ORDERS[0] else {"a": "second", "b": "first"}
    choice = {**sides, "tie": "tie", "skip": "skip"}.get(said)
    name = given.get("id", "")
    if choice is None or not NONCE.fullmatch(name):
        raise ConfigError(f"expected a choice of a, b, tie, skip or undo, got '{said[:40]}'")
    queue = given.get("why", "") if given.get("why") in REASONS else ""
    site.people.add(
        Decision(who, pair.id, order, cast(Choice, choice), note=note, queue=queue, id=name)
    )
    return ""


def _work(site: Site, who: str, queue: str, wanted: str) -> dict[str, Any]:
    """The next pair of a person, or the one that is wanted, and how far they have come."""
    made = site.index.made
    mine = {d.pair_id: d for d in site.people.standing().values() if d.who == who}
    found: Next | None
    if wanted:
        said = [d for d in site.people.read() if (d.who, d.pair_id) == (who, wanted)]
        before = said[-1].queue if said else ""  # another's random pair was not drawn for this one
        found = Next(site.pair(wanted).id, before or "chosen")
    else:
        found = next_pair(made, mine, queue)
    pair = None if found is None else site.pair(found.pair_id)
    order = None if pair is None else shown_order(who, pair.id)
    first, second = ("", "") if pair is None else (pair.first, pair.second)
    if order == ORDERS[1]:
        first, second = second, first
    left, right = differences(first, second)
    return {
        "who": who,
        "queue": queue,
        "queues": QUEUES,
        "pair": pair,
        "why": found.queue if found else "",
        "again": mine.get(found.pair_id) if found else None,
        "sides": [("A", left, first), ("B", right, second)],
        "id": secrets.token_hex(10),
        "done": len(mine),
        "total": made.pairs,
        "ratings": _ratings(site),
        "principles": made.asked.principles,
    }


def _ratings(site: Site) -> Ratings:
    return site.rated(site.index.made, site.people.read())


def _comparing(app: FastAPI, site: Site) -> None:
    @app.get("/compare")
    def compare() -> Response:
        if site.compared is None:
            raise NotThere("two runs are compared by `rlaif view A B`; this is the page of one")
        return site.page("compare.j2", **site.compared.page())


def _rejudging(app: FastAPI, site: Site) -> None:
    @app.get("/principles")
    def principles() -> Response:
        asked = site.index.made.asked.principles
        return site.page("principles.j2", principles=asked, samples=SAMPLES, sizes=SIZES)

    @app.post("/principles")
    async def rejudge(request: Request) -> Response:
        given = await form(request)
        shown = await run_in_threadpool(_rejudged, site, given)
        part = "hx-request" in request.headers
        return site.page("rejudged.j2" if part else "rejudged_page.j2", **shown)


def _rejudged(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """The labels of a sample before and after a principle is reworded."""
    principle, compare = given.get("principle", ""), given.get("compare", "").strip()
    size = given.get("size", "")
    if not compare or len(compare) > LETTERS:
        raise ConfigError(f"a principle's text has 1 to {LETTERS:,} letters, got {len(compare):,}")
    number = int(size) if size.isdecimal() and len(size) < 4 else 0
    ids = sample(site.index.made, principle, given.get("sample", ""), number)
    told = site.rejudger.ask(principle, compare, ids)
    texts = site.index.pairs(ids)
    rows = [{**row, "changed": changes(row["before"], row["after"])} for row in told["pairs"]]
    rows.sort(key=lambda row: not row["changed"])
    opinions = [(row["before"]["opinion"], row["after"]["opinion"]) for row in rows]
    return {
        "principle": principle,
        "compare": compare,
        "rows": [row for row in rows if row["id"] in texts],
        "texts": texts,
        "judged": told["judged"],
        "changed": sum(row["changed"] for row in rows),
        "turned": sum(
            a is not None and b is not None and (a - 0.5) * (b - 0.5) < 0 for a, b in opinions
        ),
        "side": side,
    }


def _training(app: FastAPI, site: Site) -> None:
    @app.get("/training")
    def shown(request: Request) -> Response:
        part = "hx-request" in request.headers
        return site.page("curves.j2" if part else "training.j2", **_curves(site))


def _curves(site: Site) -> dict[str, Any]:
    """The curves of all trainings, finished or not, from their journals."""
    found = training(StoredRun(site.index.root))
    folder = site.index.root / "models"
    working = [t["stage"] for t in found if not (folder / t["stage"] / "metrics.json").is_file()]
    return {"trainings": found, "working": working}


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
