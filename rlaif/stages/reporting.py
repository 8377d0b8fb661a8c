"""What a run holds → report.html and summary.json."""

from __future__ import annotations

from pathlib import Path

from rlaif.errors import DataError
from rlaif.files.small import reason
from rlaif.stages.run import Reporter, Run
from rlaif.store import Superseded

BEGINNINGS = 5  # times that a report is begun anew when its rows are replaced


def report(run: Run) -> None:
    """report.html and summary.json from what the run holds."""
    write_report(run.store.root, run.reporter)


def _unlike(root: Path, error: Exception) -> DataError:
    return DataError(
        f"no report can be made of {root}: manifest.json, or a file of evaluation/ or models/, is "
        f"not what this version writes ({reason(error)}). Run the stage again that wrote it, or "
        "tell of it: RLAIF_TRACEBACK=1 shows where"
    )


def write_report(root: Path, reporter: Reporter) -> None:
    """The same, for a run directory that is only looked at."""
    from jinja2 import TemplateError

    from rlaif.report.build import build_report
    from rlaif.report.summary import build_summary

    for left in range(BEGINNINGS, -1, -1):
        try:
            build_summary(root)
            page = build_report(root)
            break
        except Superseded:  # by a writer at work beside
            if not left:
                raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise _unlike(root, error) from error
        except TemplateError as error:
            raise _unlike(root, error) from error
    reporter.say(f"report: {page}")
