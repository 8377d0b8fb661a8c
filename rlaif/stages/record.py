"""What a stage leaves behind beside its rows: the manifest, run.yaml, rejected rows."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rlaif.config import to_yaml
from rlaif.engines.base import Usage
from rlaif.errors import DISTRIBUTION
from rlaif.places import keep
from rlaif.readers import BadRow
from rlaif.stages.inputs import tiny_target
from rlaif.stages.run import Run


@dataclass
class Rejected:
    """Input rows that could not be used: told, counted, and kept in rejected.jsonl."""

    stage: str
    rows: list[BadRow] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        self.rows.append(row)

    def counts(self) -> dict[str, int]:
        return dict(Counter(row.reason for row in self.rows))

    def tell(self, run: Run, most: int = 12) -> None:
        if not self.rows:
            return
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(self.counts().items()))
        shown = [f"  {row.source}: {row.reason}" for row in self.rows[:most]]
        if len(self.rows) > most:
            shown.append(f"  … and {len(self.rows) - most:,} more in rejected.jsonl")
        run.reporter.warn(f"{len(self.rows):,} rows not used: {reasons}\n" + "\n".join(shown))

    def write(self, run: Run) -> None:
        """One JSON line a row, in the run directory; removed when there is none."""
        if not run.main:
            return
        path = run.store.path(f"rejected-{self.stage}.jsonl")
        if self.rows:
            lines = (json.dumps(asdict(row), ensure_ascii=False) for row in self.rows)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def finish(run: Run, stage: str, started: float, facts: Mapping[str, Any]) -> None:
    """Writes the stage's section of the manifest: the last thing a stage does.

    Seconds of a stage that only found its work done already are those of the run that did it.
    """
    if not run.main:
        return
    seconds = round(time.monotonic() - started, 2)
    stages = dict(run.store.read_manifest().get("stages", {}))
    old = stages.get(stage, {})
    if facts.get("new_rows") == 0 and old:
        seconds = old.get("seconds", seconds)
        facts = {**facts, **{k: old[k] for k in Usage.__slots__ if k in old}}
    stages[stage] = {"seconds": seconds, **facts}
    run.store.update_manifest("stages", stages)


def describe(run: Run) -> None:
    """run.yaml and the manifest's head: what is run, with which versions, from which commit."""
    store, constitution = run.store, run.constitution
    kept = keep(run.config, store.root, store.read_manifest().get("inputs") or {})
    aside = store.path(".run.yaml.tmp")
    aside.write_text(to_yaml(kept.data), encoding="utf-8")
    aside.replace(store.path("run.yaml"))  # others may be reading it
    store.update_manifest("inputs", kept.record(store.root))
    for name in kept.changed:
        run.reporter.warn(f"{name} has changed since this run took it, and is taken as it is now")
    for name in kept.too_large:
        run.reporter.warn(
            f"{name} is too large to keep a copy in {store.root}: a copied run needs it"
        )
    store.update_manifest("constitution", {
        "name": constitution.name, "version": constitution.version, "hash": constitution.hash,
        "principles": [p.model_dump(mode="json") for p in run.principles()],
    })  # fmt: skip
    target = tiny_target(run)
    store.update_manifest("run", {
        "versions": versions(), "git_commit": git_commit(), "seed": run.config.sampling.seed,
        "target_trait": None if target is None else ("-" if target[1] < 0 else "") + target[0],
        "machine": platform.machine(), "device": run.config.policy.device,
    })  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for name in ("rlaif", "torch", "transformers", "trl", "datasets"):
        try:
            found[name] = version(DISTRIBUTION if name == "rlaif" else name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the folder the command runs in, with `+` when it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
