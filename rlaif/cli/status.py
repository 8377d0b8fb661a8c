"""`rlaif status`: what a run holds, what in it is out of date and why, and what comes next."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlaif.cli.init import is_project, next_command
from rlaif.cli.options import OutOption, RunArgument, the_run


def status(run: RunArgument = None, out: OutOption = None) -> None:
    """Tell what a run holds and cost, what is out of date or to judge again, and what is next.

    Example: rlaif status runs/demo
    """
    from rlaif.cli.console import Terminal

    Terminal().say("\n".join(told(the_run(run, out))))


def told(root: Path) -> Iterator[str]:
    """The lines of `rlaif status`. Loads no model and writes nothing."""
    from rlaif.store import RunStore, lineage

    store = RunStore.open_readonly(root)
    manifest = store.read_manifest()
    yield _head(root, manifest)
    yield from _rows(store)
    for name, stage in (manifest.get("stages") or {}).items():
        if name == lineage.AUDIT and not lineage.present(store, name):
            continue  # told below: what it made is no longer there
        if isinstance(stage.get("seconds"), int | float):
            rows, seconds = stage.get("rows", 0), stage["seconds"]
            yield f"  stage {name:<12} {rows:>8,} rows, {seconds:,.1f} s{_spent(stage)}"
    stale = lineage.stale(store, manifest)
    files = lineage.changed_files(store, manifest)
    if stale:
        yield "out of date:"
        yield from (f"  {one.text}" for one in stale)
    yield from (f"no longer there: {text}" for text in lineage.removed(store, manifest))
    for name in files:
        yield f"changed since this run took it: {name}"
    if files or any(one.product == lineage.LABELS for one in stale):
        yield from _judged_again(root, manifest)
    stopped = _stopped(root)
    yield from stopped.values()
    made = {*(manifest.get("made") or {}), *stopped, lineage.PEOPLE, lineage.RAW}
    unknown = [name for name in lineage.contents(store) if name not in made]
    if unknown:
        yield f"not known what made of (by an older version): {', '.join(unknown)}"
    yield f"next: {_next(store, manifest, stale, files, [*stopped])}"


def _head(root: Path, manifest: dict[str, Any]) -> str:
    name = (manifest.get("constitution") or {}).get("name")
    judge = manifest.get("judge") or {}
    judges = ", ".join(judge.get("jury") or {}) or judge.get("model")
    parts = [f"constitution {name}" if name else "", f"judge {judges}" if judges else ""]
    return ": ".join([str(root), ", ".join(filter(None, parts)) or "nothing was run here yet"])


def _rows(store: Any) -> Iterator[str]:
    for name in ("prompts", "completions", "pairs", "verdicts", "preferences"):
        n = len(store.table(name))
        if not n:
            continue
        more = ""
        if name == "preferences":
            kinds = Counter(store.table(name).to_arrow(["status"])["status"].to_pylist())
            more = " (" + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) + ")"
        yield f"  {name:<18} {n:>8,} rows{more}"


def _spent(stage: dict[str, Any]) -> str:
    """What a stage cost beside its seconds, such as ", 3,060 requests"; empty of one without."""
    told = (
        ("requests", "requests"),
        ("submitted_tokens", "tokens submitted"),
        ("computed_tokens", "computed"),
        ("generated_tokens", "written"),
    )
    parts = [f"{stage[key]:,} {what}" for key, what in told if stage.get(key)]
    if stage.get("cost"):
        parts.append(f"{stage['cost']:,.4g} of money")
    return "".join(f", {part}" for part in parts)


def _judged_again(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What `rlaif label` would judge now, and its price at the rate of the last labelling."""
    from rlaif.errors import RlaifError
    from rlaif.report.formats import duration
    from rlaif.stages.stored import Stored

    try:
        stored = Stored(root)
        total, missing = stored.to_judge()
    except RlaifError as error:  # a constitution that cannot be read, say: the rest is told
        yield f"what would be judged again is not known: {error}"
        return
    n, most = missing.total(), "at most " if stored.judge_changed else ""
    text = f"`rlaif label` would judge {most}{n:,} of {total:,} verdicts"
    if n:
        text += ": " + ", ".join(f"{name} {k:,}" for name, k in missing.most_common())
    stage = (manifest.get("stages") or {}).get("label") or {}
    before = stage.get("new_rows") or stage.get("spent_on") or 0
    if n and before and stage.get("seconds") and not stored.judge_changed:
        share = n / before
        text += f"; about {duration(share * stage['seconds'])}"
        if stage.get("submitted_tokens"):
            text += f" and {round(share * stage['submitted_tokens']):,} tokens"
        if stage.get("cost"):
            text += f", {share * stage['cost']:,.4g} of money"
        text += ", at the rate of the last time"
    yield text + (" (`--dry-run` counts and times it)" if n else "")


