"""What a run holds → report.html and summary.json; two runs → report-vs-NAME.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rlaif.errors import ConfigError, DataError
from rlaif.files.small import reason, write_json
from rlaif.stages.run import Reporter, Run
from rlaif.store import Superseded

T = TypeVar("T")
BEGINNINGS = 5  # times that a report is begun anew when its rows are replaced


def report(run: Run) -> None:
    """report.html and summary.json from what the run holds."""
    write_report(run.store.root, run.reporter)


def write_report(root: Path, reporter: Reporter) -> None:
    """The same, for a run directory that is only looked at."""
    from rlaif.report.build import build_report
    from rlaif.report.summary import build_summary

    def write() -> Path:
        build_summary(root)
        return build_report(root)

    reporter.say(f"report: {_made(write, str(root))}")


def write_beside(a: Path, b: Path, reporter: Reporter, to: Path | None = None) -> None:
    """report-vs-NAME.html in run A: run B, whose folder is NAME, beside it. Nothing else is written
    into either, but the page's numbers into the file `to` where it is given."""
    from rlaif.report.beside import Beside, beside
    from rlaif.report.build import build_beside
    from rlaif.report.data import Run as Stored

    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} and {b} are the same run: name two, or only one for its own report")

    def write() -> tuple[Beside, Path]:
        found = beside(Stored(a), Stored(b))
        return found, build_beside(found)

    found, page = _made(write, f"{a} and {b}")
    pairs = found.comparison
    if pairs.both:
        reporter.say(f"{pairs.both:,} pairs labelled in both, {pairs.flip_count:,} flipped")
    else:
        reporter.warn("no pair is labelled in both: the page compares no labels")
    if to is not None:
        write_json(to, found.as_json())
    reporter.say(f"report: {page}")


def _made(make: Callable[[], T], what: str) -> T:
    """What is made of runs, begun anew where a writer beside replaces their rows."""
    from jinja2 import TemplateError

    for left in range(BEGINNINGS, -1, -1):
        try:
            return make()
        except Superseded:
            if not left:
                raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise _unlike(what, error) from error
        except TemplateError as error:
            raise _unlike(what, error) from error
    raise AssertionError("the last time is returned or raised")


def _unlike(what: str, error: Exception) -> DataError:
    return DataError(
        f"no report can be made of {what}: manifest.json, or a file of evaluation/ or models/, is "
        f"not what this version writes ({reason(error)}). Run the stage again that wrote it, or "
        "tell of it: RLAIF_TRACEBACK=1 shows where"
    )
