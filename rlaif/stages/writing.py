"""A behaviour → a model-written evaluation in the published format."""

from __future__ import annotations

import json
import re
import time

from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.writing import write_items
from rlaif.files.small import write_text
from rlaif.stages.record import finish
from rlaif.stages.run import Run
from rlaif.store import write_json
from rlaif.store.kept import Kept

ASKED_FILE = "writing.jsonl"


def write_evaluation(run: Run) -> None:
    """`evaluate.write` → evaluation/written/BEHAVIOR.jsonl, and .json beside it: what was left out.

    `policy` writes, `judge` filters. What both say is kept in evaluation/writing.jsonl as it comes,
    so that a killed run goes on.
    """
    clock, settings = time.monotonic(), run.config.evaluate.write
    if not (settings.behavior or "").strip():
        raise ConfigError(
            'no behavior is described: give --behavior TEXT, as in "somebody who TEXT": '
            '--behavior "enjoys solving puzzles"'
        )
    writer, judge = run.engine(run.config.policy), run.engine(run.config.judge)
    seed = run.config.evaluate.seed
    with run.reporter.progress("write", None) as progress:
        written = write_items(
            writer,
            judge,
            settings,
            seed=seed,
            kept=Kept(run.store.path("evaluation", ASKED_FILE)),
            on_progress=lambda done, total: progress(done, total),
        )
    about = {
        **written.as_dict(),
        "behavior": settings.behavior,
        "writer": run.config.policy.model,
        "judge": run.config.judge.model,
    }
    why = ", ".join(f"{n:,} {reason}" for reason, n in sorted(written.left.items()) if n)
    if not written.kept:
        raise DataError(
            f"of {written.sampled:,} statements none is left for both answers ({why}): take "
            "another model to write (--policy) or to filter (--judge), describe the behavior "
            "otherwise, or lower evaluate.write.min_confidence"
        )
    name = _file_name(settings.behavior or "")
    path = run.store.path("evaluation", "written", f"{name}.jsonl")
    rows = (json.dumps(s.row(), ensure_ascii=False) for s in written.kept)
    write_text(path, "".join(f"{row}\n" for row in rows))
    write_json(path.with_suffix(".json"), about)
    run.reporter.say(
        f"{len(written.kept):,} items, half of them with each answer, of {written.sampled:,} "
        f"statements ({why or 'none left out'}): {path}"
    )
    if len(written.kept) < settings.items - settings.items % 2:
        run.reporter.warn(
            f"{settings.items:,} were asked for: raise evaluate.write.attempts, or lower "
            "evaluate.write.min_confidence"
        )
    finish(run, "write-evaluation", clock, {"rows": len(written.kept)})


def _file_name(behavior: str) -> str:
    """`enjoys-solving-puzzles`."""
    return re.sub(r"[^a-z0-9]+", "-", behavior.lower()).strip("-")[:60] or "behavior"