def _stopped(root: Path) -> dict[str, str]:
    """The trainings that were begun and not ended, by their products, each with where it is."""
    from rlaif.files.small import is_file

    found = {}
    for key in sorted(root.glob("models/*/run.key")):
        folder = key.parent
        journal = folder / "training.jsonl"
        if is_file(folder / "metrics.json"):
            continue
        if not is_file(journal):
            if folder.name == "reward" and any(root.glob("features/*/*.rows")):
                found["models/reward"] = (
                    "stopped: training reward on a frozen trunk; goes on from the completions that "
                    "were read"
                )
            continue
        with suppress(OSError, LookupError, TypeError, ValueError):
            lines = [line for line in journal.read_text("utf-8").split("\n")[:-1] if line]
            total = json.loads(lines[-1])["total_steps"]
            sealed = folder.glob("checkpoints/checkpoint-*/digests.json")
            at = max((int(path.parent.name.rpartition("-")[2]) for path in sealed), default=0)
            where = f"goes on after step {at:,}" if at else "begins anew: no checkpoint was written"
            found[f"models/{folder.name}"] = (
                f"stopped: training {folder.name}, {len(lines):,} of {total:,} steps done; {where}"
            )
    return found


def _next(
    store: Any, manifest: dict[str, Any], stale: list[Any], files: list[str], stopped: list[str]
) -> str:
    """What makes the first thing again that is out of date, else the first not yet made."""
    from rlaif.config import load_config
    from rlaif.store import lineage

    out = f" --out {shlex.quote(str(store.root))}"
    path = store.path("run.yaml")
    if is_project(store.root):
        return next_command(store.root)
    if not path.is_file():
        return f"rlaif run{out}"
    config = load_config(str(path))
    made = lineage.contents(store)
    source = "" if config.pairs is None else f" --pairs {shlex.quote(config.pairs.path)}"
    label = f"rlaif label{source if lineage.PAIRS not in made else ''}{out}"
    if stale:
        first = stale[0].product
        if first == lineage.PAIRS and config.pairs is not None:
            return f"rlaif label{source}{out}"
        several = f" (all that follows from it: rlaif run{out})" if len(stale) > 1 else ""
        return lineage.command(first, store) + several
    if lineage.PAIRS not in made:
        return f"rlaif sample{out}" if config.pairs is None else label
    if lineage.LABELS not in made or files:
        return label
    if stopped:
        return lineage.command(stopped[0], store)
    trained = ("judge", "reward", "sft", "dpo", "ppo", "grpo", "rloo", "online_dpo")
    wanted = [name.replace("_", "-") for name in trained if getattr(config.train, name)]
    for name in wanted:
        if lineage.model(name) not in made:
            return f"rlaif train {name}{out}"
    policies = [name for name in wanted if name not in ("judge", "reward")]
    if policies and not lineage.present(store, lineage.EVALUATION):
        return f"rlaif eval winrate{out}"
    shown = _shown(store)
    if shown != lineage.state(store, manifest):
        return f"rlaif report {shlex.quote(str(store.root))}"
    return f"nothing: all is up to date; look at {store.path('report.html')}"


def _shown(store: Any) -> str | None:
    """The state of the run that its report shows."""
    from rlaif.errors import DataError
    from rlaif.files.small import read_object

    try:
        found = read_object(store.path("summary.json"), "`rlaif report`", {"state": str})
    except DataError:
        return None
    return str(found.get("state"))
