"""What a run holds → report.html and summary.json."""

from __future__ import annotations

from pathlib import Path

from rlaif.stages.run import Reporter, Run
from rlaif.store import Superseded

BEGINNINGS = 5  # times that a report is begun anew when its rows are replaced


def report(run: Run) -> None:
    """report.html and summary.json from what the run holds."""
    write_report(run.store.root, run.reporter)


def write_report(root: Path, reporter: Reporter) -> None:
    """The same, for a run directory that is only looked at."""
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
    reporter.say(f"report: {page}")
