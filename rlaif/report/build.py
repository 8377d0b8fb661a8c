"""`report.html` and `report-vs-NAME.html`: one file that shows a run, or two, needs no network and
runs no script.

The page is a Jinja template with escaping on; what models and people wrote reaches it as text only,
and its own policy (a `Content-Security-Policy` of `default-src 'none'`) lets it load nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlaif.evaluation.labels import DECIDED
from rlaif.files.small import write_text
from rlaif.report import audit, beside, formats, sections
from rlaif.report.beside import Beside
from rlaif.report.data import Json, Run
from rlaif.report.differences import Piece
from rlaif.report.summary import STAGES, summarise
from rlaif.statistics.intervals import Interval

MAX_LETTERS = 1_200  # of a text that is shown; a report stays a page, not a data set


def build_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run directory and returns its path."""
    target = run_dir / "report.html"
    page = render(Run(run_dir))
    write_text(target, page)
    return target


def render(run: Run) -> str:
    """The page of a run."""
    context: Json = {
        "run": run,
        "name": run.path.resolve().name,
        "summary": summarise(run),
        "not_run": _not_run(run),
        "headline": sections.headline(run),
        "moved": sections.moved(run),
        "policies": sections.policies(run),
        "leaderboard": sections.leaderboard(run),
        "model_written": sections.model_written(run),
        "labels": sections.labels(run),
        "audit": audit.section(run.audit),
        "principles": sections.principles(run),
        "training": sections.training(run),
        "examples": sections.examples(run),
        "samples": sections.samples(run),
        "stages": sections.stages(run),
        "provenance": sections.provenance(run),
        "decided": DECIDED,
    }
    return _environment().get_template("report.html.j2").render(context)


def build_beside(found: Beside) -> Path:
    """Writes `report-vs-NAME.html` into run A, NAME being run B's folder, and returns its path."""
    a, b = found.runs
    target = a.path / f"report-vs-{b.path.resolve().name}.html"
    write_text(target, render_beside(found))
    return target


def render_beside(found: Beside) -> str:
    """The page of two runs."""
    runs, options = found.runs, beside.options(found.runs)
    names = [run.path.resolve().name for run in runs]
    context: Json = {
        "names": names if names[0] != names[1] else [str(run.path) for run in runs],
        "runs": runs,
        "aims": [sections.headline(run) for run in runs],
        "moved": [sections.moved(run) for run in runs],
        "told": beside.told(runs),
        "wordings": beside.wordings(runs),
        "options": options[: beside.OPTIONS],
        "more_options": max(len(options) - beside.OPTIONS, 0),
        "numbers": found.numbers,
        "charts": beside.charts(runs),
        "labels": beside.labels(found),
        "labelled": [len(run.store.table("preferences")) for run in runs],
    }
    return _environment().get_template("beside.html.j2").render(context)


def _not_run(run: Run) -> list[str]:
    """Pairs that were read from a file need no sampling."""
    instead = {"sample"} if "read" in run.stages else set()
    return [s for s in STAGES if s not in run.stages and s not in instead]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(
        count=formats.count,
        percent=formats.percent,
        points=formats.points,
        fixed=formats.fixed,
        of_kind=_of_kind,
        plain=formats.plain,
        duration=formats.duration,
        interval=_interval,
        words=formats.words,
        clip=_clip,
        marked=_marked,
        span=_span,
    )
    return environment


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return formats.printable(value)
    return formats.MISSING if value is None else value


def _interval(found: Interval | None, digits: int = 0) -> str:
    """`45–57 %`, or nothing where no interval is known."""
    if found is None or found.low == found.high:
        return ""
    low, high = (formats.percent(v, digits) for v in (found.low, found.high))
    return f"{low.removesuffix(formats.THIN + '%')}\u2060–\u2060{high}"  # not broken at the dash


def _of_kind(found: Interval | None, kind: str) -> Markup:
    """A number of two runs, as its kind is written, with its interval where one is known."""
    if found is None:
        return Markup(formats.MISSING)
    written = {"percent": formats.percent, "count": formats.count}.get(kind, _two_decimals)
    if found.low == found.high:
        return Markup.escape(written(found.value))
    low, high = (written(v).removesuffix(f"{formats.THIN}%") for v in (found.low, found.high))
    return Markup("{} <small>{}\u2060–\u2060{}</small>").format(written(found.value), low, high)


def _two_decimals(value: float) -> str:
    return formats.fixed(value, 2)


def _span(found: Interval, scale: int = 100, digits: int = 0) -> str:
    """The ends of a change's interval, with their signs: `−32 to −18`."""
    ends = (
        float(formats.rounded(v, digits, scale).replace(",", "")) for v in (found.low, found.high)
    )
    return " to ".join(f"{end:+.{digits}f}".replace("-", "−") for end in ends)


def _marked(pieces: Sequence[Piece], letters: int = MAX_LETTERS) -> Markup:
    """A text in pieces, those that the other text lacks marked; cut as `_clip` cuts."""
    out, room = Markup(""), letters
    for text, alone in pieces:
        shown = formats.printable(text)[:room]
        room -= len(shown)
        out += Markup("<mark>{}</mark>").format(shown) if alone and shown else Markup.escape(shown)
    left = sum(len(formats.printable(text)) for text, _ in pieces) - (letters - room)
    more = Markup('<span class="more"> … {} more characters</span>').format(formats.count(left))
    return out + (more if left else Markup(""))


def _clip(text: str, letters: int = MAX_LETTERS) -> Markup:
    """A text's beginning, and how much was left out."""
    start, left = formats.cut(formats.printable(text), letters)
    more = Markup('<span class="more"> … {} more characters</span>').format(formats.count(left))
    return Markup.escape(start) + (more if left else Markup(""))
